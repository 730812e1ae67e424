"""Score a trained run again: `python -m launch.evaluate --workdir=runs/quickstart --output=runs/quickstart_scale_0.7`.

Writes samples.png, report.html and metrics.json to the output folder, as the training does at its end.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from launch import command_line

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to score.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results; it must not hold any yet.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.")
IDENTITY_SCALE = flags.DEFINE_float("identity_scale", None, "Strength of the identity; as in the config by default.")
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance; as in the config by default.")
NUM_PEOPLE = flags.DEFINE_integer("num_people", None, "Held-out people; as in the config by default.", lower_bound=1)
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    """Loads the run's config and parameters, and scores them."""
    from launch.identity_runs import RESULTS, IdentityExaminer
    from pidiff_jax.train.run import load_run

    workdir, output = Path(WORKDIR.value), Path(OUTPUT.value)
    stored = workdir / "config.json"
    if not stored.is_file():
        raise FileNotFoundError(f"expected the folder of a run, with config.json, at {workdir}, found none; correct it")
    if present := [name for name in RESULTS if (output / name).exists()]:
        raise FileExistsError(
            f"expected a folder without results at {output}, got {', '.join(present)}; choose another"
        )
    config = ConfigDict(json.loads(stored.read_text()))
    if config.task != "identity":
        raise ValueError(f"expected the run of an identity adapter at {workdir}, got a run of the task {config.task!r}")
    for name, value in (("identity_scale", IDENTITY_SCALE.value), ("guidance_scale", GUIDANCE_SCALE.value)):
        if value is not None:
            config.sampling[name] = value
    if NUM_PEOPLE.value is not None:
        config.evaluation.num_people = NUM_PEOPLE.value
    experiment, result = load_run(config, workdir, STEP.value)
    IdentityExaminer(config, output, experiment, result.mesh).finish(result)


if __name__ == "__main__":
    command_line.run(main)
