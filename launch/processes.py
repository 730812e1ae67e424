"""Several processes as one training: on a TPU pod, under SLURM or an MPI, or wherever the environment names a coordinator."""

import importlib.util
import os
import re
import socket
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_FIRST_PORT, _NUM_PORTS = 61_440, 4_096  # the upper end of the ephemeral ports, as JAX chooses
_VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_METADATA_SERVER = ("metadata.google.internal", 80)


class _Task(NamedTuple):
    """One of the processes that a launcher started.

    rank_of_host: number of the process among the `num_on_host` of its host.
    devices_are_its_own: whether the launcher shows every process its own devices only.
    """

    num_tasks: int
    rank: int
    rank_of_host: int
    num_on_host: int
    devices_are_its_own: bool


def join_processes() -> None:
    """Connects this process to the others, if there are any. Call it before the first use of a device.

    Raises:
        ValueError: see `initialisation`.
    """
    arguments = initialisation(os.environ, _is_tpu_host())
    if arguments:
        # JAX's own look at the launcher would add its rank on the host as the one device of the process.
        jax.distributed.initialize(**arguments, cluster_detection_method="deactivate")
    elif arguments == {} and _has_metadata_server():
        jax.distributed.initialize()


def initialisation(environment: Mapping[str, str], is_tpu_host: bool) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; {} lets JAX ask the TPU's slice, None means a process by itself.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come first; then the processes of Open MPI's `mpirun` or
    MPICH's `mpiexec`, and the tasks of SLURM's step (of `srun`, not of the job around it), where there is more than one;
    then the hosts of a TPU slice. The address alone gets the launcher's numbers.

    A process that has its host to itself takes all devices of it; several on a host share them by their order, unless the
    launcher has done so (`--gpus-per-task`). JAX_LOCAL_DEVICE_IDS decides otherwise.

    Raises:
        ValueError: the address of a coordinator without the other two, numbers that are none, or no address to be found.
    """
    numbers, is_named = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), bool(environment.get(_COORDINATOR))
    if is_named and any(name in environment for name in numbers):
        return _named_in(environment)
    launched = _open_mpi(environment) or _hydra(environment) or _slurm_step(environment)
    if launched is None:
        if is_named:
            return _named_in(environment)
        return {} if is_tpu_host and _in_tpu_slice(environment) else None
    task, find_address = launched
    if task.num_tasks == 1:
        return None
    if not 0 <= task.rank < task.num_tasks:
        raise ValueError(
            f"expected the number of a process below {task.num_tasks}, got {task.rank}; start with srun or mpirun, or set "
            f"{_COORDINATOR}, JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process"
        )
    arguments: dict[str, Any] = {"num_processes": task.num_tasks, "process_id": task.rank}
    if not is_named:
        arguments["coordinator_address"] = find_address(environment)
    devices = _share_of_devices(environment, task)
    if devices is not None and "JAX_LOCAL_DEVICE_IDS" not in environment:
        arguments["local_device_ids"] = devices
    return arguments


def _named_in(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    if wrong := [name for name in names.values() if not environment.get(name, "").isdecimal()]:
        raise ValueError(
            f"expected numbers in {' and '.join(wrong)} beside JAX_COORDINATOR_ADDRESS, got "
            f"{[environment.get(name) for name in wrong]}; set all three variables in every process"
        )
    named = {argument: int(environment[name]) for argument, name in names.items()}
    if named["process_id"] >= named["num_processes"]:
        raise ValueError(
            f"expected JAX_PROCESS_ID below JAX_NUM_PROCESSES={named['num_processes']}, got {named['process_id']}; count from 0"
        )
    return named


def _open_mpi(environment: Mapping[str, str]) -> tuple[_Task, Any] | None:
    """This process among those of mpirun. It comes before SLURM, whose step mpirun uses to start its own daemons."""
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    count, rank = (_number(environment, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK"))
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", default=0)
    return _Task(count, rank, local, _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", default=1), False), _mpi_address


def _mpi_address(environment: Mapping[str, str]) -> str:
    """Of mpirun's host; Open MPI 5 doesn't tell it, and then only processes of one host find each other."""
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://([^,:]+)|tcp6://\[([^],]+)", uri)
    name = (host[1] or f"[{host[2]}]") if host else ""
    if environment["OMPI_COMM_WORLD_SIZE"] == environment.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        name = "localhost"
    if not name:
        raise ValueError(
            "expected the address of mpirun's host in OMPI_MCA_orte_hnp_uri, got none; name a port of the host of rank 0: "
            "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"
        )
    return f"{name}:{_port(environment, zlib.crc32((uri or environment.get('PMIX_NAMESPACE', '')).encode()))}"


def _hydra(environment: Mapping[str, str]) -> tuple[_Task, Any] | None:
    """This process among those of MPICH's or Intel's mpiexec, which starts one proxy a host as a step of SLURM.

    The variables of PMI alone are no sign of it: `srun --mpi=pmi2` sets them too.
    """
    if not all(name in environment for name in ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS")):
        return None
    count, on_host = _number(environment, "PMI_SIZE"), _number(environment, "MPI_LOCALNRANKS")
    local = _number(environment, "MPI_LOCALRANKID", default=0)
    return _Task(count, _number(environment, "PMI_RANK"), local, on_host, False), _hydra_address


def _hydra_address(environment: Mapping[str, str]) -> str:
    """mpiexec tells no host; only processes of one find each other."""
    if environment["PMI_SIZE"] != environment["MPI_LOCALNRANKS"]:
        raise ValueError(
            "expected JAX_COORDINATOR_ADDRESS, as mpiexec doesn't tell its hosts, got none; name a port of the host of rank 0: "
            "mpiexec -genv JAX_COORDINATOR_ADDRESS HOST:PORT"
        )
    # Other mpiexecs of this host have other proxies.
    return f"localhost:{_port(environment, zlib.crc32(environment.get('PMI_PORT', str(os.getppid())).encode()))}"


def _slurm_step(environment: Mapping[str, str]) -> tuple[_Task, Any] | None:
    """This process among the tasks of srun; a batch script, and a shell of salloc, are no step."""
    if not all(name in environment for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")):
        return None
    # The job's number of tasks, SLURM_NTASKS, is of others: `srun -n1` in a job of four is alone.
    per_node, step = _slurm_tasks_per_node(environment), "SLURM_STEP_NUM_TASKS"
    is_told = bool(environment.get(step))
    count = sum(per_node) if per_node and not is_told else _number(environment, step if is_told else "SLURM_NTASKS")
    bound = bool(environment.get("SLURM_GPUS_PER_TASK") or "gpu" in environment.get("SLURM_TRES_PER_TASK", ""))
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID", default=0)
    return _Task(count, rank, local, _slurm_tasks_on_host(environment, count, per_node), bound), _slurm_address


def _slurm_tasks_per_node(environment: Mapping[str, str]) -> list[int]:
    """From SLURM_STEP_TASKS_PER_NODE, such as "2(x3),1"; empty without it."""
    per_node: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            per_node += [int(match[1])] * int(match[2] or 1)
    return per_node


def _slurm_tasks_on_host(environment: Mapping[str, str], count: int, per_node: list[int]) -> int:
    """Of this node; where SLURM doesn't tell, from the number of nodes."""
    node = _number(environment, "SLURM_NODEID", default=0)
    if node < len(per_node):
        return per_node[node]
    several = re.search(r"[\[,]", environment["SLURM_STEP_NODELIST"]) is not None
    return max(1, count // max(1, _number(environment, "SLURM_STEP_NUM_NODES", default=count if several else 1)))


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Of the step's first node, which task 0 runs on; a port of its own for every step of a job."""
    first = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", environment["SLURM_STEP_NODELIST"]).split(",")[0]
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID", default=0)
    return f"{first}:{_port(environment, job + 512 * step)}"


def _port(environment: Mapping[str, str], number: int) -> int:
    return _number(environment, "JAX_COORDINATOR_PORT", default=_FIRST_PORT + number % _NUM_PORTS)


def _share_of_devices(environment: Mapping[str, str], task: _Task) -> list[int] | None:
    """Which of the GPUs that this process sees are its own; None is all of them. Other devices don't heed it."""
    if task.num_on_host == 1 or task.devices_are_its_own:
        return None
    on_host = _number(environment, "SLURM_GPUS_ON_NODE", default=0)
    listed = next((environment[name] for name in _VISIBLE_DEVICES if name in environment), None)
    seen = on_host if listed is None else len([each for each in listed.split(",") if each.strip()])
    if listed is not None and (seen < on_host or seen < task.num_on_host):
        return None  # each process has its own list
    if seen == 0:
        return [task.rank_of_host]
    share = seen // task.num_on_host
    if share * task.num_on_host != seen:
        raise ValueError(
            f"expected a number of GPUs that {task.num_on_host} processes of a host can share, got {seen}; start as many as "
            "there are GPUs, or one, which takes them all"
        )
    return list(range(task.rank_of_host * share, (task.rank_of_host + 1) * share))


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if not text and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise ValueError(
            f"expected a number in the environment variable {name}, got {text!r}; start with srun or mpirun, or unset it"
        )
    return int(text)


def _in_tpu_slice(environment: Mapping[str, str]) -> bool:
    """Whether the TPU is to be used, and other hosts may belong to its slice: what the environment doesn't tell, JAX asks."""
    if not (environment.get("JAX_PLATFORMS") or "tpu").startswith("tpu"):
        return False
    if environment.get("MEGASCALE_COORDINATOR_ADDRESS") or _number(environment, "MEGASCALE_NUM_SLICES", default=1) > 1:
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    return "," in hosts if hosts is not None else "TPU_SKIP_MDS_QUERY" not in environment


def _has_metadata_server() -> bool:
    """Whether this is a machine of Google's cloud, or of a cluster that names its hosts: else JAX would ask in vain."""
    if any(name in os.environ for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")):
        return True
    try:
        socket.create_connection(
            (os.environ.get("GCE_METADATA_IP", _METADATA_SERVER[0]), _METADATA_SERVER[1]), 5.0
        ).close()
    except OSError:
        return False
    return True


def _is_tpu_host() -> bool:
    """Whether this machine has TPU chips and the library for them; asking JAX would be too late to connect."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
