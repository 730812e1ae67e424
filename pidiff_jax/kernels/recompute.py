"""Recomputation in the backward pass: memory for time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pidiff_jax.kernels.platform import target_platform


def recomputed(fn: Callable[..., Array]) -> Callable[..., Array]:
    """`jax.checkpoint` that also holds on a CPU: backward keeps only the arguments of `fn` and evaluates it again.

    XLA's CPU compiler drops the barriers that `jax.checkpoint` relies on, then merges the second evaluation with the
    first and keeps its intermediate results. It doesn't look into the branches of a conditional. The condition fails
    only where the incoming gradient is NaN, and so is the outgoing one then.
    """
    if target_platform() != "cpu":
        return jax.checkpoint(fn)

    def backward(args, d_out):
        first = d_out.ravel()[0]
        return jax.lax.cond(
            first == first,
            lambda args, d_out: jax.vjp(fn, *args)[1](d_out),
            lambda args, d_out: tuple(jnp.full_like(x, jnp.nan) for x in args),
            args,
            d_out,
        )

    wrapped = jax.custom_vjp(fn)
    wrapped.defvjp(lambda *args: (fn(*args), args), backward)
    return wrapped
