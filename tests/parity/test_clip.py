"""The text encoder gives the numbers of transformers' `CLIPTextModel`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from transformers import CLIPTextConfig, CLIPTextModel

from pidiff_jax.convert.clip import clip_from_transformers
from pidiff_jax.models import clip
from pidiff_jax.models.clip import ClipText, ClipTextSpec

SD1 = ClipTextSpec(vocab_size=50, width=16, num_layers=3, num_heads=2, mlp_width=32, max_length=12)
SD2 = ClipTextSpec(vocab_size=50, width=24, num_layers=2, num_heads=3, mlp_width=40, max_length=12, activation="gelu")


def reference(spec: ClipTextSpec) -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        max_position_embeddings=spec.max_length,
        hidden_act=spec.activation,
        bos_token_id=48,
        eos_token_id=49,
    )
    model = CLIPTextModel(config)
    with torch.no_grad():  # transformers initialises biases to 0, norms to 1, and embeddings small
        for tensor in model.parameters():
            tensor.add_(0.2 * torch.randn_like(tensor))
    return model.eval()


def ported(spec: ClipTextSpec, model: torch.nn.Module) -> dict:
    return clip_from_transformers(spec, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def text_ids(spec: ClipTextSpec, length: int | None = None) -> np.ndarray:
    return np.random.default_rng(0).integers(0, spec.vocab_size, (2, length or spec.max_length)).astype(np.int32)


@pytest.mark.parametrize("spec", [SD1, SD2], ids=["sd1", "sd2"])
@pytest.mark.parametrize("length", [12, 5])
def test_hidden_states_match_transformers(spec, length):
    model, ids = reference(spec), text_ids(spec, length)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).last_hidden_state.numpy()
    ours = jax.jit(ClipText(spec).apply)({"params": ported(spec, model)}, ids)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spec", [SD1, SD2], ids=["quick_gelu", "gelu"])
def test_the_mlp_matches_transformers(spec):
    model = reference(spec)
    params = ported(spec, model)["encoder"]["layers_0"]["mlp"]
    x = np.random.default_rng(1).standard_normal((2, 5, spec.width)).astype(np.float32)
    with torch.no_grad():
        expected = model.encoder.layers[0].mlp(torch.tensor(x)).numpy()
    np.testing.assert_allclose(jax.jit(clip.ClipMLP(spec).apply)({"params": params}, x), expected, rtol=0, atol=1e-5)


def test_a_token_never_sees_later_tokens():
    params = {"params": ported(SD1, reference(SD1))}
    ids = text_ids(SD1)
    changed = ids.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % SD1.vocab_size
    encode = jax.jit(ClipText(SD1).apply)
    before, after = (np.asarray(encode(params, x)) for x in (ids, changed))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).min(axis=-1).max() > 0


@pytest.mark.parametrize(
    ("spec", "count"), [(ClipTextSpec.sd15(), 123_060_480), (ClipTextSpec.sd21(), 340_387_840)], ids=["sd15", "sd21"]
)
def test_full_size_trees_have_the_published_number_of_parameters(spec, count):
    ids = jnp.zeros((1, spec.max_length), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(ClipText(spec).init, jax.random.key(0), ids))["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_token_ids_outside_the_vocabulary_give_nan():
    ids = text_ids(SD1)
    ids[0, 3] = SD1.vocab_size
    states = jax.jit(ClipText(SD1).apply)({"params": ported(SD1, reference(SD1))}, ids)
    assert np.isnan(states[0]).any() and not np.isnan(states[1]).any()


def test_bad_specs_and_inputs_are_refused():
    with pytest.raises(ValueError, match="'swish'"):
        ClipTextSpec(activation="swish")
    with pytest.raises(ValueError, match="divisible by num_heads, got 768 and 5"):
        ClipTextSpec(num_heads=5)
    with pytest.raises(ValueError, match="at most 12 tokens, got 13"):
        jax.eval_shape(ClipText(SD1).init, jax.random.key(0), jnp.zeros((1, 13), jnp.int32))
