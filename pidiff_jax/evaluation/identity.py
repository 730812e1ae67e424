"""Evaluation of an identity adapter: the same prompts and the same noise, drawn with the identity on and off.

What draws and what judges comes as functions, so that any model and any judges can be scored in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from pidiff_jax.arrays import in_batches
from pidiff_jax.evaluation import scores
from pidiff_jax.evaluation.bootstrap import Interval, bootstrap_mean
from pidiff_jax.evaluation.on_off import OnOff
from pidiff_jax.evaluation.protocol import Job, Jobs, Protocol
from pidiff_jax.evaluation.report.pictures import SamplesGrid
from pidiff_jax.evaluation.subjects import Judges, People, Prompts
from pidiff_jax.sampling.compiled import GenerateFn


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate_identity`.

    scores: the six of metrics.json, each an `OnOff` of intervals, all but the similarity in [0, 1]. Off,
        `attention_in_face` is what attention spread evenly would have, and `background_change` is 0.
    details: further intervals: accuracy by attribute, diversity of embeddings, paired changes (on minus off), and the
        similarity of two photographs of a person, the most that a picture can be expected to reach.
    grid: pictures of the first people.
    """

    scores: dict[str, OnOff[Interval]]
    details: dict[str, Interval]
    grid: SamplesGrid


class _Drawn(NamedTuple):
    """What is known of all jobs' pictures, with identity on or off."""

    pixels: Float[np.ndarray, "j h w 3"]
    attention: Float[np.ndarray, "j _h _w"]
    embeddings: Float[np.ndarray, "j d"]
    scene: Int[np.ndarray, "j a"]
    face_mask: Float[np.ndarray, "j _h _w"]

    def at(self, positions: np.ndarray) -> "_Drawn":
        return _Drawn(*(array[positions] for array in self))


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
    jobs = protocol.jobs(len(people.wplus), len(prompts.texts))
    drawn = _draw(generate_fn, judges, people, prompts, noise_shape, protocol, jobs.drawn)
    gallery = _embeddings(judges, people.gallery, protocol.batch_size)
    references = _embeddings(judges, people.references, protocol.batch_size)
    own = gallery[[job.person for job in jobs.drawn]]
    similarity = drawn.map(lambda d: scores.identity_similarity(d.embeddings, own))

    main = drawn.map(lambda d: d.at(jobs.main))
    asked = prompts.attributes[np.arange(len(jobs.main)) % len(prompts.texts)]
    accuracy = main.map(lambda d: scores.prompt_accuracy(d.scene, asked))
    values = _main_values(main, similarity.map(lambda s: s[jobs.main]), accuracy, gallery)
    values["diversity"] = drawn.map(lambda d: scores.pixel_diversity(d.pixels[jobs.diversity]))
    details = {
        "identity_similarity/change": _change(values["identity_similarity"]),
        "prompt_accuracy/change": _change(values["prompt_accuracy"]),
    }
    for name, on, off in zip(prompts.attribute_names, accuracy.on.T, accuracy.off.T, strict=True):
        details |= _by_state(f"prompt_accuracy/{name}", OnOff(on, off))
    details["identity_similarity/photographs"] = scores.identity_similarity(references, gallery)
    diversity = drawn.map(lambda d: scores.embedding_diversity(d.embeddings[jobs.diversity]))
    details |= _by_state("embedding_diversity", diversity)
    return Evaluation(
        scores={name: pair.map(bootstrap_mean) for name, pair in values.items()},
        details={name: bootstrap_mean(each) for name, each in details.items()},
        grid=_grid(drawn, similarity, people, prompts, jobs),
    )


def _main_values(
    main: OnOff[_Drawn], similarity: OnOff[np.ndarray], accuracy: OnOff[np.ndarray], gallery: np.ndarray
) -> dict[str, OnOff[np.ndarray]]:
    """Values of one picture per person."""
    on, off = main.on, main.off
    person = np.arange(len(on.pixels))
    both_faces = np.maximum(on.face_mask, off.face_mask)
    return {
        "identity_similarity": similarity,
        "retrieval_top1": main.map(lambda d: scores.retrieval_top1(d.embeddings, gallery, person)),
        "prompt_accuracy": accuracy.map(lambda a: a.mean(-1)),
        "attention_in_face": OnOff(on.attention, np.ones_like(on.attention)).map(
            lambda attention: scores.attention_in_face(attention, on.face_mask)
        ),
        "background_change": OnOff(
            scores.background_change(on.pixels, off.pixels, both_faces), np.zeros(len(on.pixels))
        ),
    }


def _change(pair: OnOff[np.ndarray]) -> np.ndarray:
    return pair.on - pair.off


def _by_state(name: str, pair: OnOff[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}/{state}": values for state, values in pair.by_name().items()}


def _grid(
    drawn: OnOff[_Drawn], similarity: OnOff[np.ndarray], people: People, prompts: Prompts, jobs: Jobs
) -> SamplesGrid:
    num_people, num_prompts = jobs.grid.shape
    return SamplesGrid(
        prompts=tuple(prompts.texts[:num_prompts]),
        references=people.references[:num_people],
        with_identity=drawn.on.pixels[jobs.grid],
        without_identity=drawn.off.pixels[jobs.grid],
        attention=drawn.on.attention[jobs.grid],
        similarity_with=similarity.on[jobs.grid],
        similarity_without=similarity.off[jobs.grid],
    )


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


def _draw(
    generate_fn: GenerateFn,
    judges: Judges,
    people: People,
    prompts: Prompts,
    noise_shape: tuple[int, int, int],
    protocol: Protocol,
    jobs: Sequence[Job],
) -> OnOff[_Drawn]:
    """Draws and judges all jobs, with identity on and off from the same noise."""
    size = min(protocol.batch_size, len(jobs))
    scale = OnOff(protocol.identity_scale, 0.0)
    total = 2 * size * -(-len(jobs) // size)  # with what fills up the last batch
    bar = tqdm(total=total, unit="picture", desc="scoring", dynamic_ncols=True, disable=not protocol.show_progress)

    def draw_batch(numbers: Int[np.ndarray, "b 3"]) -> OnOff[_Drawn]:
        noise = draw_noise(protocol.seed, numbers, noise_shape)
        wplus, text_ids = people.wplus[numbers[:, 0]], prompts.text_ids[numbers[:, 1]]

        def draw(scale: float) -> _Drawn:
            pixels, attention = (np.asarray(x, np.float32) for x in generate_fn(wplus, text_ids, noise, scale))
            judged = (np.asarray(judge(pixels)) for judge in (judges.recogniser, judges.scene, judges.face_mask))
            bar.update(size)
            return _Drawn(pixels, attention, *judged)

        return scale.map(draw)

    with bar:
        return in_batches(draw_batch, np.array(jobs, np.int32), batch_size=size)


def draw_noise(seed: int, jobs: Int[np.ndarray, "b 3"], shape: tuple[int, int, int]) -> Float[Array, "b h w c"]:
    """Initial noise of (person, prompt, seed) jobs: each job's own, whatever else is drawn beside it."""

    def one(job: Int[Array, "3"]) -> Float[Array, "h w c"]:
        key = jax.random.key(seed)
        for number in job:
            key = jax.random.fold_in(key, number)
        return jax.random.normal(key, shape)

    return jax.vmap(one)(jnp.asarray(jobs, jnp.int32))


def _embeddings(judges: Judges, pixels: np.ndarray, batch_size: int) -> np.ndarray:
    return in_batches(judges.recogniser, pixels, batch_size=min(batch_size, len(pixels)))
