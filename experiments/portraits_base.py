"""The embedded base model: a latent text-to-image model of the portraits world, in two runs.

    python -m launch.train --config=experiments/portraits_base.py:vae  --workdir=runs/portraits_vae
    python -m launch.train --config=experiments/portraits_base.py:unet --workdir=runs/portraits_unet \
        --config.base.path=runs/portraits_vae/weights

The first takes an hour of a CPU core; the second is meant for a GPU, where it takes minutes. On a CPU core,
--config.batch_size=16 --config.num_steps=10000 makes a plainer one in about three hours. Each leaves its weights in
<workdir>/weights. The scores of the shipped weights, and the time they took, are in
pidiff_jax/worlds/portraits/weights/MODEL_CARD.md.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from experiments import common


def get_config(part: str = "unet") -> ConfigDict:
    """`part` is "vae" or "unet"."""
    if part not in ("vae", "unet"):
        raise ValueError(f"expected experiments/portraits_base.py:vae or :unet, got {part!r}")
    config = common.base_config("portraits", "autoencoder" if part == "vae" else "text_to_image")
    config.data = ConfigDict({"num_people": 8192 if part == "vae" else 24_576, "pictures_per_person": 4})
    if part == "vae":
        config.num_steps = 2_500
        config.ema_decay = 0.998
        config.data.views = ("wild",)
        config.losses = ConfigDict({"l1": 1.0, "gradient": 1.0, "mse": 1.0, "kl": 5e-3})
        learning_rate = 1e-2
    else:
        config.num_steps = 5_330
        config.batch_size = 256
        config.base = ConfigDict({"path": placeholder(str)})  # folder of vae.safetensors; None: the shipped one
        config.dropout = ConfigDict({"text": 0.1})
        config.min_snr_gamma = FieldReference(5.0)  # None: no min-SNR weighting
        config.losses = ConfigDict({"denoising": 1.0})
        learning_rate = 4e-3
    config.parameter_rules = ((r".*", "all"),)
    config.groups = ConfigDict(
        {
            "all": {
                "optimizer": "muon",
                "learning_rate": learning_rate,
                "weight_decay": 0.01,
                "b2": 0.99,
                "schedule": "linear",
                "warmup_steps": 200,
                "decay_fraction": 0.35,
            }
        }
    )
    return config
