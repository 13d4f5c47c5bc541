"""How one set of stored vectors differs from another: of two versions, or of one collection at two times.

Computed from samples alone. Where spaces differ, so do means and covariances, and nothing is wrong with that: what can
then be compared are neighbours, lengths and the shape of the spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

AT = 10
_EIGEN = 10  # directions compared
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Sample:
    """Points drawn from a collection, one row each: ids, vectors float32[n, dims], code points of their chunks.

    versions: each point's encoder version.
    """

    name: str
    ids: NDArray[np.str_]
    vectors: NDArray[np.float32]
    lengths: NDArray[np.int64]
    versions: NDArray[np.str_]

    def of_version(self, version: str) -> Sample:
        """The points of one encoder version."""
        those = self.versions == version
        rows = (each[those] for each in (self.ids, self.vectors, self.lengths, self.versions))
        return Sample(f"{self.name}, {version[:12]}", *rows)

    def save(self, file: Path) -> None:
        """Keep the sample, to compare a later one with it."""
        with file.open("wb") as opened:
            np.savez_compressed(opened, name=np.array(self.name), **{k: getattr(self, k) for k in _ARRAYS})

    @classmethod
    def load(cls, file: Path) -> Sample:
        """A sample that was kept; raises UsageError for anything else."""
        try:
            with np.load(file, allow_pickle=False) as held:
                return cls(str(held["name"]), *(held[name] for name in _ARRAYS))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"--against {file} cannot be read: {error}",
                "What `versions drift --save` wrote",
                "Check --against",
            ) from None


_ARRAYS = ("ids", "vectors", "lengths", "versions")


def compare_samples(before: Sample, after: Sample) -> dict[str, Any]:
    """What changed, as JSON values; None where a comparison has no meaning or nothing to compare."""
    same = before.vectors.shape[1] == after.vectors.shape[1]
    both = len(before.ids) > 1 and len(after.ids) > 1
    shared, left, right = np.intersect1d(before.ids, after.ids, return_indices=True)
    return {
        "before": _described(before),
        "after": _described(after),
        "mean_shift": _mean_shift(before.vectors, after.vectors) if same and both else None,
        "covariance": _covariance(before.vectors, after.vectors) if same and both else None,
        "shared_points": len(shared),
        "neighbour_overlap@10": _neighbour_overlap(before.vectors[left], after.vectors[right]),
        "cosine_of_shared_points": _cosine(before.vectors[left], after.vectors[right]) if same else None,
    }


def _described(sample: Sample) -> dict[str, Any]:
    versions, counts = np.unique(sample.versions, return_counts=True)
    return {
        "name": sample.name,
        "points": len(sample.ids),
        "dims": sample.vectors.shape[1],
        "encoder_versions": dict(zip(versions.tolist(), counts.tolist(), strict=True)),
        "norms": _summary(np.linalg.norm(sample.vectors.astype(np.float64), axis=1)),
        "characters": _summary(sample.lengths.astype(np.float64)),
        "effective_rank": _effective_rank(sample.vectors) if len(sample.ids) > 1 else None,
    }


def _summary(values: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    quantiles = np.quantile(values, _QUANTILES)
    named = {f"p{100 * q:g}": _round(value) for q, value in zip(_QUANTILES, quantiles, strict=True)}
    return {"mean": _round(values.mean()), "sd": _round(values.std()), **named}


def _mean_shift(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The distance of the means, in units of the root mean square distance of a vector from its mean."""
    spread = float(np.sqrt(before.astype(np.float64).var(axis=0).sum()))
    shift = float(
        np.linalg.norm(after.astype(np.float64).mean(axis=0) - before.astype(np.float64).mean(axis=0))
    )
    return _round(shift / max(spread, 1e-12))


def _covariance(before: NDArray[np.float32], after: NDArray[np.float32]) -> dict[str, float]:
    """‖Σ′ − Σ‖ / ‖Σ‖ (Frobenius), and the share of one's leading directions that lies in the span of the other's."""
    first, second = (np.atleast_2d(np.cov(each.astype(np.float64), rowvar=False)) for each in (before, after))
    count = min(_EIGEN, len(first))
    span, other = (np.linalg.eigh(each)[1][:, -count:] for each in (first, second))
    return {
        "frobenius": _round(np.linalg.norm(second - first) / max(float(np.linalg.norm(first)), 1e-12)),
        f"leading_{count}_overlap": _round(np.linalg.norm(span.T @ other) ** 2 / count),
    }


def _effective_rank(vectors: NDArray[np.float32]) -> float:
    """The exponential of the entropy of the covariance's spectrum (Roy & Vetterli, EUSIPCO 2007)."""
    spectrum = np.linalg.svd(vectors.astype(np.float64) - vectors.mean(axis=0), compute_uv=False) ** 2
    share = spectrum[spectrum > 0] / max(float(spectrum.sum()), 1e-300)
    return _round(np.exp(-(share * np.log(share)).sum()))


def _cosine(before: NDArray[np.float32], after: NDArray[np.float32]) -> float | None:
    if not len(before):
        return None
    return _round(np.einsum("ij,ij->i", _unit(before), _unit(after)).mean())


def _neighbour_overlap(before: NDArray[np.float32], after: NDArray[np.float32]) -> float | None:
    """The mean share of a point's 10 nearest among the shared points that stayed; None where there are fewer."""
    if len(before) <= AT:
        return None
    pairs = zip(_neighbours(before), _neighbours(after), strict=True)
    return _round(np.mean([len(np.intersect1d(*pair)) / AT for pair in pairs]))


def _neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64[n, 10]: the nearest others of each vector by cosine, in no order."""
    unit = _unit(vectors)
    found = np.empty((len(unit), AT), np.int64)
    for start in range(0, len(unit), _BLOCK):
        scores = unit[start : start + _BLOCK] @ unit.T
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        found[start : start + _BLOCK] = np.argpartition(-scores, AT, axis=1)[:, :AT]
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _round(value: Any) -> float:  # noqa: ANN401 - a number of numpy's
    return round(float(value), 5)
