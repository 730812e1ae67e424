"""A run for other programs, in a new folder whose files have been read and drawn from again:

python -m launch.export --workdir=runs/quickstart --format=ip_adapter --output=exports/quickstart

Formats (docs/interop.md): safetensors, our own file, which can be opened in place of a run's folder; ip_adapter, a file that
stock diffusers loads; diffusers, the base model as diffusers' folder; diffusers_identity, the same with the identity inside and
a pipeline for it; wplus_adapter, the .bin of that project; comfyui, an IP-Adapter with people and a workflow.
"""

from absl import flags

from launch import command_line

_FORMATS = ("safetensors", "ip_adapter", "diffusers", "diffusers_identity", "wplus_adapter", "comfyui")
WORKDIR = command_line.define_path("workdir", "Folder of the run, or an adapter file of one.", required=True)
FORMAT = flags.DEFINE_enum("format", None, _FORMATS, "What is written.", required=True)
OUTPUT = command_line.define_path("output", "Folder for the files; it must not exist yet.", required=True)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; the newest by default.")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "float16", "bfloat16"], "Of the weights; float32 by default, or that of the variant."
)
VARIANT = flags.DEFINE_enum("variant", None, ["fp16", "bf16"], "In the names of a diffusers folder's weight files.")
IDENTITY = flags.DEFINE_multi_string(
    "identity",
    [],
    "Whom to send along: a photograph, a folder of photographs of one person, a file of W+ codes (.npy, .safetensors), a "
    "record (FOLDER:validation:0) or a held-out person of the embedded world (test:0); repeatable.",
)
WPLUS_ENCODER = command_line.define_path("wplus_encoder", "Checkpoint of encoder4editing, to encode photographs.")
LICENCE = flags.DEFINE_string("licence", None, "Of the weights, for the files' metadata, such as Apache-2.0.")
NO_CHECK = flags.DEFINE_bool("no-check", False, "Don't read the files again, draw from them and compare the pictures.")
MOVED = {
    "base.path": command_line.define_path("base_path", "Where the base model's folder is now, if it has moved."),
    "data.path": command_line.define_path("data_path", "Where the folder of records is now, if it has moved."),
}


def main() -> None:
    """Writes the files, proves them, and says what is where."""
    from pidiff_jax.export.export import export_run

    report = export_run(
        WORKDIR.value,
        OUTPUT.value,
        FORMAT.value,
        step=STEP.value,
        dtype=DTYPE.value,
        variant=VARIANT.value,
        licence=LICENCE.value,
        identities=IDENTITY.value,
        wplus_encoder=WPLUS_ENCODER.value,
        check=not NO_CHECK.value,
        overrides={key: flag.value for key, flag in MOVED.items() if flag.value is not None},
    )
    print(report)


if __name__ == "__main__":
    command_line.start(main, after_interrupt="nothing was written, run it again")
