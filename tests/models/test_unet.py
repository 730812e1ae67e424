"""The UNet's identity branch, attention maps and errors; numbers are compared with PyTorch in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from pidiff_jax.convert.unet import split_identity
from pidiff_jax.models.attention import Conditioning, CrossAttention
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec, expand_scale, init_identity_from_text
from pidiff_jax.models.unet_blocks import scale_at
from tests.models.tiny_unet import inputs, random_params, tiny_spec, tiny_unet, unet_shapes


def bits(x):
    return np.asarray(x).view(np.uint32)


def tiny_cross_attention(variant="decoupled"):
    """A cross-attention over 8x8 positions, as a function of the identity scale in the UNet's shapes."""
    spec, params, arrays, _ = tiny_unet(variant)
    params = params["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn2"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 16)), jnp.float32)

    def attend(scale=None, tokens=True):
        size = max(8, *np.shape(scale)[1:3]) if np.ndim(scale) == 4 else 8
        if scale is not None:
            scale = scale_at(expand_scale(jnp.asarray(scale), (2, size, size, 4), 3), 8, 8)
        module, text = CrossAttention(2, spec.identity), jnp.asarray(arrays["text"].embeds)
        cond = Conditioning(text, jnp.asarray(arrays["identity_tokens"]) if tokens else None)
        return module.apply({"params": params}, x, cond, scale if tokens else None)[0]

    return attend


def predict(apply, params, arrays):
    """The prediction of a program that several tests share, which returns the attention maps too."""
    return apply(params, arrays, return_attention=True)[0]


def as_jax(arrays):
    return jax.tree.map(jnp.asarray, arrays)


def without_identity(arrays):
    return {name: x for name, x in arrays.items() if not name.startswith("identity")}


def test_scale_zero_is_bitwise_the_base_even_for_tokens_that_overflow():
    _, params, arrays, apply = tiny_unet(optimised=True)
    base = apply(split_identity(params)[0], without_identity(arrays))
    zero = arrays | {"identity_scale": np.float32(0)}
    np.testing.assert_array_equal(bits(apply(params, zero)), bits(base))
    overflowing = zero | {"identity_tokens": np.full((2, 3, 20), np.inf, np.float32)}
    np.testing.assert_array_equal(bits(apply(params, overflowing)), bits(base))
    full = apply(params, arrays | {"identity_scale": np.float32(1)})
    assert np.abs(full - base).max() > 0.01


def test_spatial_scale_zero_is_bitwise_the_base_at_every_resolution():
    _, params, arrays, apply = tiny_unet(optimised=True)
    nowhere = arrays | {"identity_scale": np.zeros((2, 8, 8, 1), np.float32)}
    np.testing.assert_array_equal(bits(apply(params, nowhere)), bits(apply(params, without_identity(arrays))))


@pytest.mark.parametrize("variant", ["decoupled", "independent", "residual"])
def test_one_layer_with_scale_zero_is_bitwise_the_base(variant):
    attend = tiny_cross_attention(variant)
    np.testing.assert_array_equal(bits(attend(np.zeros(2, np.float32))), bits(attend(tokens=False)))


def test_an_independent_branch_is_the_decoupled_one_with_another_query():
    _, params, arrays, decoupled = tiny_unet("decoupled")
    _, own, _, independent = tiny_unet("independent")
    flat, shared = (traverse_util.flatten_dict(tree, sep="/") for tree in (own, params))
    queries = {path for path in flat if "to_q_id" in path}
    assert flat.keys() - queries == shared.keys()
    same = shared | {path: shared[path.replace("to_q_id", "to_q")] for path in queries}
    expected = predict(decoupled, params, arrays)
    np.testing.assert_allclose(independent(traverse_util.unflatten_dict(same, sep="/"), arrays), expected, atol=1e-5)
    other = shared | {path: flat[path] for path in queries}
    assert np.abs(independent(traverse_util.unflatten_dict(other, sep="/"), arrays) - expected).max() > 0.01


def test_scale_acts_per_sample_and_position():
    attend = tiny_cross_attention()
    base, full = attend(tokens=False), attend()
    per_sample = attend(np.array([0, 1], np.float32))
    np.testing.assert_array_equal(bits(per_sample[0]), bits(base[0]))
    np.testing.assert_allclose(per_sample[1], full[1], atol=1e-6)
    left = np.zeros((1, 8, 8, 1), np.float32)
    left[:, :, :3] = 1
    per_position, base, full = (x.reshape(2, 8, 8, -1) for x in (attend(left), base, full))
    np.testing.assert_array_equal(per_position[:, :, 3:], base[:, :, 3:])
    np.testing.assert_allclose(per_position[:, :, :3], full[:, :, :3], atol=1e-6)
    assert (np.abs(full - base).max(-1) > 0).all()


def test_scale_acts_per_token():
    attend = tiny_cross_attention()
    one_hot = [attend(np.eye(3, dtype=np.float32)[i].reshape(1, 1, 1, 3)) for i in range(3)]
    # The output projection is affine, so the tokens' contributions add up.
    base = attend(tokens=False)
    np.testing.assert_allclose(sum(x - base for x in one_hot), attend() - base, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (2,), (1, 1, 1, 3), (2, 8, 8, 1), (2, 16, 16, 1), (1, 8, 8, 3)])
def test_scales_that_mean_one_agree_with_no_scale(shape):
    attend = tiny_cross_attention()
    np.testing.assert_allclose(attend(np.ones(shape, np.float32)), attend(), atol=1e-6)


def test_a_regional_scale_has_the_means_of_blocks_at_lower_resolutions():
    mask = np.zeros((1, 8, 12, 1), np.float32)
    mask[:, 2:8, 4:8] = 1  # two whole blocks of 4x4 and half of another two
    mask[:, 0, 11] = 1
    np.testing.assert_array_equal(scale_at(jnp.asarray(mask), 2, 3)[0, :, 0], [0, 0.5, 0.0625, 0, 1, 0])
    half = np.asarray(scale_at(jnp.asarray(mask), 4, 6)).reshape(4, 6)
    np.testing.assert_array_equal(half[1:, 2:4], 1)  # a region of whole blocks reaches no other
    assert half[0, 5] == 0.25 and half.sum() == 6.25
    np.testing.assert_array_equal(scale_at(jnp.asarray(mask), 8, 12)[0, :, 0], mask.ravel())
    two = np.concatenate([mask, 2 * mask], axis=-1)
    np.testing.assert_array_equal(scale_at(jnp.asarray(two), 4, 6)[0], np.outer(half, [1, 2]))


def test_a_scale_along_one_axis_is_repeated_along_the_other():
    rows = np.array([1, 0, 0, 2], np.float32).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(scale_at(jnp.asarray(rows), 2, 3)[0, :, 0], [0.5, 0.5, 0.5, 1, 1, 1])


@pytest.mark.parametrize("sink", [False, True])
def test_attention_maps_have_every_layers_path_and_resolution(sink):
    _, params, arrays, apply = tiny_unet(sink=sink)
    maps = apply(params, arrays, return_attention=True)[1]
    block = "transformer_blocks_0/attn2"
    assert {path: m.shape for path, m in maps.items()} == {
        f"down_blocks_0/attentions_0/{block}": (2, 8, 8, 3),
        f"mid_block/attentions_0/{block}": (2, 4, 4, 3),
        f"up_blocks_1/attentions_0/{block}": (2, 8, 8, 3),
        f"up_blocks_1/attentions_1/{block}": (2, 8, 8, 3),
    }
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, strength in maps.items():
        assert f"{path}/to_k_id/kernel" in flat
        assert (strength > 0).all()


@pytest.mark.parametrize("sink", [False, True])
def test_the_map_is_each_tokens_weight_times_the_norm_of_its_value_averaged_over_heads(sink):
    rng = np.random.default_rng(0)
    attention = CrossAttention(2, IdentityAttentionSpec(token_dim=20, sink=sink))
    x, text, tokens = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in [(1, 5, 8), (1, 4, 6), (1, 2, 20)]
    )
    params = random_params(
        jax.eval_shape(lambda: nn.meta.unbox(attention.init(jax.random.key(0), x, Conditioning(text)))["params"])
    )
    _, strength = attention.apply({"params": params}, x, Conditioning(text, tokens))
    q, k, v = ((a @ params[name]["kernel"]).reshape(-1, 2, 4) for a, name in
               [(x[0], "to_q"), (tokens[0], "to_k_id"), (tokens[0], "to_v_id")])  # fmt: skip
    for head in range(2):
        weights = np.exp(q[:, head] @ k[:, head].T / 2)
        weights = weights / (weights.sum(-1, keepdims=True) + sink)
        strength = strength - weights * np.linalg.norm(v[:, head], axis=-1) / 2
    np.testing.assert_allclose(strength, 0, atol=1e-6)


def test_gradients_reach_every_identity_kernel():
    spec, params, arrays, _ = tiny_unet("residual")
    base, identity = split_identity(params)

    def loss(identity):
        flat = traverse_util.flatten_dict(base) | traverse_util.flatten_dict(identity)
        params = {"params": traverse_util.unflatten_dict(flat)}
        return jnp.square(UNet(spec).apply(params, **as_jax(arrays))).mean()

    gradients = jax.jit(jax.grad(loss))(identity)
    gradients = traverse_util.flatten_dict(gradients, sep="/")
    assert len(gradients) == 3 * 4
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())


def test_identity_parameters_exist_whether_or_not_init_sees_tokens():
    spec = tiny_spec("residual")
    arrays = inputs(spec)
    shapes = [
        jax.eval_shape(UNet(spec).init, jax.random.key(0), **args)
        for args in (as_jax(arrays), as_jax(without_identity(arrays)))
    ]
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])
    base = unet_shapes(tiny_spec(None))
    assert jax.tree.structure(split_identity(unet_shapes(spec))[0]) == jax.tree.structure(base)


def test_init_copies_text_kernels_where_widths_agree():
    spec = UNetSpec(
        block_out_channels=(16,), layers_per_block=1, down_attention=(True,), num_heads=2, cross_attention_dim=24,
        norm_num_groups=8, identity=IdentityAttentionSpec("residual", 24),
    )  # fmt: skip
    params = random_params(unet_shapes(spec))
    copied = init_identity_from_text(params, value_scale=0.5)
    for attention in (tree["attentions_0"]["transformer_blocks_0"]["attn2"] for tree in (copied["mid_block"],)):
        np.testing.assert_array_equal(attention["to_k_id"]["kernel"], attention["to_k"]["kernel"])
        np.testing.assert_array_equal(attention["to_q_id"]["kernel"], attention["to_q"]["kernel"])
        np.testing.assert_array_equal(attention["to_v_id"]["kernel"], 0.5 * attention["to_v"]["kernel"])
    params = random_params(unet_shapes(tiny_spec()))
    jax.tree.map(np.testing.assert_array_equal, init_identity_from_text(params), params)


def test_half_precision_compute_is_close_and_the_prediction_is_float32():
    spec, params, arrays, apply = tiny_unet()
    half = jax.jit(UNet(spec, jnp.bfloat16).apply)({"params": params}, **arrays)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, predict(apply, params, arrays), atol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noisy_latents": np.zeros((2, 7, 8, 4), np.float32)}, "divisible by 2"),
        ({"noisy_latents": np.zeros((2, 8, 8, 3), np.float32)}, "4 channels"),
        ({"text": TextConditioning(np.zeros((2, 5, 7), np.float32))}, r"text_embeds of width 24, got \(2, 5, 7\)"),
        ({"identity_tokens": np.zeros((2, 3, 7), np.float32)}, "width 20"),
        ({"identity_scale": np.zeros((2, 3), np.float32)}, "write missing axes as 1"),
        ({"identity_scale": np.zeros((3,), np.float32)}, "identity_scale"),
    ],
)
def test_bad_inputs_are_named(change, message):
    _, params, arrays, apply = tiny_unet()
    with pytest.raises(ValueError, match=message):
        apply(params, arrays | change)


def test_tokens_without_an_identity_branch_are_refused():
    _, params, arrays, apply = tiny_unet(None)
    with pytest.raises(ValueError, match="IdentityAttentionSpec"):
        apply(params, arrays | {"identity_tokens": np.zeros((2, 3, 20), np.float32)})


def test_specs_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="2 entries"):
        UNetSpec(block_out_channels=(32, 64), down_attention=(True,))
    with pytest.raises(ValueError, match="divisible"):
        UNetSpec(block_out_channels=(32, 50), down_attention=(True, False), norm_num_groups=16)
    with pytest.raises(ValueError, match="variant"):
        IdentityAttentionSpec("concatenated")


def crowd(variant="decoupled", normalised=False):
    """A cross-attention over 8x8 positions, as a function of several people's tokens and of the scale there."""
    spec, params, arrays, _ = tiny_unet(variant)
    params = params["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn2"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 16)), jnp.float32)
    text, module = jnp.asarray(arrays["text"].embeds), CrossAttention(2, spec.identity)
    return lambda tokens, scale=None: module.apply(
        {"params": params},
        x,
        Conditioning(text, None if tokens is None else jnp.asarray(tokens), None, normalised),
        scale,
    )


def people_of(count, seed=0):
    return np.random.default_rng(seed).standard_normal((2, count, 3, 20)).astype(np.float32)


def over_tokens(*strengths):
    """(1, positions, tokens of all people) of one strength, or one for each position, for each person."""
    return jnp.stack([jnp.broadcast_to(jnp.asarray(s, jnp.float32), (64,)) for s in strengths for _ in range(3)], -1)[
        None
    ]


@pytest.mark.parametrize("variant", ["decoupled", "independent", "residual"])
def test_a_person_who_is_nowhere_leaves_the_other_bit_for_bit(variant):
    attend, people = crowd(variant), people_of(2)
    for order, strengths in (([0, 1], (1, 0)), ([1, 0], (0, 1))):
        out, strength = attend(people[:, order], over_tokens(*strengths))
        alone, alone_strength = attend(people[:, :1], over_tokens(1))
        np.testing.assert_array_equal(bits(out), bits(alone))
        assert strength.shape == (2, 64, 6)
        place = 3 * order.index(0)
        np.testing.assert_array_equal(strength[..., place : place + 3], alone_strength)


def test_inside_a_region_the_other_region_s_person_changes_nothing():
    attend, people, others = crowd(), people_of(2), people_of(2, seed=1)
    left = np.tile(np.arange(8) < 4, 8).astype(np.float32)
    scale = over_tokens(left, 1 - left)
    together = attend(people, scale)[0]
    another = attend(np.stack([people[:, 0], others[:, 1]], 1), scale)[0]
    np.testing.assert_array_equal(bits(together[:, left == 1]), bits(another[:, left == 1]))
    assert (np.abs(together - another)[:, left == 0].max(-1) > 0).all()


def test_what_several_people_add_is_added_up():
    attend, people = crowd(), people_of(2)
    base = attend(None)[0]
    parts = [attend(people[:, i : i + 1])[0] - base for i in range(2)]
    np.testing.assert_allclose(attend(people)[0] - base, parts[0] + parts[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["decoupled", "residual"])
def test_what_a_normalised_identity_adds_has_the_norm_of_what_the_text_gives(variant):
    spec, params, *_ = tiny_unet(variant)
    projection = params["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn2"]["to_out_0"]
    before = lambda out: np.linalg.solve(  # noqa: E731
        projection["kernel"].T.astype(np.float64), (np.asarray(out, np.float64) - projection["bias"]).reshape(-1, 16).T
    ).T.reshape(2, -1)
    text = before(crowd(variant)(None)[0])
    for factor in (1, 20):
        added = before(crowd(variant, normalised=True)(factor * people_of(1))[0]) - text
        np.testing.assert_allclose(np.linalg.norm(added, axis=1), np.linalg.norm(text, axis=1), rtol=1e-3)
    plain = before(crowd(variant)(20 * people_of(1))[0]) - text
    assert (np.linalg.norm(plain, axis=1) > 2 * np.linalg.norm(text, axis=1)).all()
    half = before(crowd(variant, normalised=True)(people_of(1), over_tokens(0.5))[0]) - text
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 0.5 * np.linalg.norm(text, axis=1), rtol=1e-3)
