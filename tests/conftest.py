"""Eight CPU devices, shapes and types checked at run time, compiled programs kept, and fixtures that several folders share."""

import gc
import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

from pidiff_jax.compilation_cache import MAX_BYTES, MIN_COMPILE_SECONDS, VARIABLE, cache_folder, use_compilation_cache

ROOT = Path(__file__).parents[1]

# Programs are compiled once for all processes of the tests; neither they nor the commands that they start touch the user's.
os.environ[VARIABLE] = str(ROOT / ".jax_cache")
use_compilation_cache(None)
for name, value in {
    "jax_compilation_cache_dir": cache_folder(None, os.environ),
    "jax_compilation_cache_max_size": MAX_BYTES,
    "jax_persistent_cache_min_compile_time_secs": MIN_COMPILE_SECONDS,
}.items():
    os.environ[name.upper()] = str(value)  # for other programs that tests start

# Compiles in half the time, what is compiled is as right, and only large networks run slower; other programs do so too.
# A program isn't cut in parts for cores that the tests' other processes use.
_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

# PyTorch's threads wait by spinning: side by side, processes would take the cores from each other. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before the first JAX operation and before the first import of what is to be checked.
jax.config.update("jax_num_cpu_devices", 8)
install_import_hook(["pidiff_jax", "data_pipeline"], "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_their_file():
    """Otherwise a process that runs many files of tests keeps several GB of programs that nothing needs any more."""
    yield
    jax.clear_caches()
    gc.collect()
