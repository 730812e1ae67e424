"""The networks of the embedded world: tiny versions of every one that the real thing has, and of its judges."""

from pidiff_jax.convert.diffusers_config import ScheduleSettings
from pidiff_jax.convert.diffusers_folder import noise_schedule
from pidiff_jax.models.arcface import ArcFaceSpec
from pidiff_jax.models.clip import ClipText, ClipTextSpec
from pidiff_jax.models.e4e import E4eSpec
from pidiff_jax.models.ir_se import IRSESpec
from pidiff_jax.models.segmenter import SegmenterSpec
from pidiff_jax.models.stylegan2 import StyleGan2Spec
from pidiff_jax.models.text_conditioning import ClipConditioner
from pidiff_jax.models.unet import UNet, UNetSpec
from pidiff_jax.models.vae import AutoencoderKL, VAESpec
from pidiff_jax.sampling.components import Components
from pidiff_jax.worlds.portraits.renderer import NUM_IDENTITY_PARAMETERS, RESOLUTION_PX, SCENE_ATTRIBUTES
from pidiff_jax.worlds.portraits.tokenizer import TEXT_LENGTH, caption_ids, portraits_tokenizer

NUM_WPLUS_LAYERS, WPLUS_DIM, TOKEN_DIM = 10, 64, 64
NUM_CLASSES = tuple(len(values) for values in SCENE_ATTRIBUTES.values())

VAE = VAESpec(
    block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=8, norm_num_groups=4, scaling_factor=0.95
)
# What a DDIMScheduler's config calls it.
SCHEDULE = ScheduleSettings(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="squaredcos_cap_v2", prediction_type="v",
    rescale_betas_zero_snr=False, timestep_spacing="trailing", set_alpha_to_one=True,
)  # fmt: skip
LATENT_SIZE = (RESOLUTION_PX // VAE.downsampling,) * 2
UNET = UNetSpec(
    in_channels=VAE.latent_channels, out_channels=VAE.latent_channels, block_out_channels=(64, 96, 112),
    layers_per_block=1, down_attention=(True, True, False), num_heads=(4, 4, 4), cross_attention_dim=TOKEN_DIM,
    norm_num_groups=16,
)  # fmt: skip
ENCODER = E4eSpec(
    backbone=IRSESpec(units=(1, 1, 2, 1), widths=(16, 32, 64, 96)), num_layers=NUM_WPLUS_LAYERS, wplus_dim=WPLUS_DIM,
    input_size=RESOLUTION_PX, style_width=48,
)  # fmt: skip
STYLEGAN2 = StyleGan2Spec(size=RESOLUTION_PX, style_dim=WPLUS_DIM, channels=(96, 96, 64, 48, 32))
RECOGNISER = ArcFaceSpec(
    backbone=IRSESpec(units=(1, 1, 2, 1), widths=(16, 32, 64, 96)), embedding_dim=64, input_size=RESOLUTION_PX
)
# A backbone like the recogniser's, pooled over all positions, giving the logits of all scene attributes.
SCENES = ArcFaceSpec(
    backbone=IRSESpec(units=(1, 1, 1, 1), widths=(16, 32, 48, 64)), embedding_dim=sum(NUM_CLASSES),
    input_size=RESOLUTION_PX, pooling="gap",
)  # fmt: skip
SEGMENTER = SegmenterSpec()
LANDMARKS = SegmenterSpec(num_maps=5)
# Like the scene classifier; its features, before the output layer, are what realism is measured in.
REALISM = ArcFaceSpec(
    backbone=SCENES.backbone, embedding_dim=NUM_IDENTITY_PARAMETERS + sum(NUM_CLASSES), input_size=RESOLUTION_PX,
    pooling="gap",
)  # fmt: skip


def text_spec() -> ClipTextSpec:
    """The caption encoder; its vocabulary is the tokenizer's."""
    return ClipTextSpec(
        vocab_size=len(portraits_tokenizer()), width=TOKEN_DIM, num_layers=2, num_heads=4, mlp_width=4 * TOKEN_DIM,
        max_length=TEXT_LENGTH,
    )  # fmt: skip


def base_components() -> Components:
    """Modules and constants of the text-to-image model, without identity."""
    return Components(
        unet=UNet(UNET),
        conditioner=ClipConditioner(ClipText(text_spec())),
        vae=AutoencoderKL(VAE),
        mapper=None,
        schedule=noise_schedule(SCHEDULE),
        prediction_type=SCHEDULE.prediction_type,
        null_text_ids=tuple(int(i) for i in caption_ids([""])[0]),
        latent_size=LATENT_SIZE,
        tokenizer=portraits_tokenizer(),
        timestep_spacing=SCHEDULE.timestep_spacing,
        steps_offset=SCHEDULE.steps_offset,
        set_alpha_to_one=SCHEDULE.set_alpha_to_one,
    )
