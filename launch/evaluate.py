"""Score a trained run again, for example with another strength of the identity, or with the mean W+ code of three photographs:

python -m launch.evaluate --workdir=runs/quickstart --output=runs/quickstart_0.7 --identity_scale=0.7

python -m launch.evaluate --workdir=runs/quickstart --output=runs/quickstart_3 --num_references=3

Writes samples.png, report.html and metrics.json to the output folder, as the run does at its end. To choose a scale
or a checkpoint, use --split=validation: scores on the test split are honest only where nothing was chosen by them.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from launch import command_line
from launch.experiment_file import config_items
from pidiff_jax.locations import make_folder

WORKDIR = command_line.define_path("workdir", "Folder of the run to score.", required=True)
OUTPUT = command_line.define_path("output", "Folder for the results; it must not hold any yet.", required=True)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.")
NUM_REFERENCES = flags.DEFINE_integer("num_references", 1, "Photographs of each person; their W+ codes are averaged.")
# Key of the config -> the flag that overrides it; all are as in the config by default.
OVERRIDES = {
    "sampling.identity_scale": flags.DEFINE_float("identity_scale", None, "Strength of the identity."),
    "sampling.identity_start": flags.DEFINE_float(
        "identity_start", None, "Share of the steps before the identity is there."
    ),
    "sampling.guidance_scale": flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance."),
    "sampling.num_steps": flags.DEFINE_integer("sampling_steps", None, "Steps of the sampler."),
    "evaluation.split": flags.DEFINE_enum("split", None, ["validation", "test"], "Whose people and prompts to score."),
    "evaluation.num_people": flags.DEFINE_integer("num_people", None, "Held-out people."),
    "evaluation.num_prompts": flags.DEFINE_integer("num_prompts", None, "Held-out prompts."),
    "base.path": command_line.define_path("base_path", "Where the base model's folder is now, if it has moved."),
    "data.path": command_line.define_path("data_path", "Where the folder of records is now, if it has moved."),
}


def main() -> None:
    """Loads the run's config and parameters, and scores them."""
    from pidiff_jax.ranges import about
    from pidiff_jax.runs.build import evaluation_settings
    from pidiff_jax.runs.results import RESULTS, write_results
    from pidiff_jax.runs.saved_run import open_run, read_config
    from pidiff_jax.worlds import open_world

    workdir, output = WORKDIR.value, OUTPUT.value
    config = read_config(workdir)
    world = open_world(config)
    overrides = checked_overrides(config, world.title)
    config.update_from_flattened_dict(overrides)
    world = open_world(config)
    world.check()
    with about("--num_references"):
        world.check_references(NUM_REFERENCES.value)
    components = world.base_model().components
    settings = evaluation_settings(config, world, components, NUM_REFERENCES.value)  # before anything is loaded
    is_new = not output.exists()
    claim_output(output, RESULTS)
    try:
        run = open_run(workdir, STEP.value, overrides=overrides)
    except BaseException:
        if is_new:
            output.rmdir()
        raise
    write_results(run, run.evaluator(settings), output)


def checked_overrides(config: ConfigDict, title: str) -> dict[str, Any]:
    """Config key -> value, of the flags that were given.

    title: of the run's world, for errors.

    Raises:
        ValueError: a flag that means nothing for this run.
    """
    given = {key: flag for key, flag in OVERRIDES.items() if flag.value is not None}
    known = dict(config_items(config))
    wrong = [flag.name for key, flag in given.items() if key not in known]
    if wrong:
        listed = ", ".join(f"--{name}" for name in sorted(wrong))
        raise ValueError(f"expected no {listed} for a run {title}, which has nothing of the kind; leave it out")
    values = {key: flag.value for key, flag in given.items()}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def claim_output(output: Path, results: tuple[str, ...]) -> None:
    """Makes the folder for the results, before anything is drawn.

    Raises:
        FileExistsError: it holds results.
        ValueError: it can't be made, or nothing can be written there.
    """
    if present := [name for name in results if (output / name).exists()]:
        raise FileExistsError(
            f"expected a folder without results at {output}, got {', '.join(present)}; choose another"
        )
    make_folder(output, f"a folder to write to at --output={output}")


if __name__ == "__main__":
    command_line.start(main, after_interrupt="run it again, with another --output if results lie there already")
