"""The embedded W+ space: a small e4e encoder and StyleGAN2 synthesis, trained as an autoencoder of aligned faces.

python -m launch.train --config=experiments/portraits_wplus.py --workdir=runs/portraits_wplus
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments import common


def get_config() -> ConfigDict:
    """Three minutes of a GPU, an hour and a half of a CPU core."""
    config = common.base_config("portraits", "wplus")
    config.num_steps = 1_942
    config.batch_size = 64
    config.ema_decay = 0.998
    config.data = ConfigDict({"num_people": 49_152, "pictures_per_person": 1})
    config.losses = ConfigDict({"l1": 1.0, "gradient": 1.0, "pyramid": 1.0, "delta": 1e-3, "identity": 0.3})
    config.base = ConfigDict({"path": placeholder(str)})  # folder of wplus.safetensors to go on from; None: fresh ones
    # The statistics of batch normalisation stay at those of the first pictures: scale and bias can do the same.
    # Equalised layers keep weights of unit size and scale them when they are used, so they need larger steps.
    config.parameter_rules = (
        (r"/(mean|var)$", "frozen"),
        (r"^synthesis/|/linear/", "equalised"),
        (r".*", "plain"),
    )
    adam = {
        "weight_decay": 0.0,
        "b2": 0.99,
        "schedule": "linear",
        "warmup_steps": 100,
        "decay_fraction": 0.5,
    }
    config.groups = ConfigDict({"equalised": {"learning_rate": 3e-2, **adam}, "plain": {"learning_rate": 2e-3, **adam}})
    return config
