"""Passes of guidance agree where they must, and what doesn't change from step to step is projected once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.models.attention import CONDITIONS
from pidiff_jax.models.unet import UNet
from pidiff_jax.sampling.generate import Sampling
from pidiff_jax.sampling.guided import Guidance, make_conditions, predict
from tests.models.tiny_unet import inputs, random_params, tiny_spec, unet_shapes
from tests.sampling.test_generate import HEIGHT, TOKENS, WIDTH, tiny_pipeline

SHAPE = (2, HEIGHT, WIDTH, 4)


@functools.cache
def predicted(passes, scale, identity=1.0):
    components, params = tiny_pipeline()
    rng = np.random.default_rng(0)
    latents, tokens = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (SHAPE, (2, 1, TOKENS, 20)))
    text_ids = jnp.asarray(rng.integers(0, 9, (2, 5)), jnp.int32)

    @jax.jit
    def run(params):
        conditions = make_conditions(components, params, text_ids, tokens, latents_shape=SHAPE, passes=passes)
        return predict(components, params, conditions, Guidance(scale, identity, 0.0), latents, 500, passes=passes)

    return run(params)


def test_three_passes_with_equal_scales_are_the_guidance_of_two():
    three, heat = predicted(3, 2.5, 2.5)
    two, expected_heat = predicted(2, 2.5)
    np.testing.assert_allclose(three, two, rtol=0, atol=1e-5)
    np.testing.assert_allclose(heat, expected_heat, rtol=0, atol=1e-6)
    assert np.abs(predicted(3, 2.5, 1.0)[0] - two).max() > 1e-3


def test_a_guidance_of_one_takes_one_pass_and_is_the_conditional_prediction():
    assert Sampling(guidance_scale=1.0).passes == 1
    assert Sampling(guidance_scale=1.5).passes == 2
    assert Sampling(guidance_scale=1.0, identity_guidance_scale=2.0).passes == 3
    np.testing.assert_allclose(predicted(1, 1.0)[0], predicted(2, 1.0)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["decoupled", "independent", "residual"])
def test_remembered_keys_and_values_give_the_same_prediction_and_their_kernels_are_not_read(variant):
    spec = tiny_spec(variant)
    unet, params = UNet(spec), random_params(unet_shapes(spec))
    arrays = jax.tree.map(jnp.asarray, inputs(spec))
    _, filled = jax.jit(functools.partial(unet.apply, mutable=[CONDITIONS]))({"params": params}, **arrays)

    def step(params, remembered):
        return unet.apply({"params": params, CONDITIONS: remembered}, **arrays)

    expected = jax.jit(unet.apply)({"params": params}, **arrays)
    np.testing.assert_allclose(jax.jit(step)(params, filled[CONDITIONS]), expected, rtol=0, atol=1e-6)

    traced = jax.make_jaxpr(step)(params, filled[CONDITIONS]).jaxpr
    read = {variable for equation in traced.eqns for variable in equation.invars if not hasattr(variable, "val")}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    used = {path for path, variable in zip(paths, traced.invars, strict=False) if variable in read}
    projections = {path for path in paths if "attn2" in path and ("to_k" in path or "to_v" in path)}
    assert len(projections) == 16 and not projections & used
    assert {path for path in paths if "attn2" in path and "to_q" in path} <= used
