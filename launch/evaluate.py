"""Score a trained run again: `python -m launch.evaluate --workdir=runs/quickstart --output=runs/quickstart_scale_0.7`.

Writes samples.png, report.html and metrics.json to the output folder, as the training does at its end. To choose a scale
or a checkpoint, use --split=validation: scores on the test split are honest only where nothing was chosen by them.
"""

import json
import tempfile
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from launch import command_line

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to score.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results; it must not hold any yet.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.")
SPLIT = flags.DEFINE_enum("split", None, ["validation", "test"], "Whose people and prompts to score; test by default.")
# Key of the config -> the flag that overrides it; all are as in the config by default.
OVERRIDES = {
    "sampling.identity_scale": flags.DEFINE_float("identity_scale", None, "Strength of the identity."),
    "sampling.guidance_scale": flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance."),
    "sampling.num_steps": flags.DEFINE_integer("sampling_steps", None, "Steps of the sampler."),
    "evaluation.num_people": flags.DEFINE_integer("num_people", None, "Held-out people."),
    "evaluation.num_prompts": flags.DEFINE_integer("num_prompts", None, "Held-out prompts."),
    "base.path": flags.DEFINE_string("base_path", None, "Where the base model's folder is now, if it has moved."),
    "data.path": flags.DEFINE_string("data_path", None, "Where the folder of records is now, if it has moved."),
}
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    """Loads the run's config and parameters, and scores them."""
    workdir, output = Path(WORKDIR.value), Path(OUTPUT.value)
    config = read_config(workdir)

    from launch.identity_runs import RESULTS, IdentityExaminer
    from pidiff_jax.train.build_identity import EMBEDDED
    from pidiff_jax.train.run import load_run

    override(config, embedded=config.base.path == EMBEDDED)
    claim_output(output, RESULTS)
    experiment, result = load_run(config, workdir, STEP.value)
    IdentityExaminer(config, output, experiment, result.mesh, SPLIT.value or "test").finish(result)


def read_config(workdir: Path) -> ConfigDict:
    """The config that an identity run was started with.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its config can't be read, or it trained something else.
    """
    stored = workdir / "config.json"
    if not stored.is_file():
        raise FileNotFoundError(f"expected the folder of a run, with config.json, at {workdir}, found none; correct it")
    try:
        config = ConfigDict(json.loads(stored.read_text()))
    except ValueError as error:
        raise ValueError(f"expected the config of a run in {stored}, got no JSON ({error}); restore it") from error
    if config.get("task") != "identity":
        raise ValueError(
            f"expected the run of an identity adapter at {workdir}, got a run of the task {config.get('task')!r}"
        )
    return config


def override(config: ConfigDict, embedded: bool) -> None:
    """Puts the values of the flags into the config.

    embedded: whether it is a run of the embedded world, where judges score people of a split; photographs have no judges.
    """
    given = {flag.name for flag in (SPLIT, *OVERRIDES.values()) if flag.value is not None}
    if embedded and (wrong := given & {"base_path", "data_path"}):
        raise ValueError(
            f"expected no {_listing(wrong)} for a run of the embedded world, whose base and people come with the package; "
            "leave it out"
        )
    if not embedded and (wrong := given & {"num_people", "num_prompts", "split"}):
        raise ValueError(
            f"expected no {_listing(wrong)} for a run on photographs, which nobody judges; leave it out: the pictures are "
            "of the validation records"
        )
    config.update_from_flattened_dict({key: flag.value for key, flag in OVERRIDES.items() if flag.value is not None})


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
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"expected a folder to write to at --output={output}, got: {error.strerror}; choose another"
        ) from error


def _listing(names: set[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))


if __name__ == "__main__":
    command_line.run(main, after_interrupt="run it again, with another --output if results lie there already")
