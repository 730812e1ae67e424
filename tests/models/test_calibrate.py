"""Fresh networks start with normalised features."""

import jax
import numpy as np
from flax import linen as nn

from pidiff_jax.models.ir_se import IRSE, BatchNorm, IRSESpec, calibrate


def test_every_batch_normalisation_of_a_calibrated_network_gives_its_scale_and_bias():
    network = IRSE(IRSESpec(units=(2, 1), widths=(8, 12)))
    pixels = jax.random.normal(jax.random.key(0), (6, 16, 16, 3)) * 2.0 + 1.0

    def statistics_after_calibration(key, pixels):
        params, seen = calibrate(network, network.init(key, pixels)["params"], pixels), {}

        def record(call, args, kwargs, context):
            output, module = call(*args, **kwargs), context.module
            if isinstance(module, BatchNorm):
                statistics = (output.mean((0, 1, 2)), output.std((0, 1, 2)), module.initial_scale)
                seen["/".join(module.path)] = statistics
            return output

        with nn.intercept_methods(record):
            network.apply({"params": params}, pixels)
        return seen

    seen = jax.jit(statistics_after_calibration)(jax.random.key(1), pixels)
    assert len(seen) == 8  # the input layer's, two of each unit, and that of the one shortcut that changes the width
    for mean, std, initial_scale in seen.values():
        np.testing.assert_allclose(mean, 0.0, atol=1e-4)
        np.testing.assert_allclose(std, initial_scale, rtol=1e-3)
