"""The judges, trained on people that no other training sees: a face recogniser, a scene classifier, a face segmenter.

python -m launch.train --config=experiments/portraits_judges.py:recogniser --workdir=runs/portraits_recogniser
python -m launch.train --config=experiments/portraits_judges.py:scenes     --workdir=runs/portraits_scenes
python -m launch.train --config=experiments/portraits_judges.py:segmenter  --workdir=runs/portraits_segmenter
"""

from ml_collections import ConfigDict

from experiments import common

LOSSES = {"recogniser": "contrastive", "scenes": "classification", "segmenter": "segmentation"}


def get_config(part: str = "recogniser") -> ConfigDict:
    """`part` is "recogniser", "scenes" or "segmenter"; a few minutes each on two CPU cores."""
    if part not in LOSSES:
        raise ValueError(f"expected experiments/portraits_judges.py:PART with PART of {sorted(LOSSES)}, got {part!r}")
    recogniser = part == "recogniser"
    config = common.base_config("portraits", part)
    config.seed = 7
    config.num_steps = {"recogniser": 450, "scenes": 1_000, "segmenter": 500}[part]
    config.batch_size = 96 if recogniser else 32
    config.ema_decay = 0.99
    config.log_every_steps = 20
    config.checkpoint_every_steps = 250
    config.data = ConfigDict({"num_people": 6_144, "pictures_per_person": 2})
    config.losses = ConfigDict({LOSSES[part]: 1.0})
    # The statistics of batch normalisation stay at those of the first pictures: scale and bias can do the same.
    config.parameter_rules = ((r"/(mean|var)$", "frozen"), (r".*", "all"))
    config.groups = ConfigDict(
        {
            "all": {
                "learning_rate": 2e-3,
                "weight_decay": 0.01,
                "b2": 0.99,
                "schedule": "linear",
                "warmup_steps": 50,
                "decay_fraction": 0.5,
            }
        }
    )
    return config
