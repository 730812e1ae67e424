"""A command knows from its environment whether it is one of several processes."""

import pytest

from launch.processes import initialisation

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip
COORDINATOR = {"JAX_COORDINATOR_ADDRESS": "a:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_alone_it_connects_to_nobody():
    assert initialisation({}, is_tpu_host=False) is None
    assert initialisation({**SLURM, "SLURM_NTASKS": "1"}, is_tpu_host=False) is None
    assert initialisation({"JAX_PLATFORMS": "cpu"}, is_tpu_host=True) is None
    in_a_batch_script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    assert initialisation(in_a_batch_script, is_tpu_host=False) is None


def test_a_coordinator_comes_before_the_cluster():
    assert initialisation({**SLURM, **COORDINATOR}, is_tpu_host=True) == {"num_processes": 4, "process_id": 3}
    assert initialisation(SLURM, is_tpu_host=False) == {}
    assert initialisation({}, is_tpu_host=True) == {}


def test_a_coordinator_needs_numbers():
    with pytest.raises(ValueError, match="numbers in JAX_PROCESS_ID beside"):
        initialisation({**COORDINATOR, "JAX_PROCESS_ID": ""}, is_tpu_host=False)
