"""Train: `python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart`.

Run again with the same workdir, it resumes from the last checkpoint, or says that the run is complete. On a TPU pod, under
SLURM or with JAX_COORDINATOR_ADDRESS set, start the same command on every host: the processes find each other.
"""

import time

STARTED = time.perf_counter()  # before the heavy imports: a run's time limit counts from here

from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

from absl import flags  # noqa: E402

from launch import command_line  # noqa: E402

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, logs, results.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Builds the experiment, trains it from the last checkpoint on, and writes its results."""
    from launch.processes import join_processes

    join_processes()  # before anything asks JAX for devices
    from pidiff_jax.train.run import train_experiment

    config, workdir = CONFIG.value, Path(WORKDIR.value)
    make_examiner = None
    if config.task == "identity":
        from launch.identity_runs import IdentityExaminer

        make_examiner = partial(IdentityExaminer, config, workdir)
    train_experiment(config, workdir, started=STARTED, make_examiner=make_examiner)


if __name__ == "__main__":
    command_line.run(main, after_interrupt="run the same command to go on from the last checkpoint")
