"""How much of the floats' quality codes keep: recall against the floats and nDCG on judgements, at equal bytes.

Every method ranks the same vectors for the same queries, so differences are paired by query: their intervals come
from resampling queries within each set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, to_values, unpack
from pipeline.errors import UsageError
from pipeline.evaluation.bootstrap import interval, resampled
from pipeline.evaluation.retrieval import Qrels, query_metrics, rank

DEPTH = 100
OVERSAMPLING = 4
"""Candidates a wanted result for the last rescore by floats: fewer than a search takes, as judged sets are small."""


@dataclass(frozen=True, eq=False)
class JudgedVectors:
    """A judged set, embedded: float32[·, dims] for chunks and queries, each chunk's document number from 0."""

    name: str
    documents: NDArray[np.float32]
    owners: NDArray[np.int64]
    ids: Sequence[str]
    queries: NDArray[np.float32]
    query_ids: Sequence[str]
    qrels: Qrels


Kind = Literal["ndcg", "recall10", "recall100", "rescored_ndcg", "rescored_recall10"]
"""A measure by its name in `Measured`."""

Ranked = NDArray[np.int64]
"""Document numbers int64[queries, n], best first; −1 where a method found fewer."""


@dataclass(frozen=True)
class Method:
    """A way to rank: `bytes` is what a vector takes in memory, rank(set, k) gives the k best documents a query.

    `trained` says whether its codes were learned.
    """

    name: str
    bytes: int
    rank: Callable[[JudgedVectors, int], Ranked]
    trained: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """One method on one set, a value a judged query: nDCG@10, recall@10 and @100 of what the floats find.

    `rescored` the same after the best OVERSAMPLING · 10 documents were ranked again by the floats.
    """

    method: Method
    ndcg: NDArray[np.float64]
    recall10: NDArray[np.float64]
    recall100: NDArray[np.float64]
    rescored_ndcg: NDArray[np.float64]
    rescored_recall10: NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One method over all sets; means over sets of means over queries.

    kept, rescored_kept: nDCG@10 as a share of the floats', without and with rescore; gain, rescored_gain: nDCG@10 over
    the best untrained method of no more bytes. Intervals are of 95 %.
    """

    method: str
    bytes: int
    trained: bool
    ndcg: float
    kept: float
    kept_interval: tuple[float, float]
    recall10: float
    recall100: float
    rescored_kept: float
    rescored_recall10: float
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    rescored_gain: float | None = None
    rescored_gain_interval: tuple[float, float] | None = None


def floats(width: int) -> Method:
    """The vectors themselves, which all else is measured against."""

    def ranked(judged: JudgedVectors, k: int) -> Ranked:
        return rank(judged.queries, judged.documents, judged.owners, k)[0]

    return Method("float32", 4 * width, ranked)


def coded(
    name: str,
    make: Callable[[JudgedVectors], Binarizer],
    query: Literal["code", "float"],
    size: int,
    trained: bool = False,
) -> Method:
    """Rank by codes: coded queries (symmetric) or float ones. `make` gives the binarizer for a set's vectors."""

    def ranked(judged: JudgedVectors, k: int) -> Ranked:
        binarizer = make(judged)
        bits = binarizer.spec.bits
        codes = binarizer.encode(judged.documents)
        documents = to_values(unpack(codes.packed, bits)).astype(np.float32)
        if query == "float":
            return rank(
                binarizer.project(judged.queries), documents * codes.scale[:, None], judged.owners, k
            )[0]
        documents /= np.linalg.norm(documents, axis=1, keepdims=True)
        queries = to_values(unpack(binarizer.encode(judged.queries).packed, bits)).astype(np.float32)
        return rank(queries, documents, judged.owners, k)[0]

    return Method(name, size, ranked, trained)


def restored(
    name: str,
    make: Callable[[JudgedVectors], tuple[NDArray[np.float32], NDArray[np.float32]]],
    size: int,
) -> Method:
    """Rank float queries on compressed vectors as they come back: `make` gives queries and documents."""

    def ranked(judged: JudgedVectors, k: int) -> Ranked:
        queries, documents = make(judged)
        return rank(queries, documents, judged.owners, k)[0]

    return Method(name, size, ranked)


def measure(method: Method, judged: JudgedVectors) -> Measured:
    """Rank a set by a method, and its best candidates again by the floats."""
    exact = rank(judged.queries, judged.documents, judged.owners, len(judged.ids))[0]
    found = method.rank(judged, max(DEPTH, OVERSAMPLING * 10))
    place = np.empty_like(exact)
    np.put_along_axis(place, exact, np.arange(exact.shape[1])[None, :], axis=1)
    candidates = found[:, : OVERSAMPLING * 10]
    places = np.where(candidates < 0, len(judged.ids), np.take_along_axis(place, candidates, axis=1))
    again = np.take_along_axis(candidates, np.argsort(places, axis=1), axis=1)
    rows = [
        row
        for row, query in enumerate(judged.query_ids)
        if any(g > 0 for g in judged.qrels.get(query, {}).values())
    ]
    return Measured(
        method,
        _ndcg(found, judged),
        _recall(found, exact, 10)[rows],
        _recall(found, exact, 100)[rows],
        _ndcg(again, judged),
        _recall(again, exact, 10)[rows],
    )


def summarise(
    measured: Mapping[str, Sequence[Measured]], reference: Sequence[Measured], seed: int = 0
) -> list[Row]:
    """One row a method, from its measurements on each set and those of the floats, in the order of bytes.

    Raises UsageError where the floats find nothing that is relevant.
    """
    drawn = _resampled(reference, "ndcg", seed)
    if not drawn.any():
        raise UsageError(
            "judgements of whose documents the floats find none",
            "An encoder that finds some of what is relevant: shares of nothing say nothing",
            "Check --encoder and --qrels",
        )
    rows = [_row(name, measured, reference, drawn, seed) for name in measured]
    return sorted(rows, key=lambda row: (row.bytes, row.method))


def _row(
    name: str,
    measured: Mapping[str, Sequence[Measured]],
    reference: Sequence[Measured],
    drawn: NDArray[np.float64],
    seed: int,
) -> Row:
    """A method's row; `drawn` float64[resamples]: the floats' nDCG@10, resampled."""
    sets, truth = measured[name], _means(reference, "ndcg")
    some = drawn > 0  # few queries, drawn again, may be only those for which the floats find nothing
    kinds: tuple[Kind, ...] = ("ndcg", "rescored_ndcg")
    rivals = [_best_untrained(measured, name, kind) for kind in kinds]
    plain, again = (
        difference(sets, measured[other], kind, seed) if other else (None, None)
        for kind, other in zip(kinds, rivals, strict=True)
    )
    return Row(
        name,
        sets[0].method.bytes,
        sets[0].method.trained,
        _means(sets, "ndcg"),
        _means(sets, "ndcg") / truth,
        interval(_resampled(sets, "ndcg", seed)[some] / drawn[some]),
        _means(sets, "recall10"),
        _means(sets, "recall100"),
        _means(sets, "rescored_ndcg") / truth,
        _means(sets, "rescored_recall10"),
        *plain,
        *again,
    )


def _best_untrained(measured: Mapping[str, Sequence[Measured]], name: str, kind: Kind) -> str | None:
    """The untrained method that a trained one of as many bytes is held against."""
    method = measured[name][0].method
    if not method.trained:
        return None
    rivals = [
        other
        for other, sets in measured.items()
        if not sets[0].method.trained and sets[0].method.bytes <= method.bytes
    ]
    return max(rivals, key=lambda other: _means(measured[other], kind), default=None)


def difference(
    ours: Sequence[Measured], theirs: Sequence[Measured], kind: Kind, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """By how much one method is better than another on the same sets, with its 95 % interval."""
    drawn = _resampled(ours, kind, seed) - _resampled(theirs, kind, seed)
    return _means(ours, kind) - _means(theirs, kind), interval(drawn)


def _resampled(sets: Sequence[Measured], kind: Kind, seed: int) -> NDArray[np.float64]:
    return resampled([getattr(one, kind) for one in sets], seed)


def _means(sets: Sequence[Measured], kind: Kind) -> float:
    return float(np.mean([getattr(one, kind).mean() for one in sets]))


def _ndcg(found: Ranked, judged: JudgedVectors) -> NDArray[np.float64]:
    run = {
        query: [judged.ids[n] for n in row if n >= 0]
        for query, row in zip(judged.query_ids, found.tolist(), strict=True)
    }
    each = query_metrics(run, {query: judged.qrels.get(query, {}) for query in judged.query_ids})
    return np.array([values["ndcg@10"] for values in each.values()])


def _recall(found: Ranked, exact: Ranked, k: int) -> NDArray[np.float64]:
    """The share of the floats' k best that are among the k best found."""
    k = min(k, exact.shape[1])
    pairs = zip(found[:, :k], exact[:, :k], strict=True)
    return np.array([len(np.intersect1d(*pair)) / k for pair in pairs])
