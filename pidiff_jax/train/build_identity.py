"""Builds the identity training, on the embedded base model or on a Stable Diffusion folder in diffusers' format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from data_pipeline import portraits_data
from data_pipeline.records import open_records
from data_pipeline.schema import validate_record
from data_pipeline.sources import Source
from pidiff_jax import embedded, embedded_faces
from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.convert.diffusers_folder import load_diffusers_folder
from pidiff_jax.losses.reduce import active_losses
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.unet import IdentityAttentionSpec, init_identity_from_text
from pidiff_jax.pipeline import Components
from pidiff_jax.train.build_portraits import components as portraits_components
from pidiff_jax.train.build_portraits import encode_latents
from pidiff_jax.train.tasks.identity import Dropout, IdentityTask

EMBEDDED = "portraits"
MakeSource = Callable[[], Source]


def build_identity(config: Any) -> dict[str, Any]:
    """The adapter on its base: every parameter of the base is loaded, those of the identity branch are new."""
    if config.base.path == EMBEDDED:
        components, base = embedded_base(config)
        train_source, validation_source = _portraits_sources(config, components, base)
    else:
        _check_folders(config)
        components, base = _folder_base(config)
        train_source, validation_source = _record_sources(config, components)
    params = {"unet": _with_identity(components, base["unet"], config), "text_encoder": base["text_encoder"]}
    params["mapper"] = components.mapper.init(jax.random.key(config.seed), _zero_wplus(components.mapper))["params"]
    task = IdentityTask(
        components.unet,
        components.text_encoder,
        components.mapper,
        components.schedule,
        components.prediction_type,
        components.vae.spec.scaling_factor,
        components.null_text_ids,
        active_losses=active_losses(config.losses.to_dict()),
        dropout=Dropout(**config.dropout),
        background_weight=config.background_weight,
        min_snr_gamma=config.min_snr_gamma,
        min_time_fraction=config.min_time_fraction,
    )
    return {
        "params": params,
        "losses": task.losses,
        "train_source": train_source,
        "validation_source": validation_source,
        "frozen_sources": {name: fingerprint(nn.meta.unbox(base[name])) for name in ("unet", "text_encoder")},
        "components": components,
        "extra_params": {"vae": base["vae"]},
    }


def mapper_spec(config: Any, num_layers: int, wplus_dim: int, token_dim: int) -> MapperSpec:
    """Checks that the config's groups cover the W+ layers and makes the mapper's spec."""
    groups = tuple(tuple(group) for group in config.mapper_groups)
    covered = [layer for start, end in groups for layer in range(start, end)]
    if covered != list(range(num_layers)):
        raise ValueError(
            f"expected config.mapper_groups to cover the W+ layers 0..{num_layers - 1} in order, got {groups}; correct it"
        )
    return MapperSpec(groups=groups, wplus_dim=wplus_dim, token_dim=token_dim)


def identity_attention(config: Any, token_dim: int) -> IdentityAttentionSpec:
    """The identity branch that the config asks for."""
    return IdentityAttentionSpec(variant=config.identity.variant, token_dim=token_dim, sink=config.identity.sink)


def embedded_base(config: Any) -> tuple[Components, dict[str, Any]]:
    """The embedded base model with an identity branch, and its shipped parameters."""
    spec = mapper_spec(config, embedded.NUM_WPLUS_LAYERS, embedded.WPLUS_DIM, embedded.TOKEN_DIM)
    attention = identity_attention(config, embedded.TOKEN_DIM)
    components = portraits_components(attention, IdentityMapper(spec))
    return components, {**embedded.load_weights("base"), **embedded.load_weights("vae")}


def _portraits_sources(config: Any, components: Components, base: dict) -> tuple[MakeSource, MakeSource]:
    """Renders people of the embedded world, or, with config.data.cache, reads them from records there."""
    encode = encode_latents(components.vae, base["vae"])
    numbers = {
        "train": (config.data.num_people, config.data.pictures_per_person),
        "validation": (max(64, config.batch_size), 1),
    }
    sizes = {
        "c": components.vae.spec.latent_channels,
        "l": components.mapper.spec.num_layers,
        "d": components.mapper.spec.wplus_dim,
        "m": len(components.null_text_ids),
    }

    def render(split: str) -> Source:
        return portraits_data.identity_source(encode, embedded_faces.load_wplus_encoder(), split, *numbers[split])

    sources = {split: lambda split=split: render(split) for split in numbers}
    if cache := config.data.get("cache"):
        wplus = embedded.load_weights("wplus")
        made_from = {"people": numbers, "vae": fingerprint(base["vae"]), "wplus": fingerprint(wplus)}
        sources = portraits_data.cached_records(cache, made_from, sources)

    def checked(split: str) -> Source:
        source = sources[split]()
        validate_record(source[0], expected=sizes)
        return source

    return lambda: checked("train"), lambda: checked("validation")


def _with_identity(components: Components, base_unet: dict, config: Any) -> dict[str, Any]:
    """The base UNet's parameters plus a fresh identity branch; strict about what is new and what is loaded."""
    spec = components.unet.spec
    latents = jnp.zeros((1, 8 * 2, 8 * 2, spec.in_channels))
    tokens = jnp.zeros((1, components.mapper.spec.num_tokens, components.mapper.spec.token_dim))
    context = jnp.zeros((1, 4, spec.cross_attention_dim))
    shapes = jax.eval_shape(components.unet.init, jax.random.key(0), latents, jnp.zeros((1,)), context, tokens)[
        "params"
    ]
    is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
    flat = traverse_util.flatten_dict(shapes, sep="/", is_leaf=lambda _, x: is_box(x))
    loaded = traverse_util.flatten_dict(nn.meta.unbox(base_unet), sep="/")
    initial = {path: jnp.zeros(box.value.shape, jnp.float32) for path, box in flat.items() if path not in loaded}
    unexpected = sorted(set(loaded) - set(flat)) + sorted(path for path in initial if "_id/" not in path)
    if unexpected:
        raise ValueError(
            f"expected the base's parameters to fit the UNet, got differences at {unexpected[:8]}; check config.base"
        )
    plain = traverse_util.unflatten_dict({**loaded, **initial}, sep="/")
    plain = init_identity_from_text(plain, value_scale=config.identity.value_scale)
    values = traverse_util.flatten_dict(plain, sep="/")
    return traverse_util.unflatten_dict({p: box.replace_boxed(values[p]) for p, box in flat.items()}, sep="/")


def _zero_wplus(mapper: IdentityMapper) -> jax.Array:
    return jnp.zeros((1, mapper.spec.num_layers, mapper.spec.wplus_dim))


def _folder_base(config: Any) -> tuple[Components, dict[str, Any]]:
    loaded = load_diffusers_folder(config.base.path)
    spec = mapper_spec(config, config.data.wplus_layers, config.data.wplus_dim, loaded.unet_spec.cross_attention_dim)
    attention = identity_attention(config, loaded.unet_spec.cross_attention_dim)
    components = loaded.to_components(attention, IdentityMapper(spec))
    return components, {"unet": loaded.unet_params, "text_encoder": loaded.text_params, "vae": loaded.vae_params}


def _check_folders(config: Any) -> None:
    """Both complaints at once, before anything is read."""
    missing = []
    if not config.base.path or not (Path(config.base.path) / "model_index.json").is_file():
        missing.append(
            f"base model: expected a Stable Diffusion folder in diffusers' format (with model_index.json) at "
            f"config.base.path={config.base.path!r}, found none; download or convert one and pass --config.base.path=FOLDER"
        )
    if not config.data.path or not Path(config.data.path).is_dir():
        missing.append(
            f"data: expected a folder of records at config.data.path={config.data.path!r}, found none; make one with "
            "data_pipeline/prepare and pass --config.data.path=FOLDER"
        )
    if missing:
        raise FileNotFoundError("\n".join(missing))


def _record_sources(config: Any, components: Components) -> tuple[MakeSource, MakeSource]:
    """Opens the records and checks that the first of each split fits the model."""
    sizes = {
        "c": components.vae.spec.latent_channels,
        "l": components.mapper.spec.num_layers,
        "d": components.mapper.spec.wplus_dim,
        "m": len(components.null_text_ids),
    }
    sources = [open_records(config.data.path, split) for split in ("train", "validation")]
    for source in sources:
        validate_record(source[0], expected=sizes)
    return tuple(lambda source=source: source for source in sources)
