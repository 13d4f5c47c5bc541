"""One scale for mapped and native vectors: in an index that holds both, neither is found more often than it is right.

An engine scores by cosine, so a mapped vector has nothing but its direction to be balanced with. A regression's vectors
lie where most texts lie, and score too high there: mixed with a direction in which the new encoder's vectors have
nothing, all their scores shrink alike. A rotation's scores are too low: mixed with the mean of the new encoder's
vectors, all are lifted alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.versions.maps import Map, Vectors, to_unit

_AT = 10
_MOST = 0.9
_TRIED = 12
_MOST_QUERIES = 500


def balance(fitted: Map, mapped: Vectors, native: Vectors, asked: Vectors, owners: NDArray[np.int64]) -> Map:
    """`fitted` with what its vectors are mixed with, so that half of what is found is native where half of all is.

    mapped, native float32[n, d_out]: unit vectors of n texts, mapped by maps that were fitted without them, and the new
    encoder's own. asked float32[q, d_out]: queries of the new encoder; owners int64[q]: the text that a query is itself
    and does not find, −1 for none. The same input gives the same balance.
    """
    asked, owners = asked[:_MOST_QUERIES], owners[:_MOST_QUERIES]
    halves = np.random.default_rng(0).permutation(len(native)) % 2 == 0
    scores, exact = asked @ mapped.T, asked @ native.T

    def found(share: float, direction: Vectors) -> float:
        """The share of native vectors among the ten best, over an index and its complement, if so much is mixed in."""
        kept = np.float32(np.sqrt(1 - share * share))
        lengths = np.sqrt(1 + 2 * share * kept * (mapped @ direction))
        mixed = (kept * scores + (share * (asked @ direction))[:, None]) / lengths
        tried = [_share(np.where(of, exact, mixed), of, owners) for of in (halves, ~halves)]
        return float(np.mean(tried))

    direction = _silent(native)
    if found(0.0, direction) > 0.5:
        direction = _mean(native)
    share, step = 0.0, _MOST / _TRIED
    for _ in range(2):
        tried = [share + step * number for number in range(1 - _TRIED, _TRIED + 1)]
        share = min(
            (each for each in tried if 0 <= each <= _MOST), key=lambda each: abs(found(each, direction) - 0.5)
        )
        step /= _TRIED
    return replace(fitted, aside=(share * direction).astype(np.float32))


def native_share(
    index: Vectors, native: NDArray[np.bool_], asked: Vectors, owners: NDArray[np.int64]
) -> float:
    """The share of native rows, bool[n], among the ten of `index`, float32[n, d], nearest to each query."""
    return _share(asked @ index.T, native, owners)


def _share(scores: Vectors, native: NDArray[np.bool_], owners: NDArray[np.int64]) -> float:
    own = np.flatnonzero(owners >= 0)
    scores[own, owners[own]] = -np.inf
    return float(native[np.argpartition(-scores, _AT, axis=1)[:, :_AT]].mean())


def _silent(native: Vectors) -> Vectors:
    """The unit vector that vectors float32[n, d] have least of: most encoders leave a direction or two unused."""
    wide = native.astype(np.float64)
    direction: Vectors = np.linalg.eigh(wide.T @ wide)[1][:, 0].astype(np.float32)
    return direction


def _mean(native: Vectors) -> Vectors:
    direction: Vectors = to_unit(native.mean(axis=0, keepdims=True))[0]
    return direction
