"""What is recomputed backward has the gradient of the function itself, and stays honest about NaN."""

import jax
import jax.numpy as jnp
import numpy as np

from pidiff_jax.kernels.recompute import recomputed


def test_recomputing_gives_the_gradient_of_the_function_itself():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    fn = lambda x, y: jnp.sin(x) * jnp.exp(y)  # noqa: E731
    both = [jax.jit(jax.grad(lambda x, y, f=f: f(x, y).sum(), (0, 1)))(x, 0.5 * x) for f in (fn, recomputed(fn))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *both)


def test_a_nan_that_comes_in_backward_goes_out():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    _, backward = jax.vjp(recomputed(lambda x, y: jnp.sin(x) * y), x, x)
    incoming = jnp.ones_like(x).at[0, 0].set(jnp.nan)
    assert all(np.isnan(gradient[0, 0]) for gradient in jax.jit(backward)(incoming))
    _, backward = jax.vjp(recomputed(lambda x, y: jnp.sin(x) * y), x, x)
    incoming = jnp.ones_like(x).at[2, 1].set(jnp.nan)
    gradients = jax.jit(backward)(incoming)
    assert all(np.isnan(g[2, 1]) and np.isfinite(g).sum() == g.size - 1 for g in gradients)
