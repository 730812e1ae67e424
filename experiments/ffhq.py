"""The main job: an identity adapter for Stable Diffusion 1.5 at 512 px, trained on FFHQ.

Paper: PIDiff, arXiv 2505.05081. Which of these values the paper fixes and which are ours: docs/method.md.

Needs a Stable Diffusion 1.x folder in diffusers' format and records of photographs (data_pipeline/prepare/encode.py),
70,000 for the whole of FFHQ, with 18 x 512 W+ codes of e4e:

    python -m launch.train --config=experiments/ffhq.py --workdir=runs/ffhq \
        --config.base.path=FOLDER --config.data.path=FOLDER

Hardware: meant for eight accelerators of 16 GB or more; a batch is split over all devices, and over accumulate_steps.
Time, memory and scores: not yet measured. Batch size, learning rate and length follow published adapters of this kind
(w-plus-adapter, IP-Adapter).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments import common


def get_config() -> ConfigDict:
    """About 57 passes over the 70,000 pictures of FFHQ."""
    config = common.adapter(common.base_config("photographs", "identity"))
    config.num_steps = 62_500
    config.batch_size = 64
    config.ema_decay = 0.9999
    config.validate_every_steps = 1_000
    config.checkpoint_every_steps = 1_000
    config.num_checkpoints = 3
    config.base = ConfigDict({"path": placeholder(str)})  # a Stable Diffusion folder, with model_index.json, or file
    config.base.variant = placeholder(str)  # of a folder's weight files, such as "fp16"; None: the plain ones
    config.base.tokenizer = placeholder(str)  # folder, for a model in one file; None: CLIP's own
    config.base.prediction_type = placeholder(str)  # of a model in one file, "eps" or "v"; None: what the file says
    config.base.loras = ()  # "FILE:SCALE", merged into the base model
    config.data = ConfigDict({"path": placeholder(str), "wplus_layers": 18, "wplus_dim": 512})  # a folder of records
    config.mapper.groups = ((0, 4), (4, 8), (8, 12), (12, 18))
    # The text's query: the adapter can be exported as an IP-Adapter file (docs/method.md has what else that takes).
    config.identity = ConfigDict({"variant": "decoupled", "sink": False, "value_scale": 0.1})
    config.min_snr_gamma = 5.0
    config.evaluation = ConfigDict({"num_preview_people": 4})
    config.parameter_rules = (
        (r"^unet/.*/to_[qkv]_id/", "identity"),
        (r"^mapper/", "mapper"),
        (r"^(unet|text_encoder)/", "frozen"),
    )
    adamw = {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "schedule": "constant",
        "warmup_steps": 1_000,
    }
    config.groups = ConfigDict({"identity": dict(adamw), "mapper": dict(adamw)})
    return config
