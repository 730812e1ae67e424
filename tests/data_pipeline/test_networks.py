"""The networks of `launch.prepare`, from a folder or one file."""

import numpy as np
import pytest

from data_pipeline.prepare.networks import check_networks, load_encoders
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.single_file import write_single_file
from tests.convert.tiny_stable_diffusion import tiny_pipeline, write_words
from tests.data_pipeline.astronaut import write_e4e


def test_a_base_in_one_file_encodes_as_its_folder_does(tmp_path):
    words, folder, file, e4e = (tmp_path / name for name in ("words", "base", "base.safetensors", "e4e.safetensors"))
    tiny_pipeline("2.x", write_words(words)).save_pretrained(folder)
    write_single_file(file, open_diffusers_folder(folder))
    spec = write_e4e(e4e)
    by_folder, by_file = load_encoders(folder, e4e, spec), load_encoders(file, e4e, spec, tokenizer=words)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    for ours, theirs in zip(by_file.latents(pixels), by_folder.latents(pixels), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(by_file.tokenize(["a photo"]), by_folder.tokenize(["a photo"]))
    check_networks(file, e4e, tokenizer=words)
    with pytest.raises(ValueError, match="expected no variant for .*base.safetensors"):
        check_networks(file, e4e, "fp16")
    with pytest.raises(ValueError, match="expected no tokenizer for the folder"):
        check_networks(folder, e4e, tokenizer=words)
    with pytest.raises(ValueError, match="expected a model that is supported, got .* in e4e.safetensors|got an e4e"):
        check_networks(e4e, e4e)
