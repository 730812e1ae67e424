"""All ways to convolve give PyTorch's values and gradients, and the one that suits platform and size is taken."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pidiff_jax.kernels import convolution, cpu_convolution
from pidiff_jax.kernels.convolution import choose_implementation, conv2d
from tests.kernels.against_torch import assert_values_and_gradients_agree, random, torch_conv

ONE = ((1, 1), (1, 1))


def assert_is_pytorchs(x_shape, kernel_shape, padding=ONE, strides=1):
    (top, bottom), (left, right) = padding
    kernel = random(*kernel_shape, seed=1) / np.sqrt(np.prod(kernel_shape[:3])).astype(np.float32)
    assert_values_and_gradients_agree(
        functools.partial(conv2d, padding=padding, strides=strides),
        functools.partial(torch_conv, padding=(left, right, top, bottom), stride=strides),
        (random(*x_shape), kernel),
        ("x", "kernel"),
    )


@pytest.mark.parametrize("way", ["xla", "unfolded", "minimally_filtered", "minimally_filtered in blocks"])
@pytest.mark.parametrize("padding", [ONE, ((0, 1), (2, 0))])
def test_all_ways_to_convolve_are_pytorchs(monkeypatch, way, padding):
    filtered = way.startswith("minimally_filtered")
    monkeypatch.setattr(convolution, "_MIN_FILTERED_CHANNELS", 4 if filtered else 5)
    monkeypatch.setattr(convolution, "_MIN_FILTERED_POSITIONS", 70)
    monkeypatch.setattr(convolution, "_MAX_UNFOLDED_POSITIONS", 70 if way == "unfolded" else 69)
    if way.endswith("in blocks"):
        monkeypatch.setattr(cpu_convolution, "_MAX_TILES", 10)  # 1 of 3 rows
    used = set()
    for name in ("xla", "unfolded", "minimally_filtered"):
        convolve = getattr(convolution, f"{name}_conv2d")
        spy = lambda *a, name=name, convolve=convolve: used.add(name) or convolve(*a)  # noqa: E731
        monkeypatch.setattr(convolution, f"{name}_conv2d", spy)
    assert_is_pytorchs((2, 5, 7, 4), (3, 3, 4, 6), padding)
    assert used == {way.split()[0]}


def test_minimal_filtering_is_as_exact_as_xlas_sums():
    x, kernel = random(1, 16, 16, 256), random(3, 3, 256, 64)
    exact = torch_conv(torch.tensor(x).double(), torch.tensor(kernel).double()).numpy()
    filtered, summed = (
        np.abs(convolve(jnp.asarray(x), jnp.asarray(kernel), ONE) - exact).max()
        for convolve in (cpu_convolution.minimally_filtered_conv2d, convolution.xla_conv2d)
    )
    assert filtered < 3 * summed


@pytest.mark.parametrize("max_unfolded_positions", [0, 512])
def test_strided_convolutions_are_pytorchs(monkeypatch, max_unfolded_positions):
    monkeypatch.setattr(convolution, "_MAX_UNFOLDED_POSITIONS", max_unfolded_positions)
    for shape in ((2, 6, 7, 4), (1, 9, 8, 4)):
        assert_is_pytorchs(shape, (3, 3, 4, 6), strides=2)


def test_pointwise_convolutions_are_pytorchs():
    assert_is_pytorchs((2, 6, 7, 4), (1, 1, 4, 6), ((0, 0), (0, 0)))


def test_the_choice_follows_platform_and_size():
    def choose(platform="cpu", side=64, kernel=(3, 3, 320, 320), padding=ONE, strides=1, dtype=jnp.float32):
        return choose_implementation(platform, (2, side, side, kernel[2]), kernel, padding, strides, dtype)

    pointwise, unpadded = (1, 1, 320, 640), ((0, 0), (0, 0))
    for platform in ("cpu", "gpu", "tpu"):
        assert choose(platform, kernel=pointwise, padding=unpadded) == "matmul"
    assert choose("gpu") == choose("tpu") == choose("tpu", side=8) == "xla"
    assert choose("gpu", kernel=pointwise, padding=unpadded, strides=2) == "xla"
    assert choose() == choose(padding=((0, 1), (2, 0))) == "minimally_filtered"
    assert choose(side=11) == choose(side=32, strides=2) == choose(side=16, dtype=jnp.bfloat16) == "unfolded"
    assert choose(side=12) == "minimally_filtered"
    assert choose(strides=2) == choose(dtype=jnp.bfloat16) == choose(kernel=(3, 3, 64, 320)) == "xla"
    assert choose(kernel=(5, 5, 320, 320), padding=((2, 2), (2, 2))) == choose(padding=((3, 3), (3, 3))) == "xla"
