"""One of two processes of a small run, each with two devices: stopped by time at its third step, then run to the end.

Arguments: the coordinator's port, this process's index, and a directory.
"""

import sys
import time
from pathlib import Path

import jax

from pidiff_jax.runs.training import train_run
from tests.train.tiny_training import TWO_PROCESSES, build_tiny, make_config


def main(port: int, index: int, directory: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    workdir, now = directory / "two", time.perf_counter()
    # Only the clock of process 0 says that the time is over; both have to stop, or they wait for each other for ever.
    begun = now - 1000.0 * (index == 0)
    train_run(make_config(**TWO_PROCESSES, max_seconds=500.0), workdir, started=begun, build=build_tiny())
    train_run(make_config(**TWO_PROCESSES), workdir, started=now, build=build_tiny())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
