"""The flags of all commands that open a run and write a folder of pictures."""

from typing import Any

from absl import flags

from launch import command_line

WORKDIR = command_line.define_path("workdir", "Folder of the run, or an adapter file of one.")
OUTPUT = command_line.define_path("output", "Folder for what is written.", required=True)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Write into a folder that has files, over those of the same names.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Pictures that are drawn at once, at most.")
BASE_PATH = command_line.define_path("base_path", "Where the base model is now, if it has moved.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to draw with; the newest by default.")
MARK = flags.DEFINE_bool("mark", True, "Say in the files' XMP that a model made them.")


def opening() -> dict[str, Any]:
    """How the run is opened: arguments of `pipeline.commands.Opening`."""
    return {
        "workdir": WORKDIR.value, "base": BASE_PATH.value, "step": STEP.value, "batch_size": BATCH_SIZE.value
    }  # fmt: skip


def writing() -> dict[str, Any]:
    """How files are written: arguments of `pipeline.commands.Writing`."""
    return {"folder": OUTPUT.value, "overwrite": OVERWRITE.value, "mark": MARK.value}
