"""The platform that a program is compiled for."""

import jax


def target_platform() -> str:
    """The platform that is compiled for ("cpu", "gpu", "tpu"): that of the mesh which is set, else JAX's default.

    The mesh comes first because a program for a TPU can be compiled on a machine without one.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
