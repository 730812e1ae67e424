"""Builds the trainings that make the embedded text-to-image model: its autoencoder, then its UNet."""

from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline import portraits_data as data
from data_pipeline.tokenizer import portraits_tokenizer, tokenize
from pidiff_jax import embedded
from pidiff_jax.diffusion.schedule import NoiseSchedule
from pidiff_jax.models.clip import ClipText
from pidiff_jax.models.unet import UNet
from pidiff_jax.models.vae import AutoencoderKL
from pidiff_jax.pipeline import Components
from pidiff_jax.train.tasks.autoencoder import AutoencoderTask
from pidiff_jax.train.tasks.text_to_image import TextToImageTask

_PIXELS = jnp.zeros((1, embedded.RESOLUTION_PX, embedded.RESOLUTION_PX, 3))


def null_text_ids() -> tuple[int, ...]:
    """Token ids of the empty caption."""
    return tuple(int(i) for i in tokenize(portraits_tokenizer(), [""])[0])


def components(identity=None, mapper=None) -> Components:
    """Modules and constants of the embedded text-to-image model."""
    tokenizer = portraits_tokenizer()
    return Components(
        unet=UNet(embedded.unet_spec(identity)),
        text_encoder=ClipText(embedded.text_spec(len(tokenizer))),
        vae=AutoencoderKL(embedded.VAE),
        mapper=mapper,
        schedule=NoiseSchedule.cosine(1000),
        prediction_type=embedded.PREDICTION_TYPE,
        null_text_ids=null_text_ids(),
        tokenizer=tokenizer,
    )


def build_autoencoder(config: Any) -> dict[str, Any]:
    """The latent autoencoder."""
    vae = AutoencoderKL(embedded.VAE)
    params = {"vae": vae.init(jax.random.key(config.seed), _PIXELS, method=init_autoencoder)["params"]}
    return {
        "params": params,
        "losses": AutoencoderTask(vae).losses,
        "train_source": lambda: data.picture_source(
            "train", config.data.num_people, config.data.pictures_per_person, config.data.views
        ),
        "validation_source": lambda: data.picture_source("validation", 64, 2, ("wild",)),
    }


def init_autoencoder(vae: AutoencoderKL, pixels):
    """Touches encoder and decoder, so that one init makes all parameters."""
    return vae.decode(vae.encode(pixels)[0])


def build_text_to_image(config: Any) -> dict[str, Any]:
    """The base model: UNet and text encoder on the latents of the shipped (or given) autoencoder."""
    c = components()
    vae_params = embedded.load_weights("vae", config.base.path)["vae"]
    key_unet, key_text = jax.random.split(jax.random.key(config.seed))
    latents = jnp.zeros((1, 16, 16, embedded.VAE.latent_channels))
    ids = jnp.zeros((1, embedded.TEXT_LENGTH), jnp.int32)
    text_params = c.text_encoder.init(key_text, ids)["params"]
    context = jnp.zeros((1, embedded.TEXT_LENGTH, embedded.TOKEN_DIM))
    params = {
        "unet": c.unet.init(key_unet, latents, jnp.zeros((1,)), context)["params"],
        "text_encoder": text_params,
    }
    task = TextToImageTask(
        c.unet, c.text_encoder, c.schedule, c.prediction_type, embedded.VAE.scaling_factor, c.null_text_ids,
        drop_text=config.dropout.text, min_snr_gamma=config.min_snr_gamma,
    )  # fmt: skip
    encode = encode_latents(c.vae, vae_params)
    return {
        "params": params,
        "losses": task.losses,
        "train_source": lambda: data.caption_source(
            encode, "train", config.data.num_people, config.data.pictures_per_person
        ),
        "validation_source": lambda: data.caption_source(encode, "validation", 64, 2),
    }


def encode_latents(vae: AutoencoderKL, params: dict):
    """The VAE encoder as a function of pixels in [-1, 1]."""
    return lambda pixels: vae.apply({"params": params}, pixels, method="encode")
