"""VAE and text encoder weights go to diffusers' and transformers' names and back bit for bit; anything odd is named."""

import numpy as np
import pytest

from pidiff_jax.convert.clip import clip_from_transformers, clip_table, clip_to_transformers
from pidiff_jax.convert.table import Entry
from pidiff_jax.convert.vae import vae_from_diffusers, vae_table, vae_to_diffusers
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.vae import VAESpec

VAE = VAESpec(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
TEXT = ClipTextSpec(vocab_size=11, width=8, num_layers=2, num_heads=2, mlp_width=12, max_length=5)
CASES = [
    pytest.param(VAE, vae_table, vae_from_diffusers, vae_to_diffusers, id="vae"),
    pytest.param(TEXT, clip_table, clip_from_transformers, clip_to_transformers, id="clip"),
]


def random_tensors(table: list[Entry]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    stand_ins = {entry.foreign: entry.layout.to_foreign(np.zeros(entry.shape)) for entry in table}
    return {name: rng.standard_normal(x.shape).astype(np.float16) for name, x in stand_ins.items()}


@pytest.mark.parametrize(("spec", "table", "read", "write"), CASES)
def test_there_and_back_is_bit_exact(spec, table, read, write):
    tensors = random_tensors(table(spec))
    back = write(spec, read(spec, tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize(("spec", "table", "read", "write"), CASES)
def test_missing_unknown_and_misshapen_tensors_are_named(spec, table, read, write):
    tensors = random_tensors(table(spec))
    first, second, *_ = tensors
    broken = dict(tensors) | {second: tensors[second][None], "encoder.surprise.weight": np.zeros(3)}
    del broken[first]
    with pytest.raises(ValueError, match="surprise") as error:
        read(spec, broken)
    assert repr(first) in str(error.value) and repr(second) in str(error.value)
    with pytest.raises(ValueError, match="surprise"):
        write(spec, read(spec, tensors) | {"surprise": np.zeros(3)})


def test_old_attention_names_of_the_vae_are_read():
    tensors = random_tensors(vae_table(VAE))
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    renamed = {}
    for name, tensor in tensors.items():
        for new, previous in old.items():
            name = name.replace(new, previous)
        renamed[name] = tensor
    assert sum("proj_attn" in name for name in renamed) == 4
    back = vae_to_diffusers(VAE, vae_from_diffusers(VAE, renamed))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_text_encoder_names_without_prefix_and_position_ids_are_read():
    tensors = random_tensors(clip_table(TEXT))
    assert all(name.startswith("text_model.") for name in tensors)
    short = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for named in (short, tensors):
        prefix = "" if named is short else "text_model."
        read = clip_from_transformers(TEXT, named | {f"{prefix}embeddings.position_ids": np.arange(5)[None]})
        back = clip_to_transformers(TEXT, read)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(back[name], tensor)
