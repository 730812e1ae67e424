"""Eight CPU devices, shapes and types checked at run time, and the fixtures that several folders of tests share."""

import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Before the first JAX operation and before the first import of what is to be checked.
jax.config.update("jax_num_cpu_devices", 8)
install_import_hook(["pidiff_jax", "data_pipeline"], "beartype.beartype")

# A suite that starts commands neither reads nor fills the user's cache of compiled programs.
os.environ["PIDIFF_COMPILATION_CACHE"] = "off"

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real StyleGAN2-FFHQ statistics (ffhq_pca.pt, age.pt, ...), which are not part of the repository."""
    if not (SHARED_DATA / "ffhq_pca.pt").is_file():
        pytest.skip(f"no StyleGAN2-FFHQ statistics at {SHARED_DATA}; they are not part of the repository")
    return SHARED_DATA
