"""Quickstart: the identity adapter of PIDiff on the embedded portraits world, in five minutes on two CPU cores.

    python -m launch.train --config=experiments/quickstart.py      --workdir=runs/quickstart
    python -m launch.train --config=experiments/quickstart.py:long --workdir=runs/quickstart_long   # three quarters of an hour

Paper: PIDiff (arXiv 2505.05081). Base model, W+ encoder and judges are the shipped embedded weights; the identity branch and
the mapper are trained. Leaves checkpoints, metrics.json, report.html and samples.png in the workdir.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments import common


def get_config(length: str = "short") -> ConfigDict:
    """`length` is "short" (five minutes) or "long" (three quarters of an hour)."""
    if length not in ("short", "long"):
        raise ValueError(f"expected experiments/quickstart.py or experiments/quickstart.py:long, got {length!r}")
    long = length == "long"
    config = common.adapter(common.base_config("portraits", "identity"))
    config.num_steps = 6_500 if long else 1_500
    config.batch_size = 16 if long else 8
    config.base = ConfigDict({"path": placeholder(str)})  # folder of other weights for the base; None: the shipped ones
    config.data = ConfigDict({"num_people": 16_384 if long else 2000, "pictures_per_person": 1})
    config.data.cache = placeholder(str)  # folder to keep the records in; None: rendered at every start

    # The identity branch; see docs/method.md for what each choice does. It can leave as an IP-Adapter file: it reads the
    # text's query, and the token of its sink stays zero, which is what the first rule is for.
    config.identity = ConfigDict({"variant": "decoupled", "sink": True, "value_scale": 5.0})
    config.mapper.groups = tuple((layer, layer + 1) for layer in range(10))  # each layer of W+ by itself
    config.mapper.tokens_per_group = 4
    config.parameter_rules = (
        (r"^mapper/norm/bias$", "frozen"),
        (r"^mapper/", "identity"),
        (r"^unet/.*/to_[qkv]_id/", "identity"),
        (r".*", "frozen"),
    )
    config.groups = ConfigDict(
        {
            "identity": {
                "optimizer": "muon",
                "learning_rate": 1e-2,
                "weight_decay": 0.01,
                "b2": 0.99,
                "schedule": "linear",
                "warmup_steps": 20,
                "decay_fraction": 0.6 if long else 0.4,
            }
        }
    )
    config.losses.localisation = 0.3
    config.background_weight = 0.04 if long else 0.08
    config.huber_c = None if long else 0.01  # surer where few steps are made; docs/method.md measures it
    config.min_time_fraction = 0.3
    config.ema_decay = 0.999 if long else 0.99

    # So that a slower machine trains for no more than five minutes either.
    config.max_seconds = None if long else 285.0
    config.log_every_steps = 50 if long else 20
    config.validate_every_steps = 2_000 if long else 1_500
    config.checkpoint_every_steps = 500 if long else 250
    config.sampling.update({"num_steps": 20 if long else 10, "guidance_scale": 2.5, "identity_start": 0.1})
    config.evaluation = ConfigDict({"split": "test", "num_people": 100, "num_prompts": 24})
    return config
