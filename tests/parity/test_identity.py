"""The identity branch against other projects: IP-Adapter in diffusers, and the residual attention of w-plus-adapter."""

import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import traverse_util

from pidiff_jax.convert.adapter import (
    cross_attention_paths,
    from_ip_adapter,
    from_wplus_adapter,
    to_ip_adapter,
    to_wplus_adapter,
)
from pidiff_jax.convert.table import to_foreign
from pidiff_jax.convert.unet import split_identity, unet_table
from pidiff_jax.models.attention import Conditioning, CrossAttention
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec
from tests.models.tiny_unet import inputs, random_params, unet_shapes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

WIDTH = 24
MAPPER = MapperSpec(groups=((0, 1), (1, 3), (3, 5), (5, 6)), wplus_dim=10, token_dim=WIDTH)
TWO_GROUPS = MapperSpec(groups=((0, 2), (2, 6)), wplus_dim=10, token_dim=WIDTH, tokens_per_group=2)


def unet_spec(variant):
    # diffusers gives IP-Adapter tokens the text's width.
    return UNetSpec(
        block_out_channels=(16, 32, 32), layers_per_block=1, down_attention=(True, True, False), num_heads=2,
        cross_attention_dim=WIDTH, norm_num_groups=8, identity=IdentityAttentionSpec(variant, WIDTH),
    )  # fmt: skip


@functools.lru_cache
def adapter(variant, mapper_spec=MAPPER):
    spec = unet_spec(variant)
    mapper_shapes = jax.eval_shape(IdentityMapper(mapper_spec).init, jax.random.key(0), jnp.zeros((1, 6, 10)))
    params = {
        "unet": random_params(unet_shapes(spec)),
        "mapper": random_params(nn.meta.unbox(mapper_shapes)["params"], seed=3),
    }
    return spec, params


def nested(tensors):
    """Flat "group.rest" names as diffusers wants them: {"group": {"rest": tensor}}."""
    groups = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = torch.from_numpy(tensor)
    return groups


def torch_unet(spec, params):
    model = diffusers.UNet2DConditionModel(
        block_out_channels=spec.block_out_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
    ).eval()
    tensors = to_foreign(unet_table(spec), split_identity(params)[0])
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return model.requires_grad_(False)


def wplus_codes():
    return np.random.default_rng(5).standard_normal((2, 6, 10)).astype(np.float32)


@functools.lru_cache
def prediction(spec):
    """The UNet with identity tokens as a jitted function of parameters, inputs, W+ codes and identity scale."""

    @jax.jit
    def predict(params, arrays, wplus, scale):
        tokens = IdentityMapper(MAPPER).apply({"params": params["mapper"]}, wplus)
        return UNet(spec).apply({"params": params["unet"]}, **arrays, identity_tokens=tokens, identity_scale=scale)

    return predict


def our_prediction(spec, params, arrays, scale):
    return prediction(spec)(params, arrays, wplus_codes(), np.float32(scale))


def torch_prediction(model, arrays, **kwargs):
    latents = torch.from_numpy(arrays["noisy_latents"].transpose(0, 3, 1, 2).copy())
    out = model(latents, torch.from_numpy(arrays["timesteps"]), torch.from_numpy(arrays["text"].embeds), **kwargs)
    return out.sample.detach().numpy().transpose(0, 2, 3, 1)


def arrays_for(spec):
    arrays = inputs(spec, num_tokens=4)
    del arrays["identity_tokens"]
    return arrays


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_decoupled_attention_is_ip_adapter_in_stock_diffusers(scale):
    spec, params = adapter("decoupled")
    model, arrays = torch_unet(spec, params["unet"]), arrays_for(spec)
    base = torch_prediction(model, arrays)
    model._load_ip_adapter_weights([nested(to_ip_adapter(params, spec, MAPPER))], low_cpu_mem_usage=False)
    for processor in model.attn_processors.values():
        processor.scale = [scale]
    codes = torch.from_numpy(wplus_codes()).reshape(2, 1, -1)
    expected = torch_prediction(model, arrays, added_cond_kwargs={"image_embeds": [codes]})
    assert (np.abs(expected - base).max() > 0.01) == (scale > 0)
    np.testing.assert_allclose(our_prediction(spec, params, arrays, scale), expected, rtol=0, atol=1e-4)


def test_gradients_of_the_identity_kernels_are_those_of_ip_adapters_processors():
    spec, params = adapter("decoupled")
    model, arrays = torch_unet(spec, params["unet"]), arrays_for(spec)
    target = np.random.default_rng(8).standard_normal(arrays["noisy_latents"].shape).astype(np.float32)
    model._load_ip_adapter_weights([nested(to_ip_adapter(params, spec, MAPPER))], low_cpu_mem_usage=False)
    expected = {}
    for number, processor in enumerate(model.attn_processors.values()):
        if number % 2:
            expected[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight.requires_grad_()
            expected[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight.requires_grad_()
    codes = torch.from_numpy(wplus_codes()).reshape(2, 1, -1)
    prediction = model(
        torch.from_numpy(arrays["noisy_latents"].transpose(0, 3, 1, 2).copy()), torch.from_numpy(arrays["timesteps"]),
        torch.from_numpy(arrays["text"].embeds), added_cond_kwargs={"image_embeds": [codes]},
    ).sample  # fmt: skip
    # Summed over the elements of a sample, so that gradients are O(1).
    squares = (prediction - torch.from_numpy(target.transpose(0, 3, 1, 2).copy())).square()
    squares.sum((1, 2, 3)).mean().backward()

    base, identity = split_identity(params["unet"])

    @jax.jit
    def gradients(identity, base, mapper, arrays, wplus, target):
        def loss(identity):
            flat = traverse_util.flatten_dict(base) | traverse_util.flatten_dict(identity)
            tokens = IdentityMapper(MAPPER).apply({"params": mapper}, wplus)
            unet = {"params": traverse_util.unflatten_dict(flat)}
            squares = jnp.square(UNet(spec).apply(unet, **arrays, identity_tokens=tokens) - target)
            return squares.sum((1, 2, 3)).mean()

        return jax.grad(loss)(identity)

    ours = gradients(identity, base, params["mapper"], arrays, wplus_codes(), target)
    named = to_ip_adapter({"unet": ours, "mapper": params["mapper"]}, spec, MAPPER)
    named = {name: gradient for name, gradient in named.items() if name.startswith("ip_adapter.")}
    assert named.keys() == expected.keys() and len(named) == 2 * 7
    for name, weight in expected.items():
        assert weight.grad.abs().max() > 0.1, name
        np.testing.assert_allclose(named[name], weight.grad.numpy(), rtol=0, atol=1e-4, err_msg=name)


class ResidualProcessor(torch.nn.Module):
    """Text attention, then attention to identity tokens with a query made of its result (w-plus-adapter)."""

    def __init__(self, kernels, tokens, scale):
        super().__init__()
        self.kernels, self.tokens, self.scale = kernels, tokens, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        def attend(q, k, v):
            heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # noqa: E731
            q, k, v = heads(q), heads(k), heads(v)
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
            return (weights @ v).transpose(1, 2).flatten(2)

        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        text = attend(q, k, v)
        project = lambda name, x: x @ self.kernels[name].T  # noqa: E731
        identity = attend(project("to_q", text), project("to_k", self.tokens), project("to_v", self.tokens))
        return attn.to_out[0](text + self.scale * identity)


def test_residual_attention_is_that_of_w_plus_adapter():
    spec, params = adapter("residual")
    model, arrays = torch_unet(spec, params["unet"]), arrays_for(spec)
    groups = nested(to_wplus_adapter(params, spec, MAPPER))
    codes, mapper = torch.from_numpy(wplus_codes()), groups["w_proj"]
    tokens = [codes[:, a:b].flatten(1) @ mapper[f"proj_{i}.weight"].T for i, (a, b) in enumerate(MAPPER.groups)]
    tokens = torch.nn.functional.layer_norm(
        torch.stack(tokens, 1), (WIDTH,), mapper["norm.weight"], mapper["norm.bias"]
    )
    processors = dict(model.attn_processors)
    for number, name in enumerate(processors):
        if number % 2:
            kernels = {n: groups["wplus_adapter"][f"{number}.{n}_wplus.weight"] for n in ("to_q", "to_k", "to_v")}
            processors[name] = ResidualProcessor(kernels, tokens, 0.6)
    model.set_attn_processor(processors)
    expected = torch_prediction(model, arrays)
    np.testing.assert_allclose(our_prediction(spec, params, arrays, 0.6), expected, rtol=0, atol=1e-4)


def test_one_cross_attention_agrees_with_ip_adapters_processor():
    spec, params = adapter("decoupled")
    model = torch_unet(spec, params["unet"])
    model._load_ip_adapter_weights([nested(to_ip_adapter(params, spec, MAPPER))], low_cpu_mem_usage=False)
    rng = np.random.default_rng(0)
    x, text, tokens = (rng.standard_normal(s).astype(np.float32) for s in [(2, 9, 16), (2, 5, WIDTH), (2, 4, WIDTH)])
    theirs = model.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    expected = (
        theirs(torch.from_numpy(x), (torch.from_numpy(text), [torch.from_numpy(tokens)[:, None]])).detach().numpy()
    )
    ours = params["unet"]["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn2"]
    x, text, tokens = map(jnp.asarray, (x, text, tokens))
    out, _ = CrossAttention(2, spec.identity).apply({"params": ours}, x, Conditioning(text, tokens))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mapper_spec", [MAPPER, TWO_GROUPS])
def test_the_mapper_is_ip_adapters_projection_with_a_block_sparse_weight(mapper_spec):
    spec, params = adapter("decoupled", mapper_spec)
    projection = nested(to_ip_adapter(params, spec, mapper_spec))["image_proj"]
    codes = wplus_codes()
    expected = torch.from_numpy(codes).flatten(1) @ projection["proj.weight"].T + projection["proj.bias"]
    expected = torch.nn.functional.layer_norm(
        expected.unflatten(1, (4, WIDTH)), (WIDTH,), projection["norm.weight"], projection["norm.bias"]
    )
    tokens = IdentityMapper(mapper_spec).apply({"params": params["mapper"]}, jnp.asarray(codes))
    np.testing.assert_allclose(tokens, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "mapper_spec", "export", "restore"),
    [
        ("decoupled", MAPPER, to_ip_adapter, from_ip_adapter),
        ("decoupled", TWO_GROUPS, to_ip_adapter, from_ip_adapter),
        ("residual", MAPPER, to_wplus_adapter, from_wplus_adapter),
    ],
)
def test_adapters_survive_both_directions_bit_for_bit(variant, mapper_spec, export, restore):
    spec, params = adapter(variant, mapper_spec)
    original = {"unet": split_identity(params["unet"])[1], "mapper": params["mapper"]}
    exported = export(params, spec, mapper_spec)
    restored = restore(exported, spec, mapper_spec)
    flat, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (restored, original))
    assert flat.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(flat[path], array, err_msg=path)
    again = export(restored, spec, mapper_spec)
    assert again.keys() == exported.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in exported.items())


def test_full_size_adapters_have_the_names_and_sizes_of_the_released_ones():
    ip_spec = UNetSpec.sd15(IdentityAttentionSpec())
    paths = traverse_util.flatten_dict(split_identity(unet_shapes(ip_spec))[1], sep="/")
    assert sum(int(np.prod(leaf.shape)) for leaf in paths.values()) == 19_169_280
    order = cross_attention_paths(list(paths))
    assert len(order) == 16 and order[-1].startswith("mid_block") and order[6].startswith("up_blocks_1")
    residual = split_identity(unet_shapes(UNetSpec.sd15(IdentityAttentionSpec("residual"))))[1]
    sizes = [int(np.prod(leaf.shape)) for leaf in traverse_util.flatten_dict(residual).values()]
    assert sum(sizes) == 31_559_680


def test_what_a_format_cannot_hold_is_refused():
    spec, params = adapter("decoupled")
    with pytest.raises(ValueError, match="residual"):
        to_wplus_adapter(params, spec, MAPPER)
    with pytest.raises(ValueError, match="one token per group, got kind='linear' and tokens_per_group=2"):
        to_wplus_adapter(params, unet_spec("residual"), TWO_GROUPS)
    with pytest.raises(ValueError, match="one token per group, got kind='mlp'"):
        to_wplus_adapter(params, unet_spec("residual"), dataclasses.replace(MAPPER, kind="mlp", hidden_width=8))
    for variant in ("independent", "residual"):
        with pytest.raises(ValueError, match=f"decoupled identity attention, got .*'{variant}'.* the text's query"):
            to_ip_adapter(params, unet_spec(variant), MAPPER)
        with pytest.raises(ValueError, match=f"decoupled identity attention, got .*'{variant}'.* the text's query"):
            from_ip_adapter({}, unet_spec(variant), MAPPER)
    dense = to_ip_adapter(params, spec, MAPPER)
    dense["image_proj.proj.weight"] = dense["image_proj.proj.weight"] + 1
    with pytest.raises(ValueError, match="another image_proj.proj.weight"):
        from_ip_adapter(dense, spec, MAPPER)
    incomplete = to_ip_adapter(params, spec, MAPPER)
    del incomplete["ip_adapter.3.to_k_ip.weight"]
    with pytest.raises(ValueError, match=r"ip_adapter\.3\.to_k_ip"):
        from_ip_adapter(incomplete, spec, MAPPER)


def test_tokens_of_another_width_are_refused_in_both_formats_and_directions():
    wider = MapperSpec(groups=MAPPER.groups, wplus_dim=10, token_dim=2 * WIDTH)
    decoupled, params = adapter("decoupled")
    tensors = to_ip_adapter(params, decoupled, MAPPER)
    both_wider = dataclasses.replace(decoupled, identity=IdentityAttentionSpec(token_dim=2 * WIDTH))
    other_text = dataclasses.replace(decoupled, cross_attention_dim=16)
    for spec, mapper, widths in (
        (decoupled, wider, (48, 24, 24)), (both_wider, wider, (48, 48, 24)), (other_text, MAPPER, (24, 24, 16)),
    ):  # fmt: skip
        message = "token_dim={}, .*token_dim={} and cross_attention_dim={};".format(*widths)
        with pytest.raises(ValueError, match=message):
            to_ip_adapter(params, spec, mapper)
        with pytest.raises(ValueError, match=message):
            from_ip_adapter(tensors, spec, mapper)
    residual, params = adapter("residual")
    tensors = to_wplus_adapter(params, residual, MAPPER)
    with pytest.raises(ValueError, match="one token_dim, got 48 and 24"):
        to_wplus_adapter(params, residual, wider)
    with pytest.raises(ValueError, match="one token_dim, got 48 and 24"):
        from_wplus_adapter(tensors, residual, wider)


def test_the_zero_code_gives_the_norms_bias_and_bad_codes_are_refused():
    _, params = adapter("decoupled")
    tokens = IdentityMapper(MAPPER).apply({"params": params["mapper"]}, jnp.zeros((1, 6, 10)))
    np.testing.assert_allclose(tokens, np.broadcast_to(params["mapper"]["norm"]["bias"], tokens.shape))
    with pytest.raises(ValueError, match=r"\(b, 6, 10\)"):
        IdentityMapper(MAPPER).apply({"params": params["mapper"]}, jnp.zeros((1, 5, 10)))
    with pytest.raises(ValueError, match="consecutive"):
        MapperSpec(groups=((0, 4), (5, 8)))
    with pytest.raises(ValueError, match="at least 1 token"):
        MapperSpec(tokens_per_group=0)
