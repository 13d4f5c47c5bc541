"""Intervals from resampling queries, in pairs: what is drawn for one method is drawn for the other.

Efron & Tibshirani (1993) §13.3; for retrieval Smucker et al. (CIKM 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_AT_ONCE = 1 << 22  # numbers drawn


@dataclass(frozen=True)
class Paired:
    """The mean of differences of one value a query, with its 95 % interval."""

    mean: float
    low: float
    high: float
    queries: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(differences: NDArray[np.float64], seed: int = 0, questions: Sequence[str] | None = None) -> Paired:
    """The mean of float64[n], n > 0, one a query, and its interval.

    `questions`: what each asks; queries that ask the same, of several collections, are drawn together.
    """
    drawn = (
        resampled([differences], seed) if questions is None else _by_question(differences, questions, seed)
    )
    low, high = interval(drawn)
    return Paired(float(differences.mean()), low, high, len(differences))


def _by_question(values: NDArray[np.float64], questions: Sequence[str], seed: int) -> NDArray[np.float64]:
    """float64[2000]: the means of what questions, drawn again, have."""
    _, number, counts = np.unique(np.asarray(questions), return_inverse=True, return_counts=True)
    sums = np.bincount(number, weights=values)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (_RESAMPLES, len(sums)))
    means: NDArray[np.float64] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """What 95 % of float64[resamples] are within."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def resampled(sets: Sequence[NDArray[np.float64]], seed: int = 0) -> NDArray[np.float64]:
    """float64[2000]: the mean over sets of float64[n], one value a query, of queries drawn again within each set.

    Sets of the same sizes get the same draws by the same seed.
    """
    generator = np.random.default_rng(seed)
    drawn: NDArray[np.float64] = np.mean([_means(values, generator) for values in sets], axis=0)
    return drawn


def _means(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    step = max(1, _AT_ONCE // len(values))
    counts = [min(step, _RESAMPLES - at) for at in range(0, _RESAMPLES, step)]
    means = [
        values[generator.integers(0, len(values), (count, len(values)))].mean(axis=1) for count in counts
    ]
    return np.concatenate(means)
