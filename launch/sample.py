"""Draw people with a trained run:

python -m launch.sample --workdir=runs/quickstart --identity=test:0 --output=pictures \
    --prompt="a person in a red shirt before a blue striped wall"

Writes one PNG for each prompt, person and seed, with its recipe inside and in a JSON file beside it, a heat map of where the
identity acts, and all of them as a table. --from-recipe=pictures/0000.png draws one of them again, bit for bit on the same kind
of device.
"""

from absl import flags

from launch import command_line, drawing_flags, opening_flags

flags.adopt_module_key_flags(opening_flags)
flags.adopt_module_key_flags(drawing_flags)
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; repeatable.")
NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", None, "What guidance leads away from.")
REGION = flags.DEFINE_multi_string(
    "region",
    [],
    "Draws everybody in one picture: where, in the order of --identity; left,top,right,bottom in 0..1, or a mask.",
)
NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "Pictures of each prompt and person, of following seeds.")
IMAGE = command_line.define_path("image", "A picture to change.")
MASK = flags.DEFINE_string("mask_image", None, "Where it is drawn anew: a picture, white there, or 'face'.")
STRENGTH = flags.DEFINE_float("strength", None, "How much --image is changed, 0 to 1.")
FROM_RECIPE = command_line.define_path("from-recipe", "A picture of this command or its JSON file, to draw again.")


def main() -> None:
    """Draws, and says what was written."""
    from pidiff_jax.pipeline.commands import Opening, Order, Writing, draw_again, draw_order

    opening = Opening(**opening_flags.opening(), wplus_encoder=drawing_flags.WPLUS_ENCODER.value)
    writing = Writing(**opening_flags.writing())
    settings = drawing_flags.settings()
    if STRENGTH.value is not None:
        settings["strength"] = STRENGTH.value
    order = Order(
        prompts=PROMPT.value, identities=drawing_flags.IDENTITY.value, regions=REGION.value, image=IMAGE.value,
        mask_image=MASK.value, negative_prompt=NEGATIVE_PROMPT.value, seed=drawing_flags.SEED.value,
        num_images=NUM_IMAGES.value, settings=settings,
    )  # fmt: skip
    if FROM_RECIPE.value is None:
        lines = draw_order(opening, writing, order)
    else:
        lines = draw_again(opening, writing, order, FROM_RECIPE.value)
    for line in lines:
        print(line)


if __name__ == "__main__":
    command_line.start(main, after_interrupt="run it again, with --overwrite if pictures lie there already")
