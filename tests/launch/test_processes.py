"""A command knows from its environment whether it is one of several processes, and which devices are its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.processes import initialisation

ROOT = Path(__file__).parents[2]
# The second of two tasks, one on each of two hosts.
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}  # fmt: skip
# The third of four tasks of one host.
ONE_HOST = {
    **SLURM, "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}  # fmt: skip
COORDINATOR = {"JAX_COORDINATOR_ADDRESS": "a:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_alone_it_connects_to_nobody():
    assert initialisation({}, is_tpu_host=False) is None
    assert initialisation({"JAX_PLATFORMS": "cpu"}, is_tpu_host=True) is None
    in_a_batch_script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert initialisation(in_a_batch_script, is_tpu_host=False) is None


def test_one_task_of_a_job_of_four_is_alone():
    step = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    }  # fmt: skip
    assert initialisation(step, is_tpu_host=False) is None
    assert initialisation({**MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, is_tpu_host=False) is None


def test_a_coordinator_comes_before_the_cluster():
    assert initialisation({**SLURM, **COORDINATOR}, is_tpu_host=True) == {"num_processes": 4, "process_id": 3}
    address = {"JAX_COORDINATOR_ADDRESS": "a:1234"}
    assert initialisation({**SLURM, **address}, is_tpu_host=False) == {"num_processes": 2, "process_id": 1}


def test_a_task_with_a_host_of_its_own_takes_all_its_devices():
    expected = {"num_processes": 2, "process_id": 1, "coordinator_address": "n1:61447"}
    assert initialisation(SLURM, is_tpu_host=False) == expected
    assert initialisation({**SLURM, "SLURM_NTASKS": "8"}, is_tpu_host=False) == expected
    assert initialisation({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, is_tpu_host=False) == expected
    mpi = initialisation(MPI, is_tpu_host=False)
    assert mpi.pop("coordinator_address").startswith("10.96.0.1:6") and mpi == {"num_processes": 4, "process_id": 3}


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [4, 5]),
        ({"SLURM_GPUS_ON_NODE": "8"}, [4, 5]),
        ({}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "2", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"ROCR_VISIBLE_DEVICES": "2", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "4"}, None),
        ({"JAX_LOCAL_DEVICE_IDS": "1"}, None),
    ],
)
def test_tasks_of_a_host_share_its_devices_unless_each_sees_only_its_own(gpus, expected):
    assert initialisation({**ONE_HOST, **gpus}, is_tpu_host=False).get("local_device_ids") == expected
    rank = {"RANK": "2", "LOCAL_RANK": "2", "LOCAL_SIZE": "4"}
    mpi = {**MPI, **{f"OMPI_COMM_WORLD_{name}": value for name, value in rank.items()}, **gpus}
    if "SLURM_GPUS_PER_TASK" not in gpus:
        assert initialisation(mpi, is_tpu_host=False).get("local_device_ids") == expected


def test_devices_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="that 4 processes of a host can share, got 6"):
        initialisation({**ONE_HOST, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}, is_tpu_host=False)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[001-015],h2", "n001"), ("n[4,7-9]-ib", "n4-ib"), ("r[1-2]n[3-4]", "r1n3")],
)
def test_the_first_node_of_the_step_coordinates(nodes, first):
    found = initialisation({**SLURM, "SLURM_STEP_NODELIST": nodes}, is_tpu_host=False)
    assert found["coordinator_address"] == f"{first}:61447"


def test_steps_of_one_job_use_different_ports():
    ports = {initialisation({**SLURM, "SLURM_STEP_ID": str(i)}, False)["coordinator_address"] for i in range(8)}
    assert len(ports) == 8


def test_mpirun_within_an_allocation_comes_before_the_step_of_its_daemons():
    found = initialisation({**SLURM, **MPI}, is_tpu_host=False)
    assert (found["num_processes"], found["process_id"]) == (4, 3)


def test_open_mpi_that_tells_no_address_is_asked_for_one():
    later = {name: value for name, value in MPI.items() if name != "OMPI_MCA_orte_hnp_uri"}
    with pytest.raises(ValueError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        initialisation(later, is_tpu_host=False)
    found = initialisation({**later, "JAX_COORDINATOR_ADDRESS": "h:1"}, is_tpu_host=False)
    assert found == {"num_processes": 4, "process_id": 3}
    one_host = {**later, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-h-5@1"}
    assert initialisation(one_host, is_tpu_host=False)["coordinator_address"].startswith("localhost:6")


def test_the_step_counts_where_its_number_of_tasks_alone_is_told_by_node():
    job = {**SLURM, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": ""}
    assert initialisation({**job, "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}, is_tpu_host=False) is None
    found = initialisation({**job, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_PROCID": "3"}, is_tpu_host=False)
    assert (found["num_processes"], found["process_id"]) == (5, 3)


def test_mpich_within_an_allocation_comes_before_the_step_of_its_proxies():
    rank = {"PMI_SIZE": "8", "PMI_RANK": "7", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "3"}
    with pytest.raises(ValueError, match="mpiexec -genv JAX_COORDINATOR_ADDRESS HOST:PORT"):
        initialisation({**SLURM, **rank}, is_tpu_host=False)
    found = initialisation({**SLURM, **rank, "JAX_COORDINATOR_ADDRESS": "h:1"}, is_tpu_host=False)
    assert found == {"num_processes": 8, "process_id": 7, "local_device_ids": [3]}
    found = initialisation({**rank, "MPI_LOCALNRANKS": "8", "PMI_PORT": "h:5"}, is_tpu_host=False)
    assert found["coordinator_address"].startswith("localhost:6")
    by_srun = {**SLURM, "PMI_SIZE": "2", "PMI_RANK": "1"}
    assert initialisation(by_srun, is_tpu_host=False) == initialisation(SLURM, is_tpu_host=False)


def test_a_lone_tpu_host_is_alone_and_one_of_several_asks_its_slice():
    for alone in ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, {"TPU_SKIP_MDS_QUERY": "1"},
                  {"TPU_PROCESS_ADDRESSES": "h:8476"}, {"TPU_WORKER_HOSTNAMES": "h", "JAX_PLATFORMS": "cpu"}):  # fmt: skip
        assert initialisation(alone, is_tpu_host=True) is None
    for several in ({}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
                    {"JAX_PLATFORMS": ""}, {"JAX_PLATFORMS": "tpu,cpu"}):  # fmt: skip
        assert initialisation(several, is_tpu_host=True) == {}


def test_a_coordinator_needs_numbers():
    with pytest.raises(ValueError, match="numbers in JAX_PROCESS_ID beside"):
        initialisation({**COORDINATOR, "JAX_PROCESS_ID": ""}, is_tpu_host=False)
    with pytest.raises(ValueError, match="expected JAX_PROCESS_ID below JAX_NUM_PROCESSES=4, got 4; count from 0"):
        initialisation({**COORDINATOR, "JAX_PROCESS_ID": "4"}, is_tpu_host=False)
    with pytest.raises(ValueError, match="numbers in JAX_NUM_PROCESSES and JAX_PROCESS_ID beside"):
        initialisation({"JAX_COORDINATOR_ADDRESS": "a:1"}, is_tpu_host=False)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID"])
def test_a_variable_that_is_no_number_is_named(name):
    with pytest.raises(ValueError, match=f"expected a number in the environment variable {name}, got 'many'"):
        initialisation({**SLURM, name: "many"}, is_tpu_host=False)


def test_a_process_beyond_the_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="below 2, got 2"):
        initialisation({**SLURM, "SLURM_PROCID": "2"}, is_tpu_host=False)


def test_two_tasks_of_a_step_find_each_other():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = (
        "import jax; from launch.processes import *; join_processes(); print(jax.process_count(), jax.process_index())"
    )
    step = {**ONE_HOST, "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2",
            "JAX_COORDINATOR_PORT": str(port), "JAX_PLATFORMS": "cpu"}  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [task.communicate(timeout=100) for task in tasks]
    assert [out for out, _ in outputs] == ["2 0\n", "2 1\n"], outputs


def test_a_task_whose_share_of_processors_alone_is_bound_takes_its_own_device():
    step = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }  # fmt: skip
    assert initialisation({**step, "SLURM_TRES_PER_TASK": "cpu=8"}, is_tpu_host=False)["local_device_ids"] == [1]
    for bound in ("cpu=8,gres/gpu=1", "gres:gpu:1"):
        assert "local_device_ids" not in initialisation({**step, "SLURM_TRES_PER_TASK": bound}, is_tpu_host=False)
    without = {**step, "SLURM_GPUS_ON_NODE": "", "JAX_COORDINATOR_ADDRESS": ""}
    assert initialisation(without, is_tpu_host=False)["coordinator_address"].startswith("n1:")
