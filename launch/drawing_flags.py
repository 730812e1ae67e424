"""The flags of all commands that draw somebody with a run."""

from typing import Any

from absl import flags

from launch import command_line

_WHOM = (
    "a photograph, a folder of photographs of one person, a file of W+ codes (.npy, .safetensors), a record "
    "(FOLDER:validation:0) or a held-out person of the embedded world (test:0); repeatable"
)
IDENTITY = flags.DEFINE_multi_string("identity", [], f"Whom to draw: {_WHOM}.")
WPLUS_ENCODER = command_line.define_path("wplus_encoder", "Checkpoint of encoder4editing, to encode photographs.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise that drawing starts from.")
# Settings of `Pipeline.__call__`; those that aren't given are the run's.
_SETTINGS = {
    "num_steps": flags.DEFINE_integer("num_steps", None, "Steps of the sampler."),
    "sampler": flags.DEFINE_string("sampler", None, "ddim, dpmpp_2m_karras, unipc, euler, ...; a wrong one lists all."),
    "eta": flags.DEFINE_float("eta", None, "Noise of ddim, 0 to 1."),
    "guidance_scale": flags.DEFINE_float("guidance_scale", None, "Of the text, or of text and identity."),
    "identity_guidance_scale": flags.DEFINE_float("identity_guidance_scale", None, "Of the identity by itself."),
    "guidance_rescale": flags.DEFINE_float("guidance_rescale", None, "Against overexposure, 0 to 1."),
    "normalise_identity": flags.DEFINE_bool("normalise_identity", None, "What the identity adds gets the text's norm."),
    "identity_scale": flags.DEFINE_string("identity_scale", None, "Strength: a number, or as coarse=1,fine=0.5."),
    "identity_start": flags.DEFINE_float("identity_start", None, "Share of the steps before the identity is there."),
    "identity_end": flags.DEFINE_float("identity_end", None, "Share of the steps at which it goes."),
    "height": flags.DEFINE_integer("height", None, "Pixels."),
    "width": flags.DEFINE_integer("width", None, "Pixels."),
}


def settings() -> dict[str, Any]:
    """Those that were given."""
    return {name: flag.value for name, flag in _SETTINGS.items() if flag.value is not None}
