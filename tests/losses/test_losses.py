"""Properties of the losses: what they ignore, what they count, where gradients flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.arrays import area_resize
from pidiff_jax.diffusion.schedule import NoiseSchedule, snr
from pidiff_jax.losses.denoising import denoising_loss, min_snr_weights, pseudo_huber, spatial_weights
from pidiff_jax.losses.localisation import localisation_loss, outside_share
from pidiff_jax.losses.outside_face import disentangle_loss, preserve_loss
from pidiff_jax.losses.reduce import active_losses, reduce_losses

SCHEDULE = NoiseSchedule.cosine()
TIMESTEPS = jnp.array([10, 400, 990])


def predictions():
    return jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 4))


def half_mask(value=1.0):
    return jnp.zeros((3, 8, 8)).at[:, :, :4].set(value)


def denoising(prediction, target, **kwargs):
    return denoising_loss(prediction, target, SCHEDULE, TIMESTEPS, "v", **kwargs)


def test_denoising_is_the_mean_squared_error_per_example():
    prediction, target = predictions()
    np.testing.assert_allclose(
        denoising(prediction, target), jnp.square(prediction - target).mean((1, 2, 3)), rtol=1e-5
    )


def test_a_constant_error_costs_the_same_under_any_mask():
    _, target = predictions()
    for mask in (half_mask(), half_mask(0.3), jnp.ones((3, 8, 8)), jnp.zeros((3, 8, 8))):
        values = denoising(target + 0.5, target, face_mask=mask, background_weight=0.15)
        np.testing.assert_allclose(values, 0.25, rtol=1e-4)


def test_an_error_in_the_face_costs_more_than_one_outside():
    _, target = predictions()
    mask = half_mask()
    inside, outside = (
        denoising(target + where[..., None], target, face_mask=mask, background_weight=0.1)
        for where in (mask, 1 - mask)
    )
    np.testing.assert_allclose(inside / outside, 10.0, rtol=1e-3)
    np.testing.assert_allclose(spatial_weights(mask, 0.1).mean((1, 2)), 1.0, rtol=1e-5)


def test_no_face_and_no_background_weight_cost_nothing():
    prediction, target = predictions()
    values = denoising(prediction, target, face_mask=jnp.zeros((3, 8, 8)), background_weight=0.0)
    np.testing.assert_array_equal(values, 0.0)


def test_half_a_mask_setting_is_refused():
    prediction, target = predictions()
    with pytest.raises(ValueError, match="face_mask and background_weight together"):
        denoising(prediction, target, background_weight=0.1)


def test_the_loss_is_computed_in_float32():
    prediction, target = (x.astype(jnp.bfloat16) for x in predictions())
    assert denoising(prediction, target).dtype == jnp.float32


def test_pseudo_huber_is_the_error_above_c_and_half_its_square_over_c_below():
    errors = jnp.array([0.0, 1e-3, 2.0, 300.0])
    values = pseudo_huber(jnp.square(errors), 0.1)
    np.testing.assert_allclose(values, [0.0, 5e-6, 1.9025, 299.9], rtol=1e-4)
    slope = jax.vmap(jax.grad(lambda error: pseudo_huber(error**2, 0.1)))(errors)
    np.testing.assert_allclose(slope, [0.0, 1e-2, 1.0, 1.0], atol=2e-3)  # finite at 0 and 1 for whatever is far


def test_pseudo_huber_is_exact_for_every_c():
    for c in (1e-6, 1.0, 1e6):
        exact = np.sqrt(np.float64(0.05) + c**2) - c if c < 1e3 else 0.05 / (2 * c)
        np.testing.assert_allclose(pseudo_huber(jnp.float32(0.05), c), exact, rtol=1e-5)
        assert np.isfinite(jax.grad(pseudo_huber)(0.0, c))


def test_an_error_counts_by_its_size_over_channels_before_places_are_weighed():
    _, target = predictions()
    sizes = jnp.array([1.0, 10.0, 100.0])[:, None, None, None]
    for kwargs in ({}, {"face_mask": half_mask(), "background_weight": 0.1}):
        values = denoising(target + sizes, target, huber_c=1e-4, **kwargs)
        np.testing.assert_allclose(values, [1.0, 10.0, 100.0], rtol=1e-3)
    one_channel = jnp.zeros_like(target).at[..., 0].set(3.0)
    np.testing.assert_allclose(denoising(target + one_channel, target, huber_c=1e-4), 1.5, rtol=1e-3)


def test_min_snr_weights_follow_the_formula():
    ratio, gamma = np.asarray(snr(SCHEDULE, TIMESTEPS), np.float64), 5.0
    clipped = np.minimum(ratio, gamma)
    for prediction_type, expected in (("eps", clipped / ratio), ("v", clipped / (ratio + 1)), ("x0", clipped)):
        weights = min_snr_weights(SCHEDULE, TIMESTEPS, prediction_type, gamma)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_min_snr_weights_stay_finite_without_signal():
    schedule, last = SCHEDULE.zero_terminal_snr(), jnp.array([999])
    values = [min_snr_weights(schedule, last, kind, 5.0)[0] for kind in ("eps", "v", "x0")]
    np.testing.assert_array_equal(values, [1.0, 0.0, 0.0])


def test_min_snr_multiplies_the_denoising_loss():
    prediction, target = predictions()
    weighted = denoising(prediction, target, min_snr_gamma=5.0)
    weights = min_snr_weights(SCHEDULE, TIMESTEPS, "v", 5.0)
    np.testing.assert_allclose(weighted, denoising(prediction, target) * weights, rtol=1e-5)


def test_attention_in_the_face_costs_nothing_and_outside_everything():
    inside, outside = half_mask()[..., None], 1 - half_mask()
    np.testing.assert_allclose(localisation_loss({"a": inside}, half_mask()), 0.0, atol=1e-6)
    np.testing.assert_allclose(localisation_loss({"a": outside}, half_mask()), 1.0, atol=1e-6)
    np.testing.assert_allclose(localisation_loss({"a": inside, "b": outside}, half_mask()), 0.5, atol=1e-6)


def test_localisation_ignores_the_strength_and_sums_tokens():
    attention = jax.random.uniform(jax.random.key(1), (3, 4, 4, 5))
    value = outside_share(attention, half_mask())
    np.testing.assert_allclose(outside_share(7 * attention, half_mask()), value, rtol=1e-5)
    np.testing.assert_allclose(outside_share(attention.sum(-1), half_mask()), value, rtol=1e-5)


def test_even_attention_has_the_share_of_the_area_at_every_size():
    mask = jnp.zeros((3, 8, 8)).at[:, 2:7, 1:4].set(1.0)
    for size in ((8, 8), (4, 4), (3, 5), (16, 16)):
        np.testing.assert_allclose(outside_share(jnp.ones((3, *size)), mask), 1 - 15 / 64, rtol=1e-5)


def test_localisation_of_no_attention_is_zero_with_finite_gradients():
    gradient = jax.grad(lambda x: outside_share(x, half_mask()).sum())(jnp.zeros((3, 4, 4)))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(outside_share(jnp.zeros((3, 4, 4)), half_mask()), 0.0)


def test_gradient_descent_moves_attention_into_the_face():
    gradient = jax.grad(lambda x: outside_share(x, half_mask()).sum())(jnp.ones((3, 8, 8)))
    assert (gradient[:, :, :4] < 0).all() and (gradient[:, :, 4:] > 0).all()


def test_localisation_without_maps_is_refused():
    with pytest.raises(ValueError, match="at least one identity attention map"):
        localisation_loss({}, half_mask())


def test_area_resize_averages_blocks():
    maps = jax.random.uniform(jax.random.key(2), (3, 8, 8))
    blocks = maps.reshape(3, 4, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(area_resize(maps, (4, 4)), blocks, rtol=1e-5)


@pytest.mark.parametrize("loss", [preserve_loss, disentangle_loss])
def test_changes_in_the_face_are_free_and_those_outside_are_not(loss):
    prediction, other = predictions()
    np.testing.assert_array_equal(loss(prediction, other, jnp.ones((3, 8, 8))), 0.0)
    np.testing.assert_array_equal(loss(prediction, prediction, half_mask()), 0.0)
    inside_only = prediction + half_mask()[..., None]
    np.testing.assert_array_equal(loss(inside_only, prediction, half_mask()), 0.0)
    np.testing.assert_allclose(loss(prediction + 2.0, prediction, half_mask()), 4.0, rtol=1e-5)


@pytest.mark.parametrize("loss", [preserve_loss, disentangle_loss])
def test_the_reference_gets_no_gradient(loss):
    prediction, other = predictions()
    gradients = jax.grad(lambda a, b: loss(a, b, half_mask()).sum(), (0, 1))(prediction, other)
    assert jnp.abs(gradients[0]).max() > 0 and jnp.abs(gradients[1]).max() == 0


def test_reduction_is_the_mean_of_the_weighted_sum():
    values = {"denoising": jnp.array([1.0, 3.0]), "localisation": jnp.array([0.5, 0.5])}
    total, means = reduce_losses(values, {"denoising": 1.0, "localisation": 0.2, "preserve": 0.0})
    np.testing.assert_allclose(total, 2.1, rtol=1e-6)
    np.testing.assert_allclose([means["denoising"], means["localisation"]], [2.0, 0.5])


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ({"denoising": jnp.ones(2)}, {"denoising": 1.0, "preserve": 1.0}, r"losses \['denoising', 'preserve'\]"),
        ({"denoising": jnp.ones(2)}, {"preserve": 0.0}, r"got values of \['denoising'\] and weights of \['preserve'\]"),
        ({"denoising": jnp.ones(())}, {"denoising": 1.0}, r"per-example values \(b,\), got {'denoising': \(\)}"),
    ],
)
def test_reduction_is_strict(values, weights, message):
    with pytest.raises(ValueError, match=message):
        reduce_losses(values, weights)


def test_only_losses_with_weight_are_active():
    assert active_losses({"denoising": 1.0, "localisation": 0.0, "preserve": 0.5}) == ("denoising", "preserve")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"denoisng": 1.0}, "denoising, localisation, preserve, disentangle, got denoisng"),
        ({"denoising": -1.0}, "at least 0"),
        ({"denoising": float("nan")}, "at least 0"),
        ({"denoising": 0.0}, "weight above 0"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        active_losses(weights)
