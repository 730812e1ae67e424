"""From the config to an identity adapter's experiment, and to what every experiment has; nothing below sees a config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from data_pipeline.schema import FIELDS, RecordSpec
from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.checkpoint.initialise import initialise_from
from pidiff_jax.convert.adapter import check_adapter_file, load_adapter_file
from pidiff_jax.locations import optional_path
from pidiff_jax.losses.reduce import active_losses
from pidiff_jax.models.identity_mapper import MapperSpec
from pidiff_jax.models.shapes import mapper_shapes, text_encoder_shapes, unet_shapes
from pidiff_jax.models.unet import IdentityAttentionSpec, init_identity_from_text
from pidiff_jax.optim.groups import GroupSpec, schedule_of
from pidiff_jax.optim.rules import FROZEN, ParameterRule, assign_groups, compile_pattern
from pidiff_jax.paths import flatten, listing, unflatten
from pidiff_jax.ranges import about, check_count, check_number
from pidiff_jax.sampling.components import BaseModel, Components
from pidiff_jax.train.experiment import IdentityExperiment, Sources, Weights
from pidiff_jax.train.identity_task import Dropout, IdentityTask
from pidiff_jax.train.settings import LoopSettings

# Of a group; a slip of the keys would take all memory.
_MAX_TOKENS = 4_096
_MAX_HIDDEN = 65_536
COMPUTE_DTYPES = ("float32", "bfloat16")


def build_identity(
    config: Any, base: BaseModel, wplus_size: tuple[int, int], make_sources: Callable[[RecordSpec], Sources]
) -> IdentityExperiment:
    """The adapter on its base: every parameter of the base is loaded, those of the identity branch are new.

    Args:
        config: of the run.
        base: the model that the adapter is for.
        wplus_size: layers and width of the W+ codes.
        make_sources: the data, as records that fit the given sizes; the latents' height and width may differ.

    Raises:
        ValueError: the config asks for something that does not exist; says what.
    """
    dtype = compute_dtype(config.compute_dtype)
    check_number("config.identity.value_scale", config.identity.value_scale, least=0)
    for name, size in zip(("wplus_layers", "wplus_dim"), wplus_size, strict=True):
        check_count(f"config.data.{name}", size)
    components = _with_identity(base.components, config, wplus_size).with_dtype(dtype)
    shapes = {
        "unet": unet_shapes(components.unet),
        "text_encoder": nn.meta.unbox(text_encoder_shapes(components.conditioner.text_encoder)),
        "mapper": mapper_shapes(components.identity_mapper),
    }
    adapter = _adapter_file(config)
    record = _record_spec(components)
    seed, value_scale = config.seed, config.identity.value_scale
    parts = trained_parts(config)
    return IdentityExperiment(
        shapes=shapes,
        load=lambda: _load(base, components, shapes, seed, value_scale, adapter, parts["rules"]),
        losses=_task(config, components).losses,
        **parts,
        sources=make_sources(record),
        record={field.name: jax.ShapeDtypeStruct(record.shape(field), field.dtype) for field in FIELDS},
        components=components,
        frozen_dtype=dtype,
    )


def trained_parts(config: Any) -> dict[str, Any]:
    """Which parameters are trained, how, and on what: the arguments of `Experiment` that every task's config has."""
    weights = dict(config.losses.items())
    with about("config.losses"):
        for name, weight in weights.items():
            check_number(name, weight, least=0)
        active_losses(weights, valid=tuple(weights))
    return {
        "loss_weights": {name: float(weight) for name, weight in weights.items()},
        "rules": _rules(config.parameter_rules),
        "groups": {name: _group(name, dict(group), config.num_steps) for name, group in config.groups.items()},
    }


def _rules(pairs: Any) -> list[ParameterRule]:
    if not pairs or not isinstance(pairs, tuple | list) or not all(_is_pair(pair, str) for pair in pairs):
        raise ValueError(
            f"expected config.parameter_rules as pairs of a pattern and a group, like (('^mapper/', 'identity'), "
            f"('.*', 'frozen')), got {pairs!r}; correct it"
        )
    with about("config.parameter_rules"):
        for pattern, _ in pairs:
            compile_pattern(pattern)
    return [ParameterRule(pattern, group) for pattern, group in pairs]


def _group(name: str, values: Mapping[str, Any], num_steps: int) -> GroupSpec:
    with about(f"config.groups.{name}"):
        if unknown := sorted(set(values) - {field.name for field in fields(GroupSpec)}):
            raise ValueError(
                f"expected keys of {[field.name for field in fields(GroupSpec)]}, got {unknown}; correct it"
            )
        spec = GroupSpec(**values)
        schedule_of(spec, num_steps)
        return spec


def _is_pair(value: Any, kind: type) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(item, kind) for item in value)


def loop_settings(config: Any) -> LoopSettings:
    """Length and cadence of the run."""
    return LoopSettings(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        mesh=dict(config.mesh),
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        accumulate_steps=config.accumulate_steps,
        log_every_steps=config.log_every_steps,
        validate_every_steps=config.validate_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps,
        num_checkpoints=config.num_checkpoints,
        max_seconds=config.max_seconds,
        num_workers=config.num_workers,
        profile_steps=config.profile_steps,
    )


def compute_dtype(name: str | None) -> DTypeLike:
    """The dtype of a config's `compute_dtype`; None is float32 on a CPU and bfloat16 on accelerators.

    Raises:
        ValueError: another dtype.
    """
    if name is None:
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"expected config.compute_dtype of {COMPUTE_DTYPES} or None, got {name!r}; correct it")
    return jnp.dtype(name)


def mapper_spec(config: Any, num_layers: int, wplus_dim: int, token_dim: int) -> MapperSpec:
    """Checks that the groups of `config.mapper` cover the W+ layers and makes the mapper's spec."""
    mapper = config.mapper
    if not isinstance(mapper.groups, tuple | list) or not all(_is_pair(group, int) for group in mapper.groups):
        raise ValueError(
            f"expected config.mapper.groups as pairs of a first and a last layer, like ((0, 4), (4, {num_layers})), got "
            f"{mapper.groups!r}; correct it"
        )
    check_count("config.mapper.tokens_per_group", mapper.tokens_per_group, most=_MAX_TOKENS)
    if mapper.hidden_width is not None:
        check_count("config.mapper.hidden_width", mapper.hidden_width, most=_MAX_HIDDEN)
    groups = tuple((start, end) for start, end in mapper.groups)
    covered = [layer for start, end in groups for layer in range(start, min(end, num_layers + 1))]
    if covered != list(range(num_layers)):
        raise ValueError(
            f"expected config.mapper.groups to cover the W+ layers 0..{num_layers - 1} in order, got {groups}; correct it"
        )
    with about("config.mapper"):
        return MapperSpec(groups, wplus_dim, token_dim, mapper.tokens_per_group, mapper.kind, mapper.hidden_width)


def _with_identity(components: Components, config: Any, wplus_size: tuple[int, int]) -> Components:
    token_dim = components.unet.spec.cross_attention_dim
    with about("config.identity"):
        attention = IdentityAttentionSpec(
            variant=config.identity.variant, token_dim=token_dim, sink=config.identity.sink
        )
    return components.with_identity(attention, mapper_spec(config, *wplus_size, token_dim))


def _task(config: Any, components: Components) -> IdentityTask:
    with about("config.losses"):
        losses = active_losses(config.losses.to_dict())
    with about("config.dropout"):
        dropout = Dropout(**config.dropout)
    return IdentityTask(
        components.unet,
        components.conditioner,
        components.identity_mapper,
        components.schedule,
        components.prediction_type,
        components.vae.spec.scaling_factor,
        components.null_text_ids,
        active_losses=losses,
        dropout=dropout,
        background_weight=config.background_weight,
        huber_c=config.get("huber_c"),  # earlier runs have no such key
        min_snr_gamma=config.min_snr_gamma,
        min_time_fraction=config.min_time_fraction,
    )


def _record_spec(components: Components) -> RecordSpec:
    height, width = components.latent_size
    mapper = components.identity_mapper.spec
    num_tokens = len(components.null_text_ids)
    return RecordSpec(
        h=height, w=width, c=components.vae.spec.latent_channels, l=mapper.num_layers, d=mapper.wplus_dim, m=num_tokens
    )


def _adapter_file(config: Any) -> Path | None:
    """The file of an adapter to start from, once it is certain that it is one of the config's variant."""
    path = optional_path(config.get("init", {}).get("adapter"), "config.init.adapter")  # earlier runs have no such key
    if path is not None:
        with about("config.init.adapter"):
            check_adapter_file(path, config.identity.variant)
    return path


def _load(
    base: BaseModel,
    components: Components,
    shapes: Mapping[str, Any],
    seed: int,
    value_scale: float,
    adapter: Path | None,
    rules: Sequence[ParameterRule],
) -> Weights:
    """Loads the base and makes the identity branch and the mapper, or takes them from an adapter's file."""
    loaded = base.load()
    mapper = components.identity_mapper
    wplus = jnp.zeros((1, mapper.spec.num_layers, mapper.spec.wplus_dim))
    params = {
        "unet": _grow_identity(shapes["unet"], loaded["unet"], value_scale),
        "text_encoder": loaded["text_encoder"],
        "mapper": nn.meta.unbox(jax.jit(mapper.init)(jax.random.key(seed), wplus)["params"]),
    }
    if adapter is not None:
        with about("config.init.adapter"):
            started = load_adapter_file(adapter, components.unet.spec, mapper.spec)
            _check_frozen(started, params, rules)
        params |= {"unet": unflatten(flatten(params["unet"]) | flatten(started["unet"])), "mapper": started["mapper"]}
    fingerprints = {name: fingerprint(loaded[name]) for name in ("unet", "text_encoder")}
    return Weights(params, extra={"vae": loaded["vae"]}, fingerprints=fingerprints)


def _check_frozen(started: Mapping[str, Any], fresh: Mapping[str, Any], rules: Sequence[ParameterRule]) -> None:
    """Checkpoints hold what is trained: a run that is opened has the rest as it is without an adapter's file."""
    made, groups = flatten(fresh), flatten(assign_groups(rules, fresh))
    other = [p for p, x in flatten(started).items() if groups[p] == FROZEN and not np.array_equal(x, made[p])]
    if other:
        raise ValueError(
            f"expected what config.parameter_rules freezes as it is without the file, got other numbers for {listing(other)}; "
            "train that too, or start from a float32 adapter that was trained with the same rules"
        )


def _grow_identity(shapes: Mapping[str, Any], base_unet: Mapping[str, Any], value_scale: float) -> dict[str, Any]:
    """The base UNet's parameters plus a fresh identity branch; strict about what is new and what is loaded."""
    tree = {
        path: np.zeros(leaf.shape, leaf.dtype) if "_id/" in path else leaf
        for path, leaf in flatten(nn.meta.unbox(shapes)).items()
    }
    return init_identity_from_text(initialise_from(unflatten(tree), base_unet, allow_missing="_id/"), value_scale)
