"""One of two processes of a small run, each with two devices: stopped by time at its third step, then run to the end.

Arguments: the coordinator's port, this process's index, and a directory.
"""

import sys
import time
from pathlib import Path

import jax

from pidiff_jax.runs.training import train_run
from pidiff_jax.train import time_limit
from tests.train.tiny_training import OVER_AT_STEP_3, TWO_PROCESSES, build_tiny, made_up_clock, make_config


def main(port: int, index: int, directory: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    workdir, begun = directory / "two", time.perf_counter()
    # Only the clock of process 0 says that time passes: rates decay in both, and both have to stop, or one waits for ever.
    time_limit.perf_counter = made_up_clock() if index == 0 else lambda: 0.0
    train_run(make_config(**TWO_PROCESSES, max_seconds=OVER_AT_STEP_3), workdir, started=0.0, build=build_tiny())
    train_run(make_config(**TWO_PROCESSES), workdir, started=begun, build=build_tiny())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
