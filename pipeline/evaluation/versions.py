"""Two encoders and the bridges between them on one judged set: which queries find what in which index.

M(q, d) is written q/d, the encoder of queries before that of documents. The bar is that of backward-compatible training
(Shen et al., CVPR 2020): new queries on old documents must find more than old queries did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.bootstrap import paired
from pipeline.evaluation.codes import JudgedVectors
from pipeline.evaluation.retrieval import query_metrics, rank
from pipeline.versions import Bridge
from pipeline.versions.maps import Vectors

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

_AT = 10
_DEPTH = 100
_SEEDS = 3


@dataclass(frozen=True, eq=False)
class JudgedPair:
    """A judged set embedded by both encoders: the same chunks and queries, in the same order."""

    old: JudgedVectors
    new: JudgedVectors


@dataclass(frozen=True, eq=False)
class Way:
    """How new queries meet old and new documents in one comparison: float32[·, width] each.

    chosen: the one that the bridge has in force. old_queries: old queries where they can be compared, too.
    """

    name: str
    queries: Vectors
    old_documents: Vectors
    new_documents: Vectors
    old_queries: Vectors | None = None
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """What a query finds, one value each: nDCG@10, recall@10; the shares of new documents found, and relevant."""

    ndcg: NDArray[np.float64]
    recall: NDArray[np.float64]
    new_found: NDArray[np.float64]
    new_relevant: NDArray[np.float64]


def ways_of(bridge: Bridge, pair: JudgedPair) -> Iterator[Way]:
    """Every map of a bridge in its direction, and the chosen one asked with both encoders' queries.

    "document": old documents go into the new space; "query": new queries go into the old one, so new documents answer
    in theirs, and the two lists are merged by score.
    """
    old, new = pair.old, pair.new
    for name, each in bridge.maps["document"].items():
        chosen = name == bridge.spec.document
        documents = each(old.documents)
        yield Way(f"document {name}", new.queries, documents, new.documents, each(old.queries), chosen)
        if chosen:
            asked = bridge.both(new.queries, old.queries)
            yield Way(f"document {name}, both encoders ask", asked, documents, new.documents)
    for name, each in bridge.maps["query"].items():
        asked = np.concatenate([each(new.queries), new.queries], axis=1)
        yield Way(f"query {name}", asked, *_side_by_side(old.documents, new.documents))


@dataclass(frozen=True, eq=False)
class Crossed:
    """What a way finds on one set.

    turned: old queries in new documents, where such queries can be compared; mixed: new queries in indexes of which the
    share `shares[i]` of documents is new.
    """

    way: Way
    turned: Found | None
    shares: Sequence[float]
    mixed: Sequence[Found]


def measure_versions(pair: JudgedPair, ways: Sequence[Way], seed: int = 0) -> dict[str, Any]:
    """The matrix of a judged set as JSON values.

    old/old and new/new (of encoders that know nothing of each other), then for each way new/old, old/new where there is
    one, and new queries on indexes of which a share of the documents, drawn at random a few times, is new. Differences
    are from old/old, with 95 % intervals from resampling queries. `recovered`: the part of what new/new gains over
    old/old that new/old gains; None where it gains nothing.
    """
    return matrix(pair, [cross(way, pair.new, SHARES, seed) for way in ways], seed)


def cross(way: Way, judged: JudgedVectors, shares: Sequence[float], seed: int = 0) -> Crossed:
    """Measure a way; `shares` of new documents begin with 0, which is new/old."""
    turned = None
    if way.old_queries is not None:
        turned = found_by(way.old_queries, way.new_documents, judged)
    return Crossed(way, turned, shares, [_mixed(way, judged, share, seed) for share in shares])


def matrix(pair: JudgedPair, crossed: Sequence[Crossed], seed: int = 0) -> dict[str, Any]:
    """What `measure_versions` gives, of ways that were measured."""
    old = found_by(pair.old.queries, pair.old.documents, pair.old)
    new = found_by(pair.new.queries, pair.new.documents, pair.new)
    return {
        "queries": len(old.ndcg),
        "old/old": _cell(old, None, seed),
        "new/new": _cell(new, old, seed),
        "ways": [_said(each, old, new, seed) for each in crossed],
    }


def found_by(
    queries: Vectors, documents: Vectors, judged: JudgedVectors, new: NDArray[np.bool_] | None = None
) -> Found:
    """Rank documents, by their best chunk, for every judged query; new bool[documents]: which of them are new."""
    best = rank(queries, documents, judged.owners, _DEPTH)[0]
    rows = zip(judged.query_ids, best.tolist(), strict=True)
    run = {query: [judged.ids[n] for n in row] for query, row in rows}
    qrels = {query: judged.qrels.get(query, {}) for query in judged.query_ids}
    ndcg = {query: each["ndcg@10"] for query, each in query_metrics(run, qrels).items()}
    is_new = dict(zip(judged.ids, (np.zeros(len(judged.ids)) if new is None else new).tolist(), strict=True))
    recall, found, relevant = [], [], []
    for query in ndcg:
        right = {document for document, grade in qrels[query].items() if grade > 0}
        top = run[query][:_AT]
        recall.append(len(right.intersection(top)) / len(right))
        found.append(np.mean([is_new[document] for document in top]))
        relevant.append(np.mean([is_new.get(document, 0.0) for document in right]))
    return Found(np.array(list(ndcg.values())), *(np.array(each) for each in (recall, found, relevant)))


def _said(crossed: Crossed, old: Found, new: Found, seed: int) -> dict[str, Any]:
    gap = float(new.ndcg.mean() - old.ndcg.mean())
    gained = float(crossed.mixed[0].ndcg.mean() - old.ndcg.mean())
    said: dict[str, Any] = {"way": crossed.way.name, "chosen": crossed.way.chosen}
    said["new/old"] = _cell(crossed.mixed[0], old, seed)
    if crossed.turned is not None:
        said["old/new"] = _cell(crossed.turned, old, seed)
    said["recovered"] = round(gained / gap, 4) if gap > 0 else None
    said["mixed"] = [
        {"new": share, **_cell(each, old, seed), "new_found": _mean(each.new_found)}
        | {"new_relevant": _mean(each.new_relevant)}
        for share, each in zip(crossed.shares, crossed.mixed, strict=True)
    ]
    return said | {"verdict": _verdict(said, crossed, seed)}


def _verdict(said: dict[str, Any], crossed: Crossed, seed: int) -> dict[str, Any]:
    """What a gate asks: better than before, never worse, and no worse for more new documents."""
    steps = [paired(after.ndcg - before.ndcg, seed) for before, after in pairwise(crossed.mixed)]
    return {
        "beats_old": said["new/old"]["interval"][0] > 0,
        "not_below_old": said["new/old"]["interval"][1] >= 0,
        "mixed_below_old": [row["new"] for row in said["mixed"] if row["difference"] < 0],
        "mixed_worse_than_old": [row["new"] for row in said["mixed"] if row["interval"][1] < 0],
        "falls_after": [share for share, step in zip(crossed.shares, steps, strict=False) if step.high < 0],
    }


def _mixed(way: Way, judged: JudgedVectors, share: float, seed: int) -> Found:
    """New queries on an index of which `share` of the documents is new: the mean over a few draws."""
    draws = []
    for number in range(_SEEDS if 0 < share < 1 else 1):
        order = np.random.default_rng([seed, number]).permutation(len(judged.ids))
        new = order < round(share * len(order))
        chunks = np.where(new[judged.owners][:, None], way.new_documents, way.old_documents)
        draws.append(found_by(way.queries, chunks, judged, new))
    fields = ("ndcg", "recall", "new_found", "new_relevant")
    return Found(*(np.mean([getattr(draw, field) for draw in draws], axis=0) for field in fields))


def _cell(found: Found, old: Found | None, seed: int) -> dict[str, Any]:
    said: dict[str, Any] = {"ndcg@10": _mean(found.ndcg), "recall@10": _mean(found.recall)}
    if old is not None:
        more = paired(found.ndcg - old.ndcg, seed)
        said |= {"difference": round(more.mean, 5), "interval": [round(more.low, 5), round(more.high, 5)]}
    return said


def _side_by_side(old: Vectors, new: Vectors) -> tuple[Vectors, Vectors]:
    """Old and new documents in one space in which each answers for itself: [old, 0] and [0, new]."""
    return (
        np.concatenate([old, np.zeros_like(new)], axis=1),
        np.concatenate([np.zeros_like(old), new], axis=1),
    )


def _mean(values: NDArray[np.float64]) -> float:
    return round(float(values.mean()), 5)
