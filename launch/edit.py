"""Edit and mix people, as labelled grids of pictures:

python -m launch.edit --workdir=runs/quickstart --identity=test:0 --directions=directions/directions.safetensors \
    --attribute=beard --attribute=jaw --prompt="a person in a red shirt before a blue plain wall" --output=edited

With --directions, rows are attributes and columns strengths. Without, and with several --identity, the grid mixes them: each
row gives the layers of --layers (coarse: shape), each column the others. --interpolate=5 goes from one to the next.
In the corner of each picture is the code itself, where its StyleGAN2 is at hand.
"""

from absl import flags

from launch import command_line, drawing_flags, opening_flags

flags.adopt_module_key_flags(opening_flags)
flags.adopt_module_key_flags(drawing_flags)
PROMPT = flags.DEFINE_string("prompt", None, "What to draw.", required=True)
DIRECTIONS = command_line.define_path("directions", "File of directions: .safetensors, .npy, .pt or .csv.")
ATTRIBUTE = flags.DEFINE_multi_string("attribute", [], "Names in that file; repeatable; the first six by default.")
STRENGTHS = flags.DEFINE_list("strengths", ["-1.5", "-0.75", "0", "0.75", "1.5"], "How far along a direction.")
LAYERS = flags.DEFINE_string(
    "layers",
    None,
    "Which are changed: coarse, middle, fine, all, 2-5, or several; all by default, coarse where people are mixed.",
)
INTERPOLATE = flags.DEFINE_integer("interpolate", None, "Pictures from each person to the next, instead of mixing.")
BY = flags.DEFINE_enum("by", "wplus", ["wplus", "tokens"], "What is interpolated.")


def main() -> None:
    """Draws, and says what was written."""
    from pidiff_jax.pipeline.commands import Opening, Writing
    from pidiff_jax.pipeline.editing import Edits, draw_edits

    edits = Edits(
        prompt=PROMPT.value, identities=drawing_flags.IDENTITY.value, seed=drawing_flags.SEED.value,
        directions=DIRECTIONS.value, attributes=ATTRIBUTE.value, strengths=STRENGTHS.value, layers=LAYERS.value,
        interpolate=INTERPOLATE.value, by=BY.value, settings=drawing_flags.settings(),
    )  # fmt: skip
    opening = Opening(**opening_flags.opening(), wplus_encoder=drawing_flags.WPLUS_ENCODER.value)
    for line in draw_edits(opening, Writing(**opening_flags.writing()), edits):
        print(line)


if __name__ == "__main__":
    command_line.start(main, after_interrupt="run it again, with --overwrite if pictures lie there already")
