"""Draw people with a trained run:

python -m launch.sample --workdir=runs/quickstart --identity=test:0 --prompt="a person in a red shirt before a blue plain wall" \
    --output=pictures

Writes one PNG for each prompt, person and seed, with its recipe inside and in a JSON file beside it, and a heat map of where
the identity acts. --from-recipe=pictures/0000.png draws one of them again, bit for bit on the same kind of device.
"""

from absl import flags

from launch import command_line

WORKDIR = command_line.define_path(
    "workdir", "Folder of the run, or an adapter file of one; of a recipe, where it is now."
)
OUTPUT = command_line.define_path("output", "Folder for the pictures.", required=True)
OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Write into a folder that has pictures, over those of the same names."
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; repeatable.")
NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", None, "What guidance leads away from.")
IDENTITY = flags.DEFINE_multi_string(
    "identity",
    [],
    "Whom to draw: a photograph, a folder of photographs of one person, a file of W+ codes (.npy, .safetensors), a record "
    "(FOLDER:validation:0) or a held-out person of the embedded world (test:0); repeatable; without, the base draws.",
)
REGION = flags.DEFINE_multi_string(
    "region",
    [],
    "Draws everybody in one picture: where, in the order of --identity; left,top,right,bottom in 0..1, or a mask.",
)
SEED = flags.DEFINE_integer("seed", 0, "Of the first picture of each prompt.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "Pictures of each prompt and person, of following seeds.")
IMAGE = command_line.define_path("image", "A picture to change.")
MASK = flags.DEFINE_string("mask_image", None, "Where it is drawn anew: a picture, white there, or 'face'.")
SETTINGS = {
    "num_steps": flags.DEFINE_integer("num_steps", None, "Steps of the sampler."),
    "sampler": flags.DEFINE_string("sampler", None, "ddim, dpmpp_2m_karras, unipc, euler, ...; a wrong one lists all."),
    "eta": flags.DEFINE_float("eta", None, "Noise of ddim, 0 to 1."),
    "guidance_scale": flags.DEFINE_float("guidance_scale", None, "Of the text, or of text and identity."),
    "identity_guidance_scale": flags.DEFINE_float("identity_guidance_scale", None, "Of the identity by itself."),
    "guidance_rescale": flags.DEFINE_float("guidance_rescale", None, "Against overexposure, 0 to 1."),
    "normalise_identity": flags.DEFINE_bool("normalise_identity", None, "The identity gets the text's norm."),
    "identity_scale": flags.DEFINE_string("identity_scale", None, "A number, or as coarse=1,fine=0.5."),
    "identity_start": flags.DEFINE_float("identity_start", None, "Share of the steps before the identity is there."),
    "identity_end": flags.DEFINE_float("identity_end", None, "Share of the steps at which it goes."),
    "strength": flags.DEFINE_float("strength", None, "How much --image is changed, 0 to 1."),
    "height": flags.DEFINE_integer("height", None, "Pixels."),
    "width": flags.DEFINE_integer("width", None, "Pixels."),
}
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Pictures that are drawn at once, at most.")
WPLUS_ENCODER = command_line.define_path("wplus_encoder", "Checkpoint of encoder4editing, to encode photographs.")
BASE_PATH = command_line.define_path("base_path", "Where the base model is now, if it has moved.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to draw with; the newest by default.")
FROM_RECIPE = command_line.define_path("from-recipe", "A picture of this command, or its JSON file, to draw again.")
MARK = flags.DEFINE_bool("mark", True, "Say in the files' XMP that a model made them.")


def main() -> None:
    """Draws, and says what was written."""
    from pidiff_jax.pipeline.sampling_command import Order, draw_order

    settings = {name: flag.value for name, flag in SETTINGS.items() if flag.value is not None}
    order = Order(
        workdir=WORKDIR.value, output=OUTPUT.value, prompts=PROMPT.value, identities=IDENTITY.value, regions=REGION.value,
        negative_prompt=NEGATIVE_PROMPT.value, seed=SEED.value, num_images=NUM_IMAGES.value, image=IMAGE.value,
        mask_image=MASK.value, settings=settings, batch_size=BATCH_SIZE.value, wplus_encoder=WPLUS_ENCODER.value,
        base=BASE_PATH.value, step=STEP.value, recipe=FROM_RECIPE.value, overwrite=OVERWRITE.value, mark=MARK.value,
    )  # fmt: skip
    for line in draw_order(order):
        print(line)


if __name__ == "__main__":
    command_line.start(main, after_interrupt="run it again, with --overwrite if pictures lie there already")
