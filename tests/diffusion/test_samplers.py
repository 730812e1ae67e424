"""Trajectories are those of diffusers' schedulers, and what all samplers have in common."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.diffusion.samplers import SAMPLERS, advance, make_sampler, sample, spaced_timesteps
from pidiff_jax.diffusion.samplers.levels import check_num_steps
from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise
from tests.diffusion.foreign_samplers import (
    FOREIGN_TYPES,
    KEYS,
    NOISE,
    SCHEDULE,
    assert_same_to_float32,
    denoise,
    start_noise,
    trajectory,
)

SPACINGS = ["leading", "trailing", "linspace"]
NOISY = {"ddpm", "euler_ancestral", "lcm"}
WITHOUT_X0 = {"euler_ancestral"}  # in diffusers
WITHOUT_SPACING = {"lcm"}
CASES = [
    (name, prediction_type, spacing)
    for name in SAMPLERS
    for prediction_type in FOREIGN_TYPES
    for spacing in (SPACINGS[:1] if name in WITHOUT_SPACING else SPACINGS)
    if not (prediction_type == "x0" and name in WITHOUT_X0)
]

# Samplers are arguments, so that those of as many steps share a program.
from_noise = jax.jit(lambda noise, sampler: sample(denoise, sampler.start(noise), sampler, keys=KEYS))
from_latents = jax.jit(lambda noise, x0, sampler: sample(denoise, sampler.start(noise, x0), sampler, keys=KEYS))


def drawn(name, prediction_type, num_steps, schedule=SCHEDULE, **options):
    return from_noise(start_noise(prediction_type), make_sampler(name, schedule, prediction_type, num_steps, **options))


@pytest.mark.parametrize(("name", "prediction_type", "spacing"), CASES)
def test_ten_twenty_and_fifty_steps_agree_with_diffusers(name, prediction_type, spacing):
    settings = {"steps_offset": 1, "timestep_spacing": spacing}
    for num_steps in (10, 20, 50):
        foreign_timesteps, expected = trajectory(name, prediction_type, num_steps, **settings)
        options = {"steps_offset": 1, "spacing": spacing}
        sampler = make_sampler(name, SCHEDULE, prediction_type, num_steps, **options)
        np.testing.assert_allclose(sampler.levels.timesteps, foreign_timesteps, atol=1e-3)
        assert_same_to_float32(drawn(name, prediction_type, num_steps, **options), expected)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", FOREIGN_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_as_stable_diffusion_sets_it_agrees_with_diffusers_at_every_eta(spacing, prediction_type, eta):
    settings = {"timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False}
    _, expected = trajectory("ddim", prediction_type, 20, eta=eta, **settings)
    options = {"spacing": spacing, "steps_offset": 1, "final_sigma": "min", "eta": eta}
    assert_same_to_float32(drawn("ddim", prediction_type, 20, **options), expected)


@pytest.mark.parametrize("name", ["euler", "euler_karras", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "unipc_karras"])
@pytest.mark.parametrize("num_steps", [10, 20])  # below 15, DPM-Solver++ ends otherwise
def test_a_trajectory_that_ends_with_the_least_noise_agrees_with_diffusers(name, num_steps):
    _, expected = trajectory(name, "v", num_steps, final_sigmas_type="sigma_min", timestep_spacing="trailing")
    if name.startswith("euler"):  # diffusers' are x0 + sigma * eps
        expected = expected * float(jnp.sqrt(SCHEDULE.alphas_cumprod[0]))
    assert_same_to_float32(drawn(name, "v", num_steps, final_sigma="min", spacing="trailing"), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_that_do_not_divide_the_schedule_agree_with_diffusers(name):
    settings = {} if name in WITHOUT_SPACING else {"timestep_spacing": "trailing"}
    foreign_timesteps, expected = trajectory(name, "v", 30, **settings)
    assert len(foreign_timesteps) == 30
    assert_same_to_float32(drawn(name, "v", 30, spacing="trailing"), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_zero_terminal_snr_schedule_agrees_with_diffusers(name):
    settings = {} if name in WITHOUT_SPACING else {"timestep_spacing": "trailing"}
    _, expected = trajectory(name, "v", 20, rescale_betas_zero_snr=True, **settings)
    ours = drawn(name, "v", 20, SCHEDULE.zero_terminal_snr(), spacing="trailing")
    assert_same_to_float32(ours, expected, tolerance=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_start_in_the_middle_from_a_picture_agrees_with_diffusers(name):
    clean = np.random.default_rng(1).standard_normal(NOISE.shape).astype(np.float32)
    settings = {} if name in WITHOUT_SPACING else {"timestep_spacing": "leading"}
    _, expected = trajectory(name, "v", 20, first_step=12, clean=clean, steps_offset=1, **settings)
    sampler = make_sampler(name, SCHEDULE, "v", 20, steps_offset=1, first_step=12)
    assert sampler.num_steps == 8
    assert_same_to_float32(from_latents(NOISE, clean, sampler), expected)


def test_clipping_agrees_with_diffusers():
    settings = {"clip_sample": True, "clip_sample_range": 0.5, "set_alpha_to_one": True}
    _, expected = trajectory("ddim", "x0", 20, eta=0.6, **settings)
    sampler = make_sampler("ddim", SCHEDULE, "x0", 20, eta=0.6)
    ours = sample(denoise, sampler.start(jnp.asarray(NOISE)), sampler, keys=KEYS, clip_x0=0.5)
    assert_same_to_float32(ours, expected)
    assert np.abs(expected - drawn("ddim", "x0", 20, eta=0.6)).max() > 0.01


@pytest.mark.parametrize("prediction_type", FOREIGN_TYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_network_finds_the_latents(name, prediction_type):
    latents = jax.random.normal(jax.random.key(1), NOISE.shape)
    sampler = make_sampler(name, SCHEDULE, prediction_type, 10, spacing="trailing")
    levels = sampler.levels
    assert len(set(levels.timesteps)) == 10

    def perfect(noisy, timestep, number):
        """Reads the level from the timestep, as a network does; with Karras sigmas it isn't quite the schedule's."""
        now = jnp.argmin(jnp.abs(levels.timesteps - timestep))
        signal, sigma = (jnp.asarray(x, jnp.float32)[now] for x in (levels.signal, levels.noise))
        noise = (noisy - signal * latents) / sigma
        return {"eps": noise, "x0": latents, "v": signal * noise - sigma * latents}[prediction_type]

    run = jax.jit(lambda noise: sample(perfect, sampler.start(noise, latents), sampler, keys=KEYS))
    np.testing.assert_allclose(run(jnp.asarray(NOISE)), latents, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_of_a_batch_of_four_is_the_same_alone_and_on_four_devices(name):
    keys, noise = jax.random.split(jax.random.key(5), 4), np.concatenate([NOISE, NOISE[::-1]])
    sampler = make_sampler(name, SCHEDULE, "v", 10, spacing="trailing")
    run = jax.jit(lambda noise, keys: sample(denoise, sampler.start(noise), sampler, keys=keys))
    together = np.asarray(run(noise, keys))
    for i in range(4):
        np.testing.assert_allclose(run(noise[i : i + 1], keys[i : i + 1])[0], together[i], atol=1e-6)
    mesh = jax.sharding.Mesh(jax.devices()[:4], "data")
    scattered = jax.device_put((noise, keys), jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_allclose(run(*scattered), together, atol=1e-6)
    other = run(noise, jax.random.split(jax.random.key(6), 4))
    assert (np.abs(other - together).max() > 0.1) == (name in NOISY)


def test_every_step_of_every_picture_has_noise_of_its_own():
    seen = []

    def watched(latents, memory, prediction, factors, noise):
        jax.debug.callback(seen.append, noise, ordered=True)
        return sampler.method.step(latents, memory, prediction, factors, noise)

    sampler = make_sampler("ddpm", SCHEDULE, "v", 5)
    jax.block_until_ready(sample(denoise, jnp.asarray(NOISE), _with_step(sampler, watched), keys=KEYS))
    jax.effects_barrier()
    flat = np.stack(seen).reshape(5 * len(NOISE), -1)
    assert len(np.unique(flat, axis=0)) == len(flat)


def _with_step(sampler, step):
    return replace(sampler, method=replace(sampler.method, step=step))


def test_the_constraint_holds_latents_at_the_level_that_the_next_step_reads():
    """The known half of a picture, noised to each level, comes out as it is; the other half goes on by itself."""
    known = jax.random.normal(jax.random.key(2), NOISE.shape)
    mask = jnp.arange(4)[:, None, None] < 2
    sampler = make_sampler("unipc", SCHEDULE, "v", 10, steps_offset=1)
    levels = []

    def constrain(latents, level):
        jax.debug.callback(lambda *x: levels.append(x), *level, ordered=True)
        return jnp.where(mask, level.signal * known + level.noise * NOISE, latents)

    found = sample(denoise, sampler.start(jnp.asarray(NOISE)), sampler, constrain=constrain)
    jax.effects_barrier()
    np.testing.assert_array_equal(found[:, :2], known[:, :2])
    free = sample(denoise, sampler.start(jnp.asarray(NOISE)), sampler)
    np.testing.assert_array_equal(found[:, 2:], free[:, 2:])  # this network looks at each place alone
    own = sampler.levels
    expected = np.stack([np.append(own.timesteps[1:], 0), own.signal[1:], own.noise[1:]], 1)
    np.testing.assert_allclose(levels, expected, rtol=1e-6)


def test_aux_of_all_steps_is_stacked():
    sampler = make_sampler("ddim", SCHEDULE, "eps", 5)
    latents, seen = sample(lambda x, t, n: (denoise(x, t), (t, n)), jnp.asarray(NOISE), sampler, has_aux=True)
    np.testing.assert_array_equal(seen[0], sampler.levels.timesteps)
    np.testing.assert_array_equal(seen[1], range(5))
    np.testing.assert_array_equal(latents, sample(denoise, jnp.asarray(NOISE), sampler))


def test_schedules_of_any_length_and_kind_have_every_sampler():
    for schedule in (NoiseSchedule.cosine().zero_terminal_snr(), NoiseSchedule.linear(num_steps=64)):
        for name in SAMPLERS:
            assert np.isfinite(drawn(name, "v", 8, schedule, spacing="trailing")).all(), name


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_has_as_many_distinct_timesteps(spacing):
    for num_steps in range(1, 1001):
        timesteps = spaced_timesteps(1000, num_steps, spacing=spacing)
        assert len(timesteps) == num_steps and timesteps[-1] >= 0 and (np.diff(timesteps) < 0).all()


def test_a_picture_is_noised_to_the_level_of_the_first_step_that_is_taken():
    clean, sampler = jnp.ones_like(NOISE), make_sampler("euler", SCHEDULE, "eps", 10, first_step=4)
    expected = add_noise(SCHEDULE, clean, jnp.asarray(NOISE), jnp.int32(sampler.levels.timesteps[0]))
    np.testing.assert_allclose(sampler.start(jnp.asarray(NOISE), clean), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spaced_timesteps(1000, 0), "1 to 1000 sampling steps, got 0"),
        (lambda: check_num_steps(2.5, 1000), "1 to 1000 sampling steps, got 2.5"),
        (lambda: spaced_timesteps(1000, 10, spacing="even"), "'leading', 'trailing' or 'linspace', got 'even'"),
        (lambda: spaced_timesteps(1000, 1000, steps_offset=1), "below 1000, got 1000 from 1000"),
        (lambda: make_sampler("plms", SCHEDULE, "v", 10), f"{', '.join(SAMPLERS)}, got 'plms'"),
        (lambda: make_sampler("euler", SCHEDULE, "epsilon", 10), "eps, v, x0, got 'epsilon'"),
        (lambda: make_sampler("lcm", SCHEDULE, "v", 51), "1 to 50 sampling steps, got 51"),
        (lambda: make_sampler("unipc_karras", SCHEDULE, "v", 1001), "1 to 1000 sampling steps, got 1001"),
        (lambda: make_sampler("dpmpp_2m", SCHEDULE, "v", 1000), "distinct timesteps .* take fewer steps"),
        (lambda: make_sampler("lcm", SCHEDULE, "v", 4, spacing="even"), "spacing .* got 'even'"),
        (lambda: make_sampler("euler", SCHEDULE, "v", 10, eta=0.5), "eta=0.0 with euler, got 0.5; only ddim has it"),
        (lambda: make_sampler("ddim", SCHEDULE, "v", 10, eta=1.5), r"eta in \[0, 1\], got 1.5"),
        (lambda: make_sampler("ddim", SCHEDULE, "v", 10, eta=float("nan")), r"eta in \[0, 1\], got nan"),
        (lambda: make_sampler("lcm", SCHEDULE, "v", 4, final_sigma="min"), "final_sigma='zero' with lcm, got 'min'"),
        (lambda: make_sampler("ddim", SCHEDULE, "v", 4, final_sigma="one"), "'zero' or 'min', got 'one'"),
        (lambda: make_sampler("ddim", SCHEDULE, "v", 10, first_step=10), "first_step of 0 to 9, got 10"),
        (lambda: make_sampler("ddim", SCHEDULE, "v", 10, first_step=3).start(jnp.ones((1, 2, 2, 4))), "latents to start"),
        (
            lambda: make_sampler("euler", SCHEDULE.zero_terminal_snr(), "eps", 10, spacing="trailing"),
            "predicts v or x0 with a zero-terminal-SNR schedule, got eps",
        ),
        (lambda: sample(denoise, jnp.asarray(NOISE), make_sampler("ddim", SCHEDULE, "eps", 2, eta=1.0)), "keys"),
    ],
)  # fmt: skip
def test_impossible_sampling_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trajectory_can_be_cut_anywhere(name):
    sampler = make_sampler(name, SCHEDULE, "v", 7, steps_offset=1)
    state, run = sampler.begin(sampler.start(jnp.asarray(NOISE))), jax.jit(advance, static_argnums=(0, 3))
    for start, end in ((0, 1), (1, 5), (5, 7)):
        part = jax.tree.map(lambda x, start=start, end=end: x[start:end], sampler.steps)
        state, _ = run(denoise, state, part, sampler.method, keys=KEYS)
    np.testing.assert_allclose(state.latents, from_noise(jnp.asarray(NOISE), sampler), rtol=1e-5, atol=1e-5)
