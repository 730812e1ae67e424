"""What an evaluation draws: which people, prompts and seeds, each picture once."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Job(NamedTuple):
    """One picture to draw, with the identity on and off; the seed is that of its noise."""

    person: int
    prompt: int
    seed: int


@dataclass(frozen=True)
class Jobs:
    """Everything to draw, and where in it the pictures are that belong together.

    main: of everybody, once. diversity: a person's seeds. grid: a person's prompts.
    """

    drawn: list[Job]
    main: Int[np.ndarray, "n"]
    diversity: Int[np.ndarray, "_n s"]
    grid: Int[np.ndarray, "_n p"]


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

    def jobs(self, num_people: int, num_prompts: int) -> Jobs:
        """What is to be drawn of so many people and prompts."""
        diverse, shown = min(self.num_diversity_people, num_people), min(self.num_grid_people, num_people)
        main = [Job(person, person % num_prompts, 0) for person in range(num_people)]
        diversity = [[main[person]._replace(seed=seed) for seed in range(self.num_seeds)] for person in range(diverse)]
        grid = [[Job(person, prompt, 0) for prompt in range(self.num_grid_prompts)] for person in range(shown)]
        drawn = list(dict.fromkeys([*main, *sum(diversity, []), *sum(grid, [])]))
        position = {job: index for index, job in enumerate(drawn)}
        return Jobs(
            drawn=drawn,
            main=np.array([position[job] for job in main]),
            diversity=np.array([[position[job] for job in row] for row in diversity]),
            grid=np.array([[position[job] for job in row] for row in grid]),
        )
