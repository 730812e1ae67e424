"""What tests of wrong files share: a right model, made once. Other tests here don't pay for the imports."""

import pytest


@pytest.fixture(scope="session")
def right(tmp_path_factory):
    """A folder of a tiny Stable Diffusion 1.x as "model", the same in one file, and its tokenizer as "words"."""
    from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
    from pidiff_jax.convert.single_file import write_single_file
    from tests.convert.tiny_stable_diffusion import tiny_pipeline, write_words

    root = tmp_path_factory.mktemp("right")
    words = write_words(root / "words")
    tiny_pipeline("1.x", words).save_pretrained(root / "model")
    write_single_file(root / "model.safetensors", open_diffusers_folder(root / "model"))
    return root


@pytest.fixture
def place(right, tmp_path):
    """An empty place for wrong files, see `Place`."""
    from tests.launch.wrong_files import Place

    return Place(tmp_path, right / "model", right / "model.safetensors", right / "words")
