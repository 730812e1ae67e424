"""The keys that every run has, with their usual values; an experiment sets those that it wants otherwise."""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

# What pictures, codes and weights the values of a config were chosen for.
WORLD_VERSIONS = {"portraits": 3, "photographs": 1}


def base_config(world: str, task: str) -> ConfigDict:
    """Length, cadence and machine of a run.

    world: where base model and data come from, "portraits" (embedded) or "photographs".
    task: what is trained, "identity" or one of the world's own.
    """
    config = ConfigDict({"world": world, "world_version": WORLD_VERSIONS[world], "task": task, "seed": 0})
    config.num_steps = 1_000
    config.batch_size = 16
    config.accumulate_steps = 1  # parts that a batch is worked through in, to save memory
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # devices along each axis; -1: all that are left
    config.clip_norm = FieldReference(1.0)  # of the gradient; None: no clipping
    config.ema_decay = FieldReference(0.999)  # None: no moving average
    config.log_every_steps = 50
    config.validate_every_steps = 500
    config.checkpoint_every_steps = 500
    config.num_checkpoints = 2  # the latest are kept
    config.max_seconds = placeholder(float)  # stop, decayed, save and score after so long; None: never
    config.num_workers = 0  # processes that read data; 0: threads of the training process
    config.profile_steps = placeholder(tuple)  # first and last update that the profiler watches; None: none
    return config


def adapter(config: ConfigDict) -> ConfigDict:
    """Adds the keys that every identity adapter has; docs/method.md says what each choice does."""
    config.compute_dtype = placeholder(str)  # None: float32 on a CPU, bfloat16 on accelerators
    config.identity = ConfigDict({"variant": "decoupled", "sink": False, "value_scale": 1.0})
    config.init = ConfigDict(
        {"adapter": placeholder(str)}
    )  # file of an adapter to start from; None: from the text's weights
    config.mapper = ConfigDict({"kind": "linear", "tokens_per_group": 1})  # or "mlp"
    config.mapper.hidden_width = placeholder(int)  # units of each group's hidden layer; None: none, as "linear" wants
    config.dropout = ConfigDict({"text": 0.05, "identity": 0.05, "both": 0.05})
    config.losses = ConfigDict({"denoising": 1.0, "localisation": 0.1, "preserve": 0.0, "disentangle": 0.0})
    config.background_weight = placeholder(float)  # of the denoising loss outside the face; None: no mask
    config.huber_c = placeholder(float)  # errors of the denoising loss above it count linearly; None: all squared
    config.min_snr_gamma = placeholder(float)  # None: no min-SNR weighting
    config.min_time_fraction = 0.0  # smallest noise level that is trained; 0: all
    config.sampling = ConfigDict({"num_steps": 30, "guidance_scale": 5.0, "identity_scale": 1.0})
    config.sampling.identity_start = 0.0  # share of the steps before the identity is there
    return config
