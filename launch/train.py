"""Train: `python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart`.

Run again with the same workdir, it resumes from the last checkpoint, or says that the run is complete. On a TPU pod, under
SLURM or with JAX_COORDINATOR_ADDRESS set, start the same command on every host: the processes find each other.
"""

from launch import STARTED, command_line

CONFIG = command_line.define_config()
WORKDIR = command_line.define_path("workdir", "Folder of this run: checkpoints, logs, results.", required=True)


def main() -> None:
    """Builds the experiment, trains it from the last checkpoint on, and writes its results."""
    from pidiff_jax.runs.training import train_run

    train_run(CONFIG.value, WORKDIR.value, started=STARTED)


if __name__ == "__main__":
    command_line.start(main, config=CONFIG, after_interrupt="run the same command to go on from the last checkpoint")
