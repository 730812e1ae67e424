"""Evaluation of an identity adapter: the same prompts and the same noise, drawn with the identity on and off.

What draws and what judges comes as functions, so that any model and any judges can be scored in the same way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from pidiff_jax.evaluation import scores
from pidiff_jax.evaluation.bootstrap import Interval, bootstrap_mean
from pidiff_jax.evaluation.pictures import SamplesGrid

# (wplus (b, l, d), text_ids (b, m), noise (b, h, w, c), identity_scale) -> pixels (b, H, W, 3) in [0, 1] and identity
# attention (b, h, w), which is not read where the scale is 0.
GenerateFn = Callable[[np.ndarray, np.ndarray, Array, float], tuple[Array, Array]]
JudgeFn = Callable[[np.ndarray], Array]


@dataclass(frozen=True)
class People:
    """Held-out people, pixels in [0, 1].

    references: the photographs that the W+ codes come from, also shown in the samples.
    gallery: other photographs of the same people, which pictures are compared with.
    wplus: identity codes.
    """

    references: Float[np.ndarray, "n h w 3"]
    gallery: Float[np.ndarray, "n _h _w 3"]
    wplus: Float[np.ndarray, "n l d"]


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts; `attributes` are what the scene classifier should see, by attribute name."""

    texts: tuple[str, ...]
    text_ids: Int[np.ndarray, "p m"]
    attributes: Int[np.ndarray, "p a"]
    attribute_names: tuple[str, ...]


@dataclass(frozen=True)
class Judges:
    """Networks that score pixels (b, h, w, 3) in [0, 1]; none may have had a part in the training.

    recogniser: -> embeddings (b, d) of the faces.
    scene: -> class indices (b, a), in the order of `Prompts.attribute_names`.
    face_mask: -> (b, h, w) in [0, 1], 1 in the face, at any resolution.
    """

    recogniser: JudgeFn
    scene: JudgeFn
    face_mask: JudgeFn


@dataclass(frozen=True)
class Protocol:
    """What is drawn: everybody once, with seed 0 and the prompts in turn. And, for the diversity and the samples:

    The first `num_diversity_people` are drawn with `num_seeds` seeds, and the first `num_grid_people` with the first
    `num_grid_prompts` prompts, for the picture of samples.

    Raises:
        ValueError: a number that makes no evaluation.
    """

    num_diversity_people: int = 8
    num_seeds: int = 4
    num_grid_people: int = 8
    num_grid_prompts: int = 3
    batch_size: int = 16
    identity_scale: float = 1.0
    seed: int = 0
    show_progress: bool = True

    def __post_init__(self):
        if self.num_seeds < 2 or self.num_diversity_people < 1:
            raise ValueError(
                f"expected at least 2 seeds of at least 1 person for the diversity, got {self.num_seeds} of "
                f"{self.num_diversity_people}; draw more"
            )
        if min(self.num_grid_people, self.num_grid_prompts, self.batch_size) < 1:
            raise ValueError(
                "expected at least 1 person and 1 prompt in the samples and 1 picture in a batch, got "
                f"{self.num_grid_people}, {self.num_grid_prompts} and {self.batch_size}; draw more"
            )
        if not math.isfinite(self.identity_scale):
            raise ValueError(f"expected a finite identity scale, got {self.identity_scale}; 0 to 1 are usual")


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate_identity`.

    scores: the six of metrics.json, each {"on": Interval, "off": Interval}, all but the similarity in [0, 1]. Off,
        `attention_in_face` is what attention spread evenly would have, and `background_change` is 0.
    details: further intervals: accuracy by attribute, diversity of embeddings, paired changes (on minus off), and the
        similarity of two photographs of a person, the most that a picture can be expected to reach.
    grid: pictures of the first people.
    """

    scores: dict[str, dict[str, Interval]]
    details: dict[str, Interval]
    grid: SamplesGrid


class _Job(NamedTuple):
    person: int
    prompt: int
    seed: int


class _Drawn(NamedTuple):
    """What is known of all jobs' pictures, with identity on or off."""

    pixels: Float[np.ndarray, "j h w 3"]
    attention: Float[np.ndarray, "j _h _w"]
    embeddings: Float[np.ndarray, "j d"]
    scene: Int[np.ndarray, "j a"]
    face_mask: Float[np.ndarray, "j _h _w"]


def evaluate_identity(
    generate_fn: GenerateFn,
    judges: Judges,
    people: People,
    prompts: Prompts,
    noise_shape: tuple[int, int, int],
    protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
) -> Evaluation:
    """Draws and scores; the same arguments give the same pictures.

    Args:
        generate_fn: draws a batch of always the same size; an identity scale of 0.0 means the base model.
        judges: see `Judges`.
        people: the gallery of the retrieval; 100 in the project's figures.
        prompts: at least `num_grid_prompts`.
        noise_shape: (h, w, c) of the initial noise.
        protocol: what is drawn.
    """
    _check(people, prompts, protocol)
    jobs = _jobs(len(people.wplus), len(prompts.texts), protocol)
    index = {job: position for position, job in enumerate(jobs)}
    on, off = _draw(generate_fn, judges, people, prompts, noise_shape, protocol, jobs)
    gallery = _in_batches(judges.recogniser, people.gallery, protocol.batch_size)
    own = gallery[[job.person for job in jobs]]
    similarity = {name: scores.identity_similarity(d.embeddings, own) for name, d in (("on", on), ("off", off))}

    main = [index[_Job(p, p % len(prompts.texts), 0)] for p in range(len(people.wplus))]
    values, details = _main_values(on, off, main, similarity, gallery, prompts)
    references = _in_batches(judges.recogniser, people.references, protocol.batch_size)
    details["identity_similarity/photographs"] = scores.identity_similarity(references, gallery)
    seeds = [
        [index[_Job(p, p % len(prompts.texts), s)] for s in range(protocol.num_seeds)]
        for p in range(min(protocol.num_diversity_people, len(people.wplus)))
    ]
    values["diversity"] = {name: scores.pixel_diversity(d.pixels[seeds]) for name, d in (("on", on), ("off", off))}
    details["embedding_diversity/on"] = scores.embedding_diversity(on.embeddings[seeds])
    details["embedding_diversity/off"] = scores.embedding_diversity(off.embeddings[seeds])
    grid = np.array(
        [
            [index[_Job(p, q, 0)] for q in range(protocol.num_grid_prompts)]
            for p in range(min(protocol.num_grid_people, len(people.wplus)))
        ]
    )
    return Evaluation(
        scores={name: {key: bootstrap_mean(v) for key, v in pair.items()} for name, pair in values.items()},
        details={name: bootstrap_mean(v) for name, v in details.items()},
        grid=SamplesGrid(
            prompts=tuple(prompts.texts[: protocol.num_grid_prompts]),
            references=people.references[: len(grid)],
            with_identity=on.pixels[grid],
            without_identity=off.pixels[grid],
            attention=on.attention[grid],
            similarity_with=similarity["on"][grid],
            similarity_without=similarity["off"][grid],
        ),
    )


def _main_values(
    on: _Drawn, off: _Drawn, main: list[int], similarity: dict, gallery: np.ndarray, prompts: Prompts
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Values of one picture per person: those of the scores, and those of the details."""
    person = np.arange(len(main))
    asked = prompts.attributes[person % len(prompts.texts)]
    on, off = (_Drawn(*(array[main] for array in drawn)) for drawn in (on, off))
    accuracy = {name: scores.prompt_accuracy(d.scene, asked) for name, d in (("on", on), ("off", off))}
    both_faces = np.maximum(on.face_mask, off.face_mask)
    even = np.ones_like(on.attention)
    values = {
        "identity_similarity": {name: similarity[name][main] for name in ("on", "off")},
        "retrieval_top1": {
            "on": scores.retrieval_top1(on.embeddings, gallery, person),
            "off": scores.retrieval_top1(off.embeddings, gallery, person),
        },
        "prompt_accuracy": {name: each.mean(-1) for name, each in accuracy.items()},
        "attention_in_face": {
            "on": scores.attention_in_face(on.attention, on.face_mask),
            "off": scores.attention_in_face(even, on.face_mask),
        },
        "background_change": {
            "on": scores.background_change(on.pixels, off.pixels, both_faces),
            "off": np.zeros(len(main)),
        },
    }
    details = {
        "identity_similarity/change": values["identity_similarity"]["on"] - values["identity_similarity"]["off"],
        "prompt_accuracy/change": values["prompt_accuracy"]["on"] - values["prompt_accuracy"]["off"],
    }
    for column, name in enumerate(prompts.attribute_names):
        for key in ("on", "off"):
            details[f"prompt_accuracy/{name}/{key}"] = accuracy[key][:, column]
    return values, details


def _check(people: People, prompts: Prompts, protocol: Protocol) -> None:
    if not len(people.references) == len(people.gallery) == len(people.wplus) > 0:
        raise ValueError(
            f"expected as many references and gallery pictures as W+ codes, at least 1, got {len(people.references)}, "
            f"{len(people.gallery)} and {len(people.wplus)}; give one of each per person"
        )
    if not len(prompts.texts) == len(prompts.text_ids) == len(prompts.attributes) >= protocol.num_grid_prompts:
        raise ValueError(
            f"expected at least {protocol.num_grid_prompts} prompts with text ids and attributes, got "
            f"{len(prompts.texts)}, {len(prompts.text_ids)} and {len(prompts.attributes)}; give more prompts"
        )


def _jobs(num_people: int, num_prompts: int, protocol: Protocol) -> list[_Job]:
    """Everything to draw, each picture once."""
    jobs = [_Job(p, p % num_prompts, 0) for p in range(num_people)]
    jobs += [
        _Job(p, p % num_prompts, s)
        for p in range(min(protocol.num_diversity_people, num_people))
        for s in range(protocol.num_seeds)
    ]
    jobs += [
        _Job(p, q, 0)
        for p in range(min(protocol.num_grid_people, num_people))
        for q in range(protocol.num_grid_prompts)
    ]
    return list(dict.fromkeys(jobs))


def _draw(
    generate_fn: GenerateFn,
    judges: Judges,
    people: People,
    prompts: Prompts,
    noise_shape: tuple[int, int, int],
    protocol: Protocol,
    jobs: Sequence[_Job],
) -> tuple[_Drawn, _Drawn]:
    """Draws and judges all jobs, with identity on and off from the same noise."""
    size = min(protocol.batch_size, len(jobs))
    results: dict[str, list[tuple]] = {"on": [], "off": []}
    bar = tqdm(
        total=2 * len(jobs), unit="picture", desc="scoring", dynamic_ncols=True, disable=not protocol.show_progress
    )
    with bar:
        for start in range(0, len(jobs), size):
            batch = list(jobs[start : start + size])
            kept = len(batch)
            batch += batch[-1:] * (size - kept)  # one compiled shape; the repeats are dropped
            noise = draw_noise(protocol.seed, np.array(batch, np.int32), noise_shape)
            wplus = people.wplus[[job.person for job in batch]]
            text_ids = prompts.text_ids[[job.prompt for job in batch]]
            for name, scale in (("on", protocol.identity_scale), ("off", 0.0)):
                pixels, attention = (np.asarray(x, np.float32) for x in generate_fn(wplus, text_ids, noise, scale))
                judged = [np.asarray(judge(pixels)) for judge in (judges.recogniser, judges.scene, judges.face_mask)]
                results[name].append(tuple(x[:kept] for x in (pixels, attention, *judged)))
                bar.update(kept)
    on, off = (_Drawn(*map(np.concatenate, zip(*results[name], strict=True))) for name in ("on", "off"))
    return on, off


def draw_noise(seed: int, jobs: Int[np.ndarray, "b 3"], shape: tuple[int, int, int]) -> Float[Array, "b h w c"]:
    """Initial noise of (person, prompt, seed) jobs: each job's own, whatever else is drawn beside it."""

    def one(job: Int[Array, "3"]) -> Float[Array, "h w c"]:
        key = jax.random.key(seed)
        for number in job:
            key = jax.random.fold_in(key, number)
        return jax.random.normal(key, shape)

    return jax.vmap(one)(jnp.asarray(jobs, jnp.int32))


def _in_batches(judge: JudgeFn, pixels: np.ndarray, size: int) -> np.ndarray:
    size = min(size, len(pixels))
    parts = []
    for start in range(0, len(pixels), size):
        piece = pixels[start : start + size]
        padded = np.pad(piece, ((0, size - len(piece)), (0, 0), (0, 0), (0, 0)), mode="edge")
        parts.append(np.asarray(judge(padded))[: len(piece)])
    return np.concatenate(parts)
