"""Models of others to files that every command here takes, and back: `python -m launch.convert --source=... --output=...`.

A diffusers folder, or Stable Diffusion in one file, becomes a diffusers folder, or one file if --output ends in .safetensors:

python -m launch.convert --source=model.safetensors --output=model

With LoRAs merged in, each at its scale:

python -m launch.convert --source=model.safetensors --output=styled --lora=style.safetensors:0.8

What a source is, is told by its names and shapes. Nothing is overwritten, and no code of a file is run.
"""

from absl import flags

from launch import command_line

SOURCE = command_line.define_path("source", "Folder or file to convert.", required=True)
OUTPUT = command_line.define_path("output", "What to write: a new folder, or a new .safetensors file.", required=True)
VARIANT = flags.DEFINE_string("variant", None, "Of a folder's weight files, such as fp16.")
TOKENIZER = command_line.define_path(
    "tokenizer", "Tokenizer folder of a model in one file; by default CLIP's own, of the package open-clip-torch."
)
PREDICTION_TYPE = flags.DEFINE_enum(
    "prediction_type", None, ["eps", "v"], "What a model in one file predicts, where the file doesn't say."
)
LORA = flags.DEFINE_multi_string(
    "lora", [], "FILE:SCALE, a LoRA to merge into the base model; FILE alone is at scale 1. May be given several times."
)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "float16", "bfloat16"], "Of the output; the source's by default.")


def main() -> None:
    """Recognises the source, converts it and says what came of it."""
    from pidiff_jax.convert.conversion import convert
    from pidiff_jax.convert.lora import parse_lora

    print(
        convert(
            SOURCE.value,
            OUTPUT.value,
            variant=VARIANT.value,
            tokenizer=TOKENIZER.value,
            prediction_type=PREDICTION_TYPE.value,
            dtype=DTYPE.value,
            loras=[parse_lora(text, "--lora") for text in LORA.value],
        )
    )


if __name__ == "__main__":
    command_line.start(main, after_interrupt="nothing was written, run it again")
