"""Photographs to records: `python -m data_pipeline.prepare --photographs=FOLDER --base=FOLDER --e4e=FILE --output=FOLDER`.

What the folder of photographs holds, and what the records hold, is in docs/data.md.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

from data_pipeline.prepare.encode import read_photographs, split_by_person, write_photographs

PHOTOGRAPHS = flags.DEFINE_string("photographs", None, "Folder with photographs.jsonl and the files that it names.")
BASE = flags.DEFINE_string(
    "base", None, "Stable Diffusion folder in diffusers' format: its VAE and tokenizer are used."
)
E4E = flags.DEFINE_string("e4e", None, "Checkpoint of encoder4editing, such as e4e_ffhq_encode.pt, or its safetensors.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the records; it must not exist yet.")
SIZE = flags.DEFINE_integer("size_px", 512, "Side of the pictures that the model is trained on.", lower_bound=8)
VALIDATION = flags.DEFINE_float("validation_fraction", 0.02, "Share of the people kept for validation.", 0.0, 1.0)
flags.mark_flags_as_required(["photographs", "base", "e4e", "output"])


def main(_: list[str]) -> None:
    """Reads the list, loads the networks, encodes and writes; a mistake ends in one line."""
    from data_pipeline.prepare.networks import load_encoders

    try:
        output = Path(OUTPUT.value)
        if output.exists():
            raise FileExistsError(f"expected a new folder for records at {output}, got one that exists; choose another")
        splits = split_by_person(read_photographs(PHOTOGRAPHS.value), VALIDATION.value)
        encoders = load_encoders(BASE.value, E4E.value)
        write_photographs(output, splits, encoders, size_px=SIZE.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted; nothing was written to {OUTPUT.value}, run it again", file=sys.stderr)
        sys.exit(130)  # the shell's status for a program ended by Ctrl-C
    print(f"{output}: {', '.join(f'{len(part)} records for {name}' for name, part in splits.items())}")


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    app.run(main)
