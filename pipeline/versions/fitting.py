"""Fitting a bridge on vectors that both encoders made of the same texts; held-out retrieval chooses the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EncoderError
from pipeline.versions.balance import balance, native_share
from pipeline.versions.bridge import Bridge, BridgeSpec, Direction, check_vectors
from pipeline.versions.maps import Map, Vectors, anchors, kernel, low_rank, procrustes, ridge, to_unit

LEAST_TEXTS = 100

_FOLDS = 4
_AT = 10
_MOST_QUERIES = 1000

Fit = Callable[[Vectors, Vectors], Map]
Note = Callable[[str], None]
"""Called with what is being fitted, before it is."""


@dataclass(frozen=True)
class BridgeOptions:
    """The versions and sources of both encoders, for the bridge's folder; the seed picks what is held out.

    trained: also train a residual layer by the new encoder's ranking, which loads torch and takes a minute.
    """

    old_version: str = ""
    new_version: str = ""
    old_model: str = ""
    new_model: str = ""
    seed: int = 0
    trained: bool = False


@dataclass(frozen=True, eq=False)
class Pairs:
    """Vectors of the same texts by both encoders, of length 1: float32[n, d_old], float32[n, d_new].

    The first `texts` rows are documents, the rest queries; owners int64[n]: the document that a row is or comes from.
    """

    old: Vectors
    new: Vectors
    texts: int
    owners: NDArray[np.int64]

    @property
    def asked(self) -> NDArray[np.int64]:
        """The rows that are asked with when something is measured: the queries, or the documents themselves."""
        rows = np.arange(self.texts, len(self.old)) if len(self.old) > self.texts else np.arange(self.texts)
        return rows[:: max(1, len(rows) // _MOST_QUERIES)][:_MOST_QUERIES]

    @property
    def hidden(self) -> NDArray[np.int64]:
        """For each row of `asked` the document that it does not find, being that document; −1: none."""
        return np.where(self.asked < self.texts, self.asked, -1)


def fit_bridge(
    old: Vectors,
    new: Vectors,
    options: BridgeOptions,
    asked: tuple[Vectors, Vectors] | None = None,
    note: Note = lambda _method: None,
) -> Bridge:
    """Fit a bridge on float32[n, d_old] and float32[n, d_new], row i of both from one text.

    asked: queries by both encoders, float32[n, d_old] and float32[n, d_new], row i made of text i (its first sentence,
    say): maps that only saw documents are weak on queries. Each method is fitted on three quarters of the texts and
    maps the last one, in turn; that which then finds most of the new encoder's own ten nearest documents is chosen, and
    all are fitted again on everything and balanced against native vectors. The same vectors and seed give the same
    bridge. Raises EncoderError for too few texts, NaN, or the same encoder twice.
    """
    pairs = _pairs(old, new, asked, options)
    maps: dict[Direction, dict[str, Map]] = {"document": {}, "query": {}}
    figures: dict[str, dict[str, dict[str, float]]] = {"document": {}, "query": {}}
    for name, fit in _methods(options).items():
        note(name)
        mapped = _held_out(fit, pairs, options.seed)[: pairs.texts]
        maps["document"][name], figures["document"][name] = _balanced(
            fit(pairs.old, pairs.new), mapped, pairs
        )
    for name, fit in _closed_forms().items():
        note(f"{name}, queries")
        back = Pairs(pairs.new, pairs.old, pairs.texts, pairs.owners)
        found = recall(_held_out(fit, back, options.seed)[pairs.asked], pairs.old[: pairs.texts], pairs)
        maps["query"][name] = fit(pairs.new, pairs.old)
        figures["query"][name] = {"recall@10": round(found, 4)}
    return Bridge(_spec(options, pairs, figures), maps, figures)


def _spec(
    options: BridgeOptions, pairs: Pairs, figures: dict[str, dict[str, dict[str, float]]]
) -> BridgeSpec:
    """What the bridge joins, with the method in each direction that finds most."""
    best = {way: max(of, key=lambda name: of[name]["recall@10"]) for way, of in figures.items()}
    return BridgeSpec(
        options.old_version,
        options.new_version,
        options.old_model,
        options.new_model,
        pairs.old.shape[1],
        pairs.new.shape[1],
        best["document"],
        best["query"],
    )


def recall(queries: Vectors, documents: Vectors, pairs: Pairs) -> float:
    """Of the ten documents nearest to each query by the new encoder, the share found by these vectors.

    queries float32[q, d] for the rows `pairs.asked`, documents float32[texts, d].
    """
    asked, hidden = pairs.asked, pairs.hidden
    exact, scores = pairs.new[asked] @ pairs.new[: pairs.texts].T, queries @ documents.T
    own = np.flatnonzero(hidden >= 0)
    exact[own, hidden[own]] = scores[own, hidden[own]] = -np.inf
    best, found = (np.argpartition(-of, _AT, axis=1)[:, :_AT] for of in (exact, scores))
    return float(np.mean([len(np.intersect1d(*pair)) / _AT for pair in zip(best, found, strict=True)]))


def _closed_forms() -> dict[str, Fit]:
    return {
        "anchors": anchors,
        "procrustes": procrustes,
        "ridge": ridge,
        "low-rank": low_rank,
        "kernel": kernel,
    }


def _methods(options: BridgeOptions) -> dict[str, Fit]:
    """How documents may be mapped, by name."""
    if not options.trained:
        return _closed_forms()
    from pipeline.versions.tuning import perceptron  # torch takes seconds to import

    def residual(source: Vectors, target: Vectors) -> Map:
        return perceptron(procrustes(source, target), source, target, options.seed)

    return _closed_forms() | {"residual": residual}


def _held_out(fit: Fit, pairs: Pairs, seed: int) -> Vectors:
    """float32[n, d_out]: each row mapped by a map that saw neither it nor anything of its document."""
    mapped = np.empty((len(pairs.old), pairs.new.shape[1]), np.float32)
    for held, kept in _folds(pairs, seed):
        mapped[held] = fit(pairs.old[kept], pairs.new[kept])(pairs.old[held])
    return mapped


def _folds(pairs: Pairs, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    fold = np.random.default_rng(seed).permutation(pairs.texts) % _FOLDS
    for number in range(_FOLDS):
        out = fold[pairs.owners] == number
        yield np.flatnonzero(out), np.flatnonzero(~out)


def _balanced(fitted: Map, mapped: Vectors, pairs: Pairs) -> tuple[Map, dict[str, float]]:
    """The map on one scale with native vectors, and what held-out documents say of it."""
    native, asked = pairs.new[: pairs.texts], pairs.new[pairs.asked]
    made = balance(fitted, mapped, native, asked, pairs.hidden)
    mixed = made.mixed(mapped)
    halves = np.random.default_rng(1).permutation(len(native)) % 2 == 0
    shares = [
        native_share(np.where(halves[:, None], native, rows), halves, asked, pairs.hidden)
        for rows in (mapped, mixed)
    ]
    return made, {
        "recall@10": round(recall(asked, mixed, pairs), 4),
        "cosine": round(float((mapped * native).sum(axis=1).mean()), 4),
        "native_share": round(shares[1], 4),
        "native_share_unbalanced": round(shares[0], 4),
    }


def _pairs(
    old: Vectors, new: Vectors, asked: tuple[Vectors, Vectors] | None, options: BridgeOptions
) -> Pairs:
    if options.old_version and options.old_version == options.new_version:
        raise EncoderError(
            f"{options.old_model} twice, version {options.old_version[:12]}",
            "Two encoders of different versions",
            "Nothing has to be bridged: their vectors can be compared",
        )
    for documents, queries, whose in zip((old, new), asked or (None, None), ("old", "new"), strict=True):
        for rows in (documents,) if queries is None else (documents, queries):
            check_vectors(rows, documents.shape[-1], f"the {whose} encoder")
    counts = [len(rows) for rows in (old, new, *(asked or ()))]
    if len(set(counts)) > 1 or len(old) < LEAST_TEXTS:
        raise EncoderError(
            f"{len(old)} vectors of the old encoder, {len(new)} of the new one",
            f"One of each for the same texts, of at least {LEAST_TEXTS}",
            "Give a larger --sample: 2,000 texts of the collection itself are a good start",
        )
    stacked = [to_unit(rows) for rows in (old, new)]
    owners = np.arange(len(old))
    if asked:
        stacked = [np.concatenate([rows, to_unit(more)]) for rows, more in zip(stacked, asked, strict=True)]
        owners = np.concatenate([owners, owners])
    return Pairs(stacked[0].astype(np.float32), stacked[1].astype(np.float32), len(old), owners)
