"""Photographs to records: `python -m launch.prepare --photographs=FOLDER --base=FOLDER|FILE --e4e=FILE --output=FOLDER`.

What the folder of photographs holds, and what the records hold, is in docs/data.md.
"""

import sys

from absl import flags

from launch import command_line

PHOTOGRAPHS = command_line.define_path(
    "photographs", "Folder with photographs.jsonl and the files that it names.", required=True
)
BASE = command_line.define_path(
    "base",
    "Stable Diffusion as a folder in diffusers' format or one file: its VAE and tokenizer are used.",
    required=True,
)
TOKENIZER = command_line.define_path("tokenizer", "Folder, for a base in one file; CLIP's own by default.")
VARIANT = flags.DEFINE_string(
    "variant", None, "Of the VAE's weight files, such as fp16; by default the plain files, or the only ones there are."
)
E4E = command_line.define_path(
    "e4e", "Checkpoint of encoder4editing, such as e4e_ffhq_encode.pt, or its safetensors.", required=True
)
OUTPUT = command_line.define_path("output", "Folder of the records; it must not exist yet.", required=True)
SIZE = flags.DEFINE_integer("size_px", 512, "Side of the pictures that the model is trained on.", lower_bound=8)
VALIDATION = flags.DEFINE_float("validation_fraction", 0.02, "Share of the people kept for validation.", 0.0, 1.0)
SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "Go on without photographs that can't be used; skipped.jsonl beside the records names them."
)


def main() -> None:
    """Reads and checks the photographs, loads the networks, encodes and writes."""
    import jax

    from data_pipeline.prepare.encode import SKIPPED_FILE, split_by_person, write_photographs
    from data_pipeline.prepare.networks import check_networks, load_encoders
    from data_pipeline.prepare.photographs import Skipped, check_size, read_photographs
    from pidiff_jax.ranges import check_number

    if jax.process_count() > 1:
        raise ValueError(
            f"expected one process to prepare photographs, got {jax.process_count()} that share the work of a run; start the "
            "command once, on one host"
        )
    check_number("--validation_fraction", VALIDATION.value, least=0, most=1)  # NaN is in absl's range
    check_size(SIZE.value)
    output = OUTPUT.value
    if output.exists():
        raise FileExistsError(f"expected a new folder for records at {output}, got one that exists; choose another")
    check_networks(BASE.value, E4E.value, VARIANT.value, TOKENIZER.value)
    skipped: list[Skipped] | None = [] if SKIP_BAD.value else None
    splits = split_by_person(read_photographs(PHOTOGRAPHS.value, skipped, SIZE.value), VALIDATION.value)
    encoders = load_encoders(BASE.value, E4E.value, variant=VARIANT.value, tokenizer=TOKENIZER.value)
    num_records = write_photographs(output, splits, encoders, size_px=SIZE.value, skipped=skipped, checked=True)
    if skipped:
        print(f"skipped {len(skipped)} photographs, see {output / SKIPPED_FILE}", file=sys.stderr)
    print(f"{output}: {', '.join(f'{number} records for {name}' for name, number in num_records.items())}")


if __name__ == "__main__":
    command_line.start(main, after_interrupt="no records were written, run it again")
