"""A compiled sampler spreads a batch over the mesh, and draws what one device draws."""

import jax
import numpy as np
import pytest

from pidiff_jax.sampling import compiled
from pidiff_jax.sampling.compiled import CompiledSampler
from pidiff_jax.sampling.generate import Sampling
from pidiff_jax.sharding.mesh import make_mesh
from tests.sampling.test_generate import tiny_pipeline


@pytest.mark.parametrize(("scale", "count"), [(0.0, 4), (1.0, 4), (1.0, 3)])
def test_devices_share_the_pictures_of_a_batch(monkeypatch, scale, count):
    components, params = tiny_pipeline()
    rng, seen = np.random.default_rng(0), []
    noise, wplus = (
        rng.standard_normal((count, *shape)).astype(np.float32) for shape in (components.noise_shape, (5, 8))
    )
    ids, predict = rng.integers(0, 9, (count, 5)).astype(np.int32), compiled.predict

    def watched(components, params, conditions, guidance, latents, *arguments, **options):
        jax.debug.inspect_array_sharding(latents, callback=seen.append)
        return predict(components, params, conditions, guidance, latents, *arguments, **options)

    monkeypatch.setattr(compiled, "predict", watched)
    pictures = {}
    for devices in (1, 2):
        sampler = CompiledSampler(components, make_mesh(devices=jax.devices()[:devices]))
        pixels, heat = sampler.with_parameters(params, Sampling(num_steps=2))(
            wplus, ids, jax.numpy.asarray(noise), scale
        )
        pictures[devices] = np.asarray(pixels)
        assert pixels.sharding.is_fully_replicated and heat.sharding.is_fully_replicated
    np.testing.assert_allclose(pictures[2], pictures[1], rtol=0, atol=1e-5)
    assert seen[-1].is_fully_replicated == (count == 3)
    assert seen[-1].shard_shape(noise.shape)[0] == (2 if count == 4 else count)
