"""Builds the identity training, on the embedded base model or on a Stable Diffusion folder in diffusers' format."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from data_pipeline import portraits_data
from data_pipeline.records import open_records
from data_pipeline.schema import validate_record
from data_pipeline.sources import Source
from pidiff_jax import embedded, embedded_faces
from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.checkpoint.initialise import initialise_from
from pidiff_jax.convert.diffusers_folder import load_diffusers_folder
from pidiff_jax.losses.reduce import active_losses
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.unet import IdentityAttentionSpec, init_identity_from_text
from pidiff_jax.pipeline import Components
from pidiff_jax.train.build_portraits import components as portraits_components
from pidiff_jax.train.build_portraits import encode_latents
from pidiff_jax.train.tasks.identity import Dropout, IdentityTask

EMBEDDED = "portraits"
COMPUTE_DTYPES = ("float32", "bfloat16")
MakeSource = Callable[[], Source]


def build_identity(config: Any) -> dict[str, Any]:
    """The adapter on its base: every parameter of the base is loaded, those of the identity branch are new."""
    dropout, dtype = Dropout(**config.dropout), compute_dtype(config.get("compute_dtype"))
    if config.base.path == EMBEDDED:
        components, base = embedded_base(config)
        train_source, validation_source = _portraits_sources(config, components, base)
    else:
        _check_folders(config)
        components, base = _folder_base(config)
        train_source, validation_source = _record_sources(config, components)
    components = _in_precision(components, dtype)
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
        dropout=dropout,
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
        "frozen_dtype": dtype,
    }


def mapper_spec(config: Any, num_layers: int, wplus_dim: int, token_dim: int) -> MapperSpec:
    """Checks that the config's groups cover the W+ layers and makes the mapper's spec."""
    groups = tuple(tuple(group) for group in config.mapper_groups)
    covered = [layer for start, end in groups for layer in range(start, end)]
    if covered != list(range(num_layers)):
        raise ValueError(
            f"expected config.mapper_groups to cover the W+ layers 0..{num_layers - 1} in order, got {groups}; correct it"
        )
    tokens_per_group = config.get("mapper_tokens_per_group", 1)  # runs from before this key had one
    return MapperSpec(groups, wplus_dim, token_dim, tokens_per_group)


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

    def render(split: str) -> Source:
        return portraits_data.identity_source(encode, embedded_faces.load_wplus_encoder(), split, *numbers[split])

    sources = {split: lambda split=split: render(split) for split in numbers}
    if cache := config.data.get("cache"):
        wplus = embedded.load_weights("wplus")
        made_from = {"people": numbers, "vae": fingerprint(base["vae"]), "wplus": fingerprint(wplus)}
        sources = portraits_data.cached_records(cache, made_from, sources)

    def checked(split: str) -> Source:
        source = sources[split]()
        validate_record(source[0], expected=_record_sizes(components))
        return source

    return lambda: checked("train"), lambda: checked("validation")


def _with_identity(components: Components, base_unet: dict, config: Any) -> dict[str, Any]:
    """The base UNet's parameters plus a fresh identity branch; strict about what is new and what is loaded."""
    spec = components.unet.spec
    side = 2 ** len(spec.block_out_channels)
    latents = jnp.zeros((1, side, side, spec.in_channels))
    tokens = jnp.zeros((1, components.mapper.spec.num_tokens, components.mapper.spec.token_dim))
    context = jnp.zeros((1, 4, spec.cross_attention_dim))
    init = partial(components.unet.init, jax.random.key(0))
    boxed = jax.eval_shape(init, latents, jnp.zeros((1,)), context, tokens)["params"]

    def fresh(path: tuple, leaf: jax.ShapeDtypeStruct) -> Any:
        is_identity = any("_id" == str(part.key)[-3:] for part in path)
        return jnp.zeros(leaf.shape, leaf.dtype) if is_identity else leaf

    tree = jax.tree_util.tree_map_with_path(fresh, nn.meta.unbox(boxed))
    loaded = initialise_from(tree, nn.meta.unbox(base_unet), allow_missing="_id/")
    values = init_identity_from_text(loaded, value_scale=config.identity.value_scale)
    is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
    return jax.tree.map(lambda box, value: box.replace_boxed(value), boxed, values, is_leaf=is_box)


def _in_precision(components: Components, dtype: DTypeLike) -> Components:
    """Networks that compute in `dtype`; the VAE, which only prepares and shows pictures, keeps float32."""
    names = ("unet", "text_encoder", "mapper")
    return replace(components, **{name: getattr(components, name).clone(dtype=dtype) for name in names})


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


def _record_sizes(components: Components) -> dict[str, int]:
    """The sizes that records must have for these networks; see data_pipeline/schema.py."""
    return {
        "c": components.vae.spec.latent_channels,
        "l": components.mapper.spec.num_layers,
        "d": components.mapper.spec.wplus_dim,
        "m": len(components.null_text_ids),
    }


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
    if "path" not in config.data:
        raise ValueError(
            f"expected config.base.path={EMBEDDED!r} in this experiment, which draws its own data, got "
            f"{config.base.path!r}; for a Stable Diffusion folder use experiments/ffhq.py"
        )
    missing = []
    if not config.base.path or not (Path(config.base.path) / "model_index.json").is_file():
        missing.append(
            f"base model: expected a Stable Diffusion folder in diffusers' format (with model_index.json) at "
            f"config.base.path={config.base.path!r}, found none; download or convert one and pass "
            "--config.base.path=FOLDER (launch.evaluate: --base_path)"
        )
    if not config.data.path or not Path(config.data.path).is_dir():
        missing.append(
            f"data: expected a folder of records at config.data.path={config.data.path!r}, found none; make one as "
            "docs/data.md shows and pass --config.data.path=FOLDER (launch.evaluate: --data_path)"
        )
    if missing:
        raise FileNotFoundError("\n".join(missing))


def _record_sources(config: Any, components: Components) -> tuple[MakeSource, MakeSource]:
    """Opens the records and checks that the first of each split fits the model."""
    sources = [open_records(config.data.path, split) for split in ("train", "validation")]
    for source in sources:
        validate_record(source[0], expected=_record_sizes(components))
    return tuple(lambda source=source: source for source in sources)
