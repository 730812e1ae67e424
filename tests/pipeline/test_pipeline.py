"""A picture depends on its own text, person and seed alone, and what can't be drawn is refused in one line."""

import jax
import numpy as np
import pytest

from pidiff_jax.sharding.mesh import make_mesh
from tests.pipeline.tiny_pipeline import LATENT_PX, SIZE_PX, codes, draw, make_pipeline, picture, shared_pipeline

PROMPTS = ["a person in a red shirt", "a blue person", "a person", "a shirt"]


def bits(pixels):
    return np.asarray(pixels).view(np.uint32)


def test_scale_zero_and_nobody_draw_what_the_base_draws_bit_for_bit():
    base, (anna,) = draw(PROMPTS[0], seed=3), codes(1)
    for scale in (0.0, {"coarse": 0.0, "middle": 0.0, "fine": 0.0}):
        off = draw(PROMPTS[0], anna, seed=3, identity_scale=scale)
        np.testing.assert_array_equal(bits(off.pixels), bits(base.pixels))
        assert not off.attention.any()
    on = draw(PROMPTS[0], anna, seed=3)
    assert np.abs(on.pixels - base.pixels).max() > 0.01 and on.attention.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_a_picture_of_four_is_the_one_that_is_drawn_alone(sampler):
    people, seeds = codes(4), [5, 6]
    pipeline = shared_pipeline()
    together = pipeline(
        PROMPTS[:2], people[:2], seed=seeds, negative_prompt=[PROMPTS[2], ""], sampler=sampler, show_progress=False
    )
    assert len(together.images) == 4 and together.recipes[0].place == [0, 4]
    alone = draw(PROMPTS[1], people[1], seed=6, negative_prompt="", sampler=sampler)
    np.testing.assert_allclose(alone.pixels[0], together.pixels[3], rtol=0, atol=1e-5)
    assert np.abs(together.pixels[2] - together.pixels[3]).max() > 0.01


@pytest.mark.parametrize("sampler", [pytest.param("ddim", marks=pytest.mark.full), "euler_ancestral"])
def test_two_devices_draw_what_one_draws(sampler):
    two = make_pipeline(mesh=make_mesh(devices=jax.devices()[:2]))
    arguments = {"identity": codes(2), "seed": [5, 6], "sampler": sampler, "show_progress": False}
    np.testing.assert_allclose(
        two(PROMPTS[:2], **arguments).pixels, shared_pipeline()(PROMPTS[:2], **arguments).pixels, rtol=0, atol=1e-5
    )


def test_inpainting_leaves_pixels_outside_the_mask_bit_for_bit():
    original, mask = picture(), np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    mask[:, :6] = 255
    drawn = draw(PROMPTS[0], codes(1)[0], image=original, mask_image=mask)
    np.testing.assert_array_equal(np.asarray(drawn.images[0])[:, 6:], original[:, 6:])
    np.testing.assert_array_equal(bits(drawn.pixels[0, :, 6:]), bits(original[:, 6:].astype(np.float32) / 255.0))
    assert np.abs(np.asarray(drawn.images[0])[:, :6].astype(int) - original[:, :6]).max() > 10


def test_strength_leaves_out_the_first_steps(monkeypatch):
    pipeline, asked = make_pipeline(), []

    def drawn(params, request, sampling, on_step=None):
        asked.append(request.first_step)
        size = (len(request.noise), LATENT_PX, LATENT_PX)
        return np.zeros((*size, 4), np.float32), np.zeros((size[0], 1, *size[1:]), np.float32)

    monkeypatch.setattr(pipeline._sampler, "draw", drawn)
    for strength in (1.0, 0.5, 0.1):
        pipeline(PROMPTS[0], image=picture(), strength=strength, num_steps=10, show_progress=False)
    assert asked == [0, 5, 9]
    with pytest.raises(ValueError, match=r"expected strength \* num_steps of at least one step, got 0.09 \* 10"):
        pipeline(PROMPTS[0], image=picture(), strength=0.09, num_steps=10, show_progress=False)


BAD = {
    "unknown sampler": ({"sampler": "heun"}, "expected a sampler of ddpm, ddim, .* got 'heun'"),
    "unknown level": ({"identity_scale": {"rough": 1.0}}, "got 'rough'"),
    "scale of NaN": ({"identity_scale": float("nan")}, "expected an identity_scale to be a finite number, got nan"),
    "guidance of NaN": ({"guidance_scale": float("nan")}, "expected guidance_scale to be a finite number, got nan"),
    "odd width": (
        {"width": 18},
        "expected width as a multiple of 4 pixels, as this model draws, got 18; take 16 or 20",
    ),
    "no height": ({"height": -4}, "expected height of at least 1, got -4"),
    "negative seed": ({"seed": -1}, "expected a seed of at least 0, got -1"),
    "seed that overflows": (
        {"seed": 2**32 - 1, "num_images": 2},
        "expected a seed of at most 4294967295, got 4294967296",
    ),
    "code of another shape": (
        {"identity": np.zeros((18, 512), np.float32)},
        r"expected W\+ codes of shape \(5, 8\) as identity, got \(18, 512\)",
    ),
    "code with NaN": ({"identity": np.full((5, 8), np.nan, np.float32)}, "expected finite numbers in the identity"),
    "people without regions": ({"identity": codes(3)}, "expected one identity, or one for each of 1 prompts, got 3"),
    "too few regions": (
        {"identity": codes(2), "regions": [(0.0, 0.0, 0.5, 1.0)]},
        "expected a region for each of 2 people, got 1",
    ),
    "regions of nobody": ({"regions": [(0.0, 0.0, 0.5, 1.0)]}, "expected people for the regions, got no identity"),
    "mask alone": ({"mask_image": np.eye(16, dtype=bool)}, "got mask_image alone; pass image too"),
    "strength alone": ({"strength": 0.5}, "expected strength with a picture to change, got 0.5 alone"),
    "wide picture": (
        {"image": picture()[:8]},
        "expected image with the proportions of what is drawn, 16 x 16, got 16 x 8",
    ),
    "height of zero": ({"height": 0}, "expected height of at least 1, got 0"),
    "too many": ({"num_images": 2**31 - 1}, "expected num_images of at most 100000"),
    "no prompt": ({"prompt": []}, r"expected prompt as a text or several, got \[\]"),
    "two negatives": ({"negative_prompt": ["a", "b"]}, "expected one negative_prompt, or 1, got 2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_drawn_is_refused_in_one_line_before_anything_is_drawn(kind, monkeypatch):
    given, message = BAD[kind]
    monkeypatch.setattr(shared_pipeline()._sampler, "draw", lambda *_, **__: pytest.fail("it was drawn"))
    monkeypatch.setattr(shared_pipeline()._sampler, "tokens", lambda *_: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match=message) as error:
        draw(**{"prompt": PROMPTS[0], **given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("num_inference_steps", "num_steps"), ("num_images_per_prompt", "num_images")]
)
def test_what_diffusers_calls_a_setting_names_ours(theirs, ours):
    with pytest.raises(TypeError, match=f"expected a setting of the pipeline, got '{theirs}'; here it is '{ours}'"):
        draw(PROMPTS[0], **{theirs: 2})
    with pytest.raises(TypeError, match="got 'colour'; there are num_steps, guidance_scale"):
        draw(PROMPTS[0], colour=2)


def test_a_text_that_is_too_long_is_drawn_with_a_warning_of_what_was_cut():
    with pytest.warns(UserWarning, match="longer than 8 tokens; this was cut: 'blue shirt'"):
        long = draw("a person in a red shirt blue shirt")
    np.testing.assert_array_equal(bits(long.pixels), bits(draw("a person in a red shirt").pixels))
