"""Times our attention implementations on the present device, at the sizes of Stable Diffusion 1.5, and compares their numbers.

python benchmarks/attention.py                      # half precision, as on accelerators
python benchmarks/attention.py --dtype=float32

For each number of queries and keys and head width: milliseconds of a call and of a call with gradients (best of the rounds,
which take turns), and the largest difference from the plain formula in float32, divided by its largest value. "dispatch" is
what `dot_product_attention` picks; cuDNN's kernel stands beside it on a GPU, where it takes the sizes.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pidiff_jax.kernels.attention import choose_implementation, dot_product_attention, plain_attention
from pidiff_jax.kernels.chunked_attention import chunked_attention

NUM_HEADS = 8
# Queries, keys and head width: each resolution with itself, with the text and with the identity.
SIZES = ((4096, 4096, 40), (4096, 77, 40), (4096, 40, 40), (1024, 1024, 80), (1024, 77, 80), (256, 256, 160))


def main() -> None:
    """Prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    device = jax.devices()[0]
    for num_queries, num_keys, width in SIZES:
        rng = np.random.default_rng(0)
        shapes = [(args.batch, n, NUM_HEADS, width) for n in (num_queries, num_keys, num_keys)]
        exact = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
        given = [x.astype(args.dtype) for x in exact]
        expected = [np.asarray(x) for x in _value_and_gradients(plain_attention)(*exact)]
        functions: dict[str, Callable] = {
            "dispatch": _dispatched,
            "plain": plain_attention,
            "chunked": chunked_attention,
        }
        if device.platform == "gpu" and args.dtype != "float32" and num_keys % 2 == 0 and width <= 128:
            functions["cudnn"] = partial(jax.nn.dot_product_attention, implementation="cudnn")
        chosen = choose_implementation(device.platform, num_queries, num_keys, width, args.dtype, False)
        report = {"device": device.device_kind, "queries": num_queries, "keys": num_keys, "head_width": width}
        print(json.dumps({**report, "dispatch_is": chosen, **_compare(functions, given, expected, args.rounds)}))


def _compare(functions: dict[str, Callable], given: list, expected: list[np.ndarray], rounds: int) -> dict[str, dict]:
    calls = {name: (jax.jit(f), _value_and_gradients(f)) for name, f in functions.items()}
    results: dict[str, dict] = {}
    for name, (_, with_gradients) in calls.items():
        got = [np.asarray(x, np.float32) for x in with_gradients(*given)]
        errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, expected, strict=True)]
        results[name] = {"ms": np.inf, "ms_with_gradients": np.inf, "error": round(float(max(errors)), 5)}
    for _ in range(rounds):
        for name, pair in calls.items():
            for key, call in zip(("ms", "ms_with_gradients"), pair, strict=True):
                results[name][key] = min(results[name][key], round(_milliseconds(call, given), 3))
    return results


def _dispatched(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    flat = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    return dot_product_attention(*flat, num_heads=NUM_HEADS).reshape(q.shape)


def _value_and_gradients(function: Callable) -> Callable:
    """The result, and the gradients of a sum over it."""

    @jax.jit
    def both(*arrays):
        out, backward = jax.vjp(function, *arrays)
        return out, *backward(jnp.cos(out))

    return both


def _milliseconds(call: Callable, arrays: list) -> float:
    jax.block_until_ready(call(*arrays))  # compiled, and warm
    start = time.perf_counter()
    jax.block_until_ready(call(*arrays))
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
