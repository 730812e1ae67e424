"""Comparison of a function's values and gradients with PyTorch's, shared by the tests of kernels and layers."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
import torch.nn.functional as F


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def channels_first(x):
    # Copied: PyTorch's own kernel for permuted memory is off by 4e-4 in a GroupNorm at mean 30.
    return x.permute(0, 3, 1, 2).contiguous()


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def torch_conv(x, kernel, bias=None, padding=(1, 1, 1, 1), stride=1):
    x = F.pad(channels_first(x), padding)
    return channels_last(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride))


def assert_values_and_gradients_agree(fn: Callable, reference: Callable, arrays: Sequence, names: Sequence[str]):
    """Of two functions of the named arrays, for a random weighting of the outputs; to 1e-5."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = reference(*tensors)
    # Weights of mean square 1/positions: the gradients of the parameters, which are sums over positions, are O(1).
    weights = random(*expected.shape, seed=9) / np.sqrt(np.prod(expected.shape[:-1])).astype(np.float32)
    gradients = torch.autograd.grad((expected * torch.tensor(weights)).sum(), tensors)

    @jax.jit
    def value_and_gradients(arrays, weights):
        return fn(*arrays), jax.grad(lambda arrays: (fn(*arrays) * weights).sum())(arrays)

    value, d_arrays = value_and_gradients(list(arrays), weights)
    for name, actual, wanted in zip(("value", *names), (value, *d_arrays), (expected, *gradients), strict=True):
        wanted = wanted.detach().numpy()
        assert np.abs(wanted).max() > 1e-2, name
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5, err_msg=name)
