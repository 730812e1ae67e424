"""The judges, trained on people that no other training sees.

A face recogniser, a scene classifier, a face segmenter, a finder of landmarks, and the features in which realism is measured.

python -m launch.train --config=experiments/portraits_judges.py:recogniser --workdir=runs/portraits_recogniser
python -m launch.train --config=experiments/portraits_judges.py:scenes     --workdir=runs/portraits_scenes
python -m launch.train --config=experiments/portraits_judges.py:segmenter  --workdir=runs/portraits_segmenter
python -m launch.train --config=experiments/portraits_judges.py:landmarks  --workdir=runs/portraits_landmarks
python -m launch.train --config=experiments/portraits_judges.py:realism    --workdir=runs/portraits_realism
"""

from ml_collections import ConfigDict

from experiments import common

# The terms of each part's loss, its steps, pictures of each, and people.
PARTS = {
    "recogniser": ({"contrastive": 1.0}, 450, 96, 6_144),
    "scenes": ({"classification": 1.0}, 1_000, 32, 6_144),
    "segmenter": ({"segmentation": 1.0}, 500, 32, 6_144),
    "landmarks": ({"position": 1.0}, 1_000, 32, 6_144),
    "realism": ({"regression": 1.0, "classification": 1.0}, 11_960, 128, 49_152),
}


def get_config(part: str = "recogniser") -> ConfigDict:
    """`part` is a key of `PARTS`; a few minutes each on two CPU cores, "realism" on a GPU."""
    if part not in PARTS:
        raise ValueError(f"expected experiments/portraits_judges.py:PART with PART of {sorted(PARTS)}, got {part!r}")
    losses, num_steps, batch_size, num_people = PARTS[part]
    config = common.base_config("portraits", part)
    config.seed = 7
    config.num_steps = num_steps
    config.batch_size = batch_size
    config.ema_decay = 0.998 if part == "realism" else 0.99
    config.log_every_steps = 20
    config.checkpoint_every_steps = 250
    config.data = ConfigDict({"num_people": num_people, "pictures_per_person": 2})
    config.losses = ConfigDict(losses)
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
