"""From the config of a run to what it is made of: its world, its experiment, and how it is looked at."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pidiff_jax.evaluation.evaluator import PREVIEW_PEOPLE, EvaluationSettings, Scoring
from pidiff_jax.evaluation.protocol import Protocol
from pidiff_jax.evaluation.subjects import HeldOut
from pidiff_jax.ranges import about, check_count, check_number
from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.generate import Sampling, sampler_for, steps_between
from pidiff_jax.train.build import build_identity
from pidiff_jax.train.experiment import Experiment, IdentityExperiment
from pidiff_jax.worlds import World

IDENTITY = "identity"


def build_experiment(config: Any, world: World) -> Experiment:
    """The experiment of the config's task; loads no weights and opens no data.

    Raises:
        ValueError, FileNotFoundError: the config asks for something that does not exist; says what and where.
    """
    tasks = {IDENTITY: lambda config: build_adapter(config, world), **world.tasks()}
    if config.task not in tasks:
        raise ValueError(f"expected config.task of {sorted(tasks)}, got {config.task!r}; correct the config")
    with _missing_keys_named(config.task):
        return tasks[config.task](config)


def build_adapter(config: Any, world: World) -> IdentityExperiment:
    """`build_experiment` where the task is an identity adapter."""
    with _missing_keys_named(IDENTITY):
        world.check()
        return build_identity(config, world.base_model(), world.wplus_size, world.sources)


@contextlib.contextmanager
def _missing_keys_named(task: str) -> Iterator[None]:
    try:
        yield
    except AttributeError as error:  # of a key that the task reads
        raise ValueError(f"expected a config for the config.task {task!r}, got one without a key: {error}") from error


def evaluation_settings(
    config: Any, world: World, components: Components, num_references: int = 1
) -> EvaluationSettings:
    """How the config's model is drawn and scored; whatever can't be done is refused now, not at a run's end.

    num_references: photographs of a person whose W+ codes are averaged.

    Raises:
        ValueError: the config's sampling or evaluation can't be done; names the key.
    """
    _check_keys("config", config, "sampling", "evaluation")
    sampling = checked_sampling(config.sampling, components)
    protocol = Protocol(batch_size=PREVIEW_PEOPLE, identity_scale=float(config.sampling.identity_scale))
    split = config.evaluation.get("split", "test")  # not there where the world has no judges
    with about("config.evaluation.split"):
        held_out = world.held_out(split)
    if held_out is None:
        _check_previews(config.evaluation)
        scoring = None
    else:
        scoring = checked_scoring(config.evaluation, protocol, held_out, split)
    return EvaluationSettings(sampling, protocol, scoring, float(config.sampling.identity_start), num_references)


def checked_sampling(sampling: Any, components: Components) -> Sampling:
    """How pictures are drawn, once it is certain that they can be."""
    numbers = ("guidance_scale", "identity_scale", "identity_start")
    _check_keys("config.sampling", sampling, "num_steps", *numbers)
    for name in numbers:
        with about(f"config.sampling.{name}"):
            check_number("it", getattr(sampling, name))
    with about("config.sampling.num_steps"):
        check_count("it", sampling.num_steps, least=0)  # of which the sampler refuses 0 with its own words
        sampler_for(components, Sampling(sampling.num_steps))
    with about("config.sampling"):
        steps_between(sampling.num_steps, sampling.identity_start)
    return Sampling(sampling.num_steps, sampling.guidance_scale)


def checked_scoring(evaluation: Any, protocol: Protocol, held_out: HeldOut, split: str) -> Scoring:
    """Whom the judges see, once it is certain that there are so many."""
    _check_keys("config.evaluation", evaluation, "num_people", "num_prompts")
    with about("config.evaluation.num_people"):
        held_out.check_people(evaluation.num_people)
    with about("config.evaluation.num_prompts"):
        prompts = held_out.prompts(evaluation.num_prompts)
        if evaluation.num_prompts < protocol.num_grid_prompts:
            raise ValueError(
                f"expected at least {protocol.num_grid_prompts}, which samples.png shows, got {evaluation.num_prompts}; "
                "ask for more"
            )
    return Scoring(split, held_out, evaluation.num_people, prompts)


def _check_previews(evaluation: Any) -> None:
    _check_keys("config.evaluation", evaluation, "num_preview_people")
    if evaluation.num_preview_people < 1:
        raise ValueError(
            f"config.evaluation.num_preview_people: expected at least 1, got {evaluation.num_preview_people}; correct it"
        )


def _check_keys(name: str, section: Any, *keys: str) -> None:
    if missing := [key for key in keys if key not in section]:
        raise ValueError(f"expected a config with {name}.{missing[0]}, got one without it; add it")
