"""Drawing with an identity scale of every shape; trajectories are compared with diffusers in tests/convert."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pidiff_jax.convert.clip_tokenizer import word_tokenizer
from pidiff_jax.diffusion.schedule import NoiseSchedule
from pidiff_jax.models.clip import ClipText, ClipTextSpec
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes, text_encoder_shapes, unet_shapes, vae_shapes
from pidiff_jax.models.text_conditioning import ClipConditioner
from pidiff_jax.models.unet import UNet
from pidiff_jax.models.vae import AutoencoderKL, VAESpec
from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.generate import Sampling, generate, generate_latents, sampler_for
from tests.models.tiny_unet import CONTEXT_DIM, TOKEN_DIM, random_params, tiny_spec

BATCH, HEIGHT, WIDTH, TOKENS = 3, 4, 6, 2


@functools.cache
def tiny_pipeline():
    """(components, parameters) with random weights."""
    mapper = IdentityMapper(MapperSpec(groups=((0, 2), (2, 5)), wplus_dim=8, token_dim=TOKEN_DIM))
    text = ClipText(
        ClipTextSpec(vocab_size=9, width=CONTEXT_DIM, num_layers=1, num_heads=2, mlp_width=16, max_length=5)
    )
    vae = AutoencoderKL(VAESpec((8,), layers_per_block=1, norm_num_groups=4, mid_attention=False))
    unet = UNet(tiny_spec())
    components = Components(
        unet, ClipConditioner(text), vae, mapper, NoiseSchedule.scaled_linear(), "eps", null_text_ids=(0,) * 5,
        latent_size=(HEIGHT, WIDTH), tokenizer=word_tokenizer(["face"], max_length=5),
    )  # fmt: skip
    shapes = {
        "unet": unet_shapes(unet), "text_encoder": text_encoder_shapes(text), "vae": vae_shapes(vae),
        "mapper": mapper_shapes(mapper),
    }  # fmt: skip
    shapes = nn.meta.unbox(shapes)
    return components, {name: random_params(tree) for name, tree in shapes.items()}


@functools.cache
def drawing():
    """The pictures as a jitted function of parameters and identity scale."""
    components, _ = tiny_pipeline()
    rng = np.random.default_rng(0)
    noise, wplus = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in [(BATCH, HEIGHT, WIDTH, 4), (BATCH, 5, 8)]
    )
    text_ids = jnp.asarray(rng.integers(0, 9, (BATCH, 5)), jnp.int32)

    @jax.jit
    def draw(params, scale):
        return generate(components, params, noise, text_ids, wplus, scale, Sampling(num_steps=2))[0]

    return draw


def draw(scale):
    return drawing()(tiny_pipeline()[1], scale)


def random_scale(shape):
    return np.random.default_rng(1).uniform(0.2, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(), (BATCH,), (1, 1, 1, TOKENS), (1, HEIGHT, WIDTH, 1)])
def test_an_identity_scale_of_any_shape_draws_what_the_written_out_one_draws(shape):
    scale = random_scale(shape)
    per_sample = scale.reshape(-1, 1, 1, 1) if scale.ndim < 2 else scale
    written_out = np.broadcast_to(per_sample, (BATCH, HEIGHT, WIDTH, TOKENS))
    drawn = draw(scale)
    assert np.abs(drawn - draw(np.ones_like(written_out))).max() > 1e-3
    np.testing.assert_allclose(drawn, draw(written_out), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (6,), (2, HEIGHT, WIDTH, 1), (1, 2, 3, 1)])
def test_an_identity_scale_that_fits_nothing_is_named_with_the_batch_that_is_drawn(shape):
    with pytest.raises(ValueError, match=rf"\(b, h, w, t\)=\({BATCH}, {HEIGHT}, {WIDTH}, {TOKENS}\)"):
        draw(random_scale(shape))


@functools.cache
def latents_of(sampling):
    """The latents of a model that predicts v, which keeps their scale, as a jitted function of noise, text and keys."""
    components, params = tiny_pipeline()
    components = replace(components, prediction_type="v")
    return jax.jit(
        lambda noise, text_ids, keys: generate_latents(
            components, params, noise, text_ids, sampling=sampling, keys=keys
        )[0]
    )


def drawn_noisily(count, keys, sampling=None):
    """The last `count` pictures of three, drawn together."""
    noise = jax.random.normal(jax.random.key(0), (BATCH, HEIGHT, WIDTH, 4))[-count:]
    text_ids = jnp.arange(BATCH * 5, dtype=jnp.int32).reshape(BATCH, 5)[-count:] % 9
    draw = latents_of(sampling or Sampling(num_steps=3, sampler="euler_ancestral"))
    return draw(noise, text_ids, keys if keys is None else keys[-count:])


def test_a_picture_drawn_with_fresh_noise_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(1), BATCH)
    together = drawn_noisily(BATCH, keys)
    np.testing.assert_allclose(drawn_noisily(1, keys)[0], together[-1], rtol=0, atol=1e-5)
    others = drawn_noisily(BATCH, keys.at[-1].set(jax.random.key(2)))
    np.testing.assert_allclose(others[:-1], together[:-1], rtol=0, atol=1e-5)
    assert np.abs(others[-1] - together[-1]).max() > 0.1


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(3, sampler="euler_ancestral"), "keys for a sampler that adds noise, got None"),
        (Sampling(3, eta=0.5), "keys for a sampler that adds noise, got None"),
        (Sampling(3, sampler="unipc", eta=0.5), "eta=0.0 with unipc, got 0.5; only ddim has it"),
        (Sampling(3, sampler="heun"), "expected a sampler of ddpm, ddim, .*, got 'heun'"),
        (Sampling(1001), "1 to 1000 sampling steps, got 1001"),
    ],
)
def test_a_sampler_that_cannot_draw_is_refused_in_one_line(sampling, message):
    with pytest.raises(ValueError, match=message):
        drawn_noisily(BATCH, None, sampling)


def test_only_ddim_ends_with_noise_where_the_model_s_config_says_so():
    components = replace(tiny_pipeline()[0], set_alpha_to_one=False)
    for name, last in (("ddim", float(jnp.sqrt(1 - components.schedule.alphas_cumprod[0]))), ("euler", 0.0)):
        sampler = sampler_for(components, Sampling(5, sampler=name))
        assert sampler.levels.noise[-1] == pytest.approx(last, abs=1e-6)
