"""A compiled sampler spreads a batch over the mesh, and draws what one device draws."""

import jax
import numpy as np

from pidiff_jax.sampling import compiled
from pidiff_jax.sampling.compiled import CompiledSampler
from pidiff_jax.sampling.generate import Sampling
from pidiff_jax.sharding.mesh import make_mesh
from tests.sampling.test_generate import tiny_pipeline


def test_devices_share_the_pictures_of_a_batch_that_can_be_divided(monkeypatch):
    components, params = tiny_pipeline()
    rng, seen = np.random.default_rng(0), []
    noise, wplus = (rng.standard_normal((4, *shape)).astype(np.float32) for shape in (components.noise_shape, (5, 8)))
    ids, predict = rng.integers(0, 9, (4, 5)).astype(np.int32), compiled.predict

    def watched(components, params, conditions, guidance, latents, *arguments, **options):
        jax.debug.inspect_array_sharding(latents, callback=seen.append)
        return predict(components, params, conditions, guidance, latents, *arguments, **options)

    monkeypatch.setattr(compiled, "predict", watched)
    pictures = {}
    for devices, count, scale in [(1, 4, 1.0), (2, 4, 1.0), (2, 3, 1.0), (1, 4, 0.0), (2, 4, 0.0)]:
        sampler = CompiledSampler(components, make_mesh(devices=jax.devices()[:devices]))
        draw = sampler.with_parameters(params, Sampling(num_steps=2))
        pixels, heat = draw(wplus[:count], ids[:count], noise[:count], scale)
        assert pixels.sharding.is_fully_replicated and heat.sharding.is_fully_replicated
        pictures[devices, count, scale] = np.asarray(pixels)
        shared = devices == 2 and count == 4
        assert seen[-1].is_fully_replicated != shared
        assert seen[-1].shard_shape(noise[:count].shape)[0] == (2 if shared else count)
    for scale in (0.0, 1.0):
        np.testing.assert_allclose(pictures[2, 4, scale], pictures[1, 4, scale], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pictures[2, 3, 1.0], pictures[1, 4, 1.0][:3], rtol=0, atol=1e-5)


def test_before_identity_start_the_base_draws_and_the_map_is_of_the_steps_after_it():
    components, params = tiny_pipeline()
    rng = np.random.default_rng(0)
    noise, wplus = (rng.standard_normal((2, *shape)).astype(np.float32) for shape in (components.noise_shape, (5, 8)))
    ids = rng.integers(0, 9, (2, 5)).astype(np.int32)
    sampler = CompiledSampler(components, make_mesh(devices=jax.devices()[:1]))

    def draw(start, scale=1.0):
        return sampler.with_parameters(params, Sampling(num_steps=4), start)(wplus, ids, noise, scale)

    base, _ = draw(0.0, scale=0.0)
    pixels, heats = {}, {}
    for start in (0.0, 0.5, 1.0):
        pixels[start], heats[start] = draw(start)
    np.testing.assert_allclose(pixels[1.0], base, rtol=0, atol=1e-5)
    assert np.abs(pixels[0.5] - base).max() > 1e-3 and np.abs(pixels[0.5] - pixels[0.0]).max() > 1e-3
    np.testing.assert_allclose(heats[0.0].sum((1, 2)), 1.0, atol=1e-4)
    np.testing.assert_allclose(heats[0.5].sum((1, 2)), 1.0, atol=1e-4)
    assert np.abs(heats[0.5] - heats[0.0]).max() > 1e-6 and not heats[1.0].any()
