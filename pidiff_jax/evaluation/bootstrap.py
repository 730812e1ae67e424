"""Bootstrap intervals of means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: Float[np.ndarray, "n"] | Int[np.ndarray, "n"] | Bool[np.ndarray, "n"],
    *,
    confidence: float = 0.95,
    num_resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """The mean and its percentile interval from resampling the values, which should be one per person.

    Values of one person (several pictures) belong together: average them first. The same seed gives the same interval.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Raises:
        ValueError: there are no values, or some aren't finite.
    """
    from scipy import stats  # here, because it takes half a second that no start of a run should wait for

    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"expected at least one value, all finite, got {values}; look at the pictures that were scored"
        )
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, mean, mean)  # nothing to resample
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=num_resamples, method="percentile", rng=seed
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
