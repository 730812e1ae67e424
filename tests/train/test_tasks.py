"""What each task's losses say about predictions that are right, wrong, or without a condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pidiff_jax.diffusion.schedule import NoiseSchedule
from pidiff_jax.models.arcface import ArcFace, ArcFaceSpec
from pidiff_jax.models.clip import ClipText, ClipTextSpec
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec, encode_wplus
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.ir_se import IRSESpec
from pidiff_jax.models.segmenter import Segmenter, SegmenterSpec
from pidiff_jax.models.shapes import mapper_shapes, text_encoder_shapes, unet_shapes
from pidiff_jax.models.stylegan2 import StyleGan2Spec, Synthesis
from pidiff_jax.models.text_conditioning import ClipConditioner
from pidiff_jax.models.unet import UNet
from pidiff_jax.train.identity_task import Dropout, IdentityTask, perturb_wplus
from pidiff_jax.worlds.portraits import renderer
from pidiff_jax.worlds.portraits.judges import read_landmarks
from pidiff_jax.worlds.portraits.tasks.judges import (
    LandmarksTask,
    RealismTask,
    RecogniserTask,
    SceneTask,
    SegmenterTask,
    bilinear_maps,
)
from pidiff_jax.worlds.portraits.tasks.wplus import DISTANCE, SPREAD, WPlusTask, jitter_colours, placed, warp_shape
from tests.models.tiny_unet import CONTEXT_DIM, TOKEN_DIM, random_params, tiny_spec

KEY = jax.random.key(0)
BACKBONE = IRSESpec(units=(1, 1, 1, 1), widths=(4, 4, 6, 6))
BATCH, LAYERS, WPLUS_DIM = 4, 6, 5


@pytest.fixture(scope="module")
def pixels():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), np.uint8))


def test_the_recogniser_prefers_pictures_of_one_person_to_pictures_of_two(pixels):
    network = ArcFace(ArcFaceSpec(backbone=BACKBONE, embedding_dim=8, input_size=32, pooling="gap"))
    params = {"recogniser": network.init(KEY, jnp.zeros((1, 32, 32, 3)))["params"]}
    task = RecogniserTask(network)
    right, metrics = task.losses(params, {"pixels": pixels, "other_pixels": pixels}, KEY, train=False)
    wrong, _ = task.losses(params, {"pixels": pixels, "other_pixels": jnp.roll(pixels, 1, 0)}, KEY, train=False)
    assert right["contrastive"].shape == (BATCH,) and metrics["accuracy"] == 1.0
    assert right["contrastive"].mean() < wrong["contrastive"].mean()


def test_the_scene_classifier_sums_a_cross_entropy_over_the_attributes(pixels):
    network = ArcFace(ArcFaceSpec(backbone=BACKBONE, embedding_dim=5, input_size=32, pooling="gap"))
    params = {"scenes": network.init(KEY, jnp.zeros((1, 32, 32, 3)))["params"]}
    scene = jnp.array([[0, 2], [1, 1], [0, 0], [1, 2]], jnp.int32)
    values, metrics = SceneTask(network, (2, 3)).losses(params, {"pixels": pixels, "scene": scene}, KEY, train=False)
    logits = np.asarray(network.apply({"params": params["scenes"]}, pixels / 127.5 - 1.0, method="logits"))
    first, second = jax.nn.log_softmax(logits[:, :2]), jax.nn.log_softmax(logits[:, 2:])
    rows = np.arange(BATCH)
    np.testing.assert_allclose(
        values["classification"], -first[rows, scene[:, 0]] - second[rows, scene[:, 1]], rtol=1e-5
    )
    assert 0.0 <= float(metrics["accuracy"]) <= 1.0


def test_the_segmenter_is_scored_by_the_overlap_of_its_mask(pixels):
    network = Segmenter(SegmenterSpec(backbone=BACKBONE, width=4))
    params = network.init(KEY, jnp.zeros((1, 32, 32, 3)))["params"]
    logits = network.apply({"params": params}, pixels / 127.5 - 1.0)
    scale = 32 // logits.shape[1]
    own = (logits > 0).repeat(scale, 1).repeat(scale, 2).astype(jnp.uint8) * 255
    task = SegmenterTask(network)
    same, metrics = task.losses({"segmenter": params}, {"pixels": pixels, "head_mask": own}, KEY, train=False)
    opposite, wrong = task.losses({"segmenter": params}, {"pixels": pixels, "head_mask": 255 - own}, KEY, train=False)
    assert metrics["iou"] == 1.0 and wrong["iou"] == 0.0
    assert same["segmentation"].shape == (BATCH,)
    assert (same["segmentation"] < opposite["segmentation"]).all()


def test_a_landmark_is_read_where_its_map_was_put():
    points = jnp.array([[[3.0, 17.0], [20.6, 9.2]], [[31.0, 1.0], [12.0, 12.0]]])
    maps = bilinear_maps(points / 32, 16)
    np.testing.assert_allclose(maps.sum((1, 2)), 1.0, atol=1e-6)
    found, sure = read_landmarks(jnp.log(maps + 1e-9), 32)
    np.testing.assert_allclose(found, points, atol=1e-3)
    np.testing.assert_allclose(sure, 1.0, atol=1e-3)
    _, unsure = read_landmarks(jnp.zeros((1, 16, 16, 2)), 32)
    assert unsure.max() <= 25 / 256 + 1e-6


def test_landmarks_are_scored_by_where_their_eyes_are_found(pixels):
    network = Segmenter(SegmenterSpec(backbone=BACKBONE, width=4, num_maps=5))
    params = network.init(KEY, jnp.zeros((1, 32, 32, 3)))["params"]
    own, _ = read_landmarks(network.apply({"params": params}, pixels / 127.5 - 1.0), 32)
    losses = LandmarksTask(network).losses
    same, metrics = losses({"landmarks": params}, {"pixels": pixels, "landmarks": own}, KEY, train=False)
    away = own.at[:, 1, 0].add(2.5)
    _, wrong = losses({"landmarks": params}, {"pixels": pixels, "landmarks": away}, KEY, train=False)
    assert same["position"].shape == (BATCH,)
    assert metrics["within_2_px"] == 1.0 and wrong["within_2_px"] == 0.0


def test_the_features_of_realism_learn_all_that_was_rendered(pixels):
    network = ArcFace(ArcFaceSpec(backbone=BACKBONE, embedding_dim=3 + 5, input_size=32, pooling="gap"))
    params = nn.meta.unbox(network.init(KEY, jnp.zeros((1, 32, 32, 3))))["params"]
    values = np.asarray(network.apply({"params": params}, pixels / 127.5 - 1.0, method="logits"))
    batch = {"pixels": pixels, "identity": values[:, :3], "scene": jnp.array([[0, 2], [1, 1], [0, 0], [1, 2]])}
    losses, metrics = RealismTask(network, (2, 3)).losses({"realism": params}, batch, KEY)
    assert losses["regression"].max() == 0.0 and metrics["r2"] == 1.0
    background = jax.nn.log_softmax(values[:, 3:5])[np.arange(BATCH), batch["scene"][:, 0]]
    assert (losses["classification"] > -background).all()  # the pattern's is added
    features = network.apply({"params": params}, pixels / 127.5 - 1.0, method="features")
    weights = params["output_layer_3"]
    np.testing.assert_allclose(features @ weights["kernel"] + weights["bias"], values, atol=1e-5)


@pytest.fixture(scope="module")
def wplus():
    """A task of 32 pixels and its parameters, whose reading is zero."""
    spec = E4eSpec(BACKBONE, num_layers=8, wplus_dim=WPLUS_DIM, input_size=32, style_width=6)
    encoder, synthesis = E4eEncoder(spec), Synthesis(StyleGan2Spec(32, WPLUS_DIM, 1, (4, 4, 4, 4)))
    reading = nn.Dense(renderer.NUM_IDENTITY_PARAMETERS)
    codes = jnp.zeros((1, 8, WPLUS_DIM))
    params = {
        "encoder": encoder.init(KEY, jnp.zeros((1, 32, 32, 3)))["params"],
        "synthesis": synthesis.init(KEY, codes)["params"],
        "latent_avg": codes[0],
        "reading": jax.tree.map(jnp.zeros_like, reading.init(KEY, codes.reshape(1, -1))["params"]),
    }
    return WPlusTask(encoder, synthesis, reading), nn.meta.unbox(params)


@pytest.mark.parametrize("train", [False, True])
def test_a_code_is_asked_what_its_person_was_drawn_from(wplus, pixels, train):
    task, params = wplus
    batch = {"pixels": pixels, "person_id": jnp.full(BATCH, 11)}
    identity = renderer.identity_parameters(jnp.int32(11))
    known = {**params, "reading": {**params["reading"], "bias": identity}}
    values, metrics = task.losses(known, batch, KEY, train)
    assert values["identity"].shape == (BATCH,) and values["identity"].max() == 0.0 and metrics["r2"] == 1.0
    values, _ = task.losses(params, batch, KEY, train)
    np.testing.assert_allclose(values["identity"], 12 * jnp.square(identity).mean(), rtol=1e-5)
    named = {name for name, each in values.items() if each.shape == (BATCH,)}
    assert named == {"l1", "gradient", "pyramid", "delta", "identity"}


def test_the_identity_is_learned_by_the_encoder_and_the_reading_alone(wplus, pixels):
    task, params = wplus
    batch = {"pixels": pixels, "person_id": jnp.arange(BATCH)}
    params = {**params, "reading": jax.tree.map(jnp.ones_like, params["reading"])}
    gradient = jax.grad(lambda p: task.losses(p, batch, KEY)[0]["identity"].mean())(params)
    largest = {name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)) for name, tree in gradient.items()}
    assert largest["synthesis"] == 0.0 and min(largest["encoder"], largest["reading"]) > 0.0


def test_codes_are_put_away_from_zero_and_draw_the_same_pictures(wplus, pixels):
    task, params = wplus
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), params)
    x = pixels / 127.5 - 1.0

    def run(params):
        codes = encode_wplus(task.encoder, params["encoder"], params["latent_avg"], x)
        read = task.reading.apply({"params": params["reading"]}, codes.reshape(BATCH, -1))
        return codes, task.synthesis.apply({"params": params["synthesis"]}, codes), read

    codes, *before = run(params)
    moved, *after = run(placed(params, np.asarray(codes)))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    spread = moved.std(0)
    assert float(jnp.sqrt(jnp.square(spread).mean())) == pytest.approx(SPREAD, rel=1e-3)
    of_layers = [jnp.sqrt(jnp.square(x).mean(-1)) for x in (moved.mean(0), spread)]
    np.testing.assert_allclose(of_layers[0], DISTANCE * of_layers[1], rtol=1e-3)


def test_colours_and_shapes_are_changed_apart(pixels):
    x = pixels / 127.5 - 1.0
    grey = jnp.broadcast_to(x[:, :, :1].mean((1, 2, 3), keepdims=True), x.shape)
    np.testing.assert_allclose(warp_shape(grey, KEY), grey, atol=1e-5)
    uniform = jitter_colours(grey, KEY)
    assert float(uniform.std((1, 2)).max()) < 1e-5
    assert float(jnp.abs(uniform - grey).max()) > 0.05
    assert float(jnp.abs(warp_shape(x, KEY) - x).mean()) > 0.05


def test_dropout_takes_text_or_identity_or_both_at_the_given_rates():
    no_text, no_identity = Dropout(text=0.2, identity=0.1, both=0.05).sample(KEY, 20_000)
    rates = {
        "text": float((no_text & ~no_identity).mean()),
        "identity": float((no_identity & ~no_text).mean()),
        "both": float((no_identity & no_text).mean()),
    }
    assert rates == pytest.approx({"text": 0.2, "identity": 0.1, "both": 0.05}, abs=0.01)


def test_a_perturbed_code_is_another_one_and_comes_from_the_batch():
    codes = jax.random.normal(KEY, (BATCH, LAYERS, WPLUS_DIM))
    other = perturb_wplus(codes, KEY)
    assert float(jnp.abs(other - codes).mean((1, 2)).min()) > 0.1
    same = jnp.broadcast_to(codes[:1], codes.shape)
    np.testing.assert_allclose(perturb_wplus(same, KEY), same, atol=1e-6)


@pytest.fixture(scope="module")
def identity():
    """Modules, parameters and a batch of a run of the identity adapter, in the smallest form."""
    unet = UNet(tiny_spec())
    text = ClipText(
        ClipTextSpec(vocab_size=11, width=CONTEXT_DIM, num_layers=1, num_heads=2, mlp_width=16, max_length=5)
    )
    mapper = IdentityMapper(MapperSpec(groups=((0, 2), (2, LAYERS)), wplus_dim=WPLUS_DIM, token_dim=TOKEN_DIM))
    shapes = {
        "unet": unet_shapes(unet), "text_encoder": text_encoder_shapes(text), "mapper": mapper_shapes(mapper)
    }  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (BATCH, 8, 8, unet.spec.in_channels)
    batch = {
        "latent_mean": rng.normal(size=shape).astype(np.float32),
        "latent_log_variance": np.full(shape, -4.0, np.float32),
        "wplus": rng.normal(size=(BATCH, LAYERS, WPLUS_DIM)).astype(np.float32),
        "text_ids": rng.integers(0, 10, (BATCH, 5)).astype(np.int32),
        "face_mask": np.concatenate([np.ones((BATCH, 8, 4)), np.zeros((BATCH, 8, 4))], -1).astype(np.float32),
        "person_id": np.arange(BATCH, dtype=np.int32),
    }
    modules = (unet, ClipConditioner(text), mapper, NoiseSchedule.cosine(100), "v", 1.0, (9, 10, 10, 10, 10))
    return modules, random_params(nn.meta.unbox(shapes)), batch


def losses(identity, train=False, params=None, **options):
    modules, own, batch = identity
    task = IdentityTask(*modules, **options)
    compute = jax.jit(task.losses, static_argnames="train", compiler_options={"xla_backend_optimization_level": 0})
    return compute(params or own, batch, KEY, train=train)[0]


def test_only_active_losses_are_computed_and_all_are_one_value_per_example(identity):
    names = ("denoising", "localisation", "preserve", "disentangle")
    values = losses(identity, active_losses=names)
    assert sorted(values) == sorted(names)
    assert all(value.shape == (BATCH,) and np.isfinite(value).all() for value in values.values())
    assert sorted(losses(identity)) == ["denoising"]


def test_without_identity_the_preserve_loss_is_zero_and_the_localisation_is_not_asked_for(identity):
    silent = {**identity[1], "mapper": jax.tree.map(np.zeros_like, identity[1]["mapper"])}
    values = losses(identity, params=silent, active_losses=("denoising", "preserve"))
    np.testing.assert_allclose(values["preserve"], 0.0, atol=1e-6)
    dropped = losses(identity, train=True, active_losses=("denoising", "localisation"), dropout=Dropout(0.0, 1.0, 0.0))
    np.testing.assert_array_equal(dropped["localisation"], 0.0)


def test_with_background_weight_zero_only_the_face_counts(identity):
    modules, params, batch = identity
    whole, face = losses(identity), losses(identity, background_weight=0.0)
    assert not np.allclose(whole["denoising"], face["denoising"])
    everywhere = (modules, params, {**batch, "face_mask": np.ones_like(batch["face_mask"])})
    np.testing.assert_allclose(losses(everywhere, background_weight=0.0)["denoising"], whole["denoising"], rtol=1e-4)


def test_a_huber_loss_is_asked_for_by_its_c(identity):
    squared, huber = losses(identity)["denoising"], losses(identity, huber_c=0.01)["denoising"]
    assert np.all(huber > 0) and not np.allclose(squared, huber)
    for value in (0.0, 1e9):  # whose squares a float32 can't take beside the errors
        with pytest.raises(ValueError, match="expected a huber_c .*, or None for a squared error, got"):
            losses(identity, huber_c=value)
