"""Several processes as one training: on a TPU pod, under SLURM, or wherever the environment names a coordinator."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def join_processes() -> None:
    """Connects this process to the others, if there are any. Call it before the first use of a device.

    Raises:
        ValueError: see `initialisation`.
    """
    arguments = initialisation(os.environ, _is_tpu_host())
    if arguments is not None:
        jax.distributed.initialize(**arguments)


def initialisation(environment: Mapping[str, str], is_tpu_host: bool) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; {} lets JAX ask the cluster, None means a process by itself.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come first; then SLURM's tasks (of `srun`), where there is
    more than one; then the hosts of a TPU slice, also where there is only one.

    Raises:
        ValueError: the address of a coordinator without the other two, or numbers that are none.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        if wrong := [name for name in names.values() if not environment.get(name, "").isdecimal()]:
            raise ValueError(
                f"expected numbers in {' and '.join(wrong)} beside JAX_COORDINATOR_ADDRESS, got "
                f"{[environment.get(name) for name in wrong]}; set all three variables in every process"
            )
        return {argument: int(environment[name]) for argument, name in names.items()}
    if all(name in environment for name in _SLURM) and int(environment["SLURM_NTASKS"]) > 1:
        return {}
    return {} if is_tpu_host and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu") else None


def _is_tpu_host() -> bool:
    """Whether this machine has TPU chips and the library for them; asking JAX would be too late to connect."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
