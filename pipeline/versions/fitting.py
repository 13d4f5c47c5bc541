"""Fitting a bridge on vectors that both encoders made of the same texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import EncoderError
from pipeline.versions.bridge import Bridge, BridgeSpec, check_vectors
from pipeline.versions.maps import Map, Vectors, procrustes, ridge, to_unit

LEAST_TEXTS = 100

_HELD_OUT, _MOST_HELD_OUT = 0.15, 500
_RECALL_AT = 10
_METHODS: dict[str, Callable[[Vectors, Vectors], Map]] = {"procrustes": procrustes, "ridge": ridge}


@dataclass(frozen=True)
class BridgeOptions:
    """The versions and sources of both encoders, for the bridge's folder; the seed picks the held-out texts."""

    old_version: str = ""
    new_version: str = ""
    old_model: str = ""
    new_model: str = ""
    seed: int = 0


def fit_bridge(old: Vectors, new: Vectors, options: BridgeOptions) -> Bridge:
    """Fit a bridge on float32[n, d_old] and float32[n, d_new], row i of both from one text.

    Every method is fitted on a part of the texts; the rest, as queries of the new encoder over all others, say which
    finds most of the new encoder's own ten nearest. That one is fitted again on all. The same vectors and seed give
    the same bridge. Raises EncoderError for too few texts, NaN, or the same encoder twice.
    """
    _check_pairs(old, new, options)
    old, new = to_unit(old), to_unit(new)
    order = np.random.default_rng(options.seed).permutation(len(old))
    cut = min(int(len(old) * _HELD_OUT), _MOST_HELD_OUT)
    held, kept = order[:cut], order[cut:]
    documents = {name: fit(old[kept], new[kept]) for name, fit in _METHODS.items()}
    queries = {name: fit(new[kept], old[kept]) for name, fit in _METHODS.items()}
    found = {
        "document": {name: recall(new[held], each(old), new, held) for name, each in documents.items()},
        "query": {name: recall(each(new[held]), old, new, held) for name, each in queries.items()},
    }
    best = {direction: max(of, key=lambda name: of[name]) for direction, of in found.items()}
    spec = BridgeSpec(
        options.old_version,
        options.new_version,
        options.old_model,
        options.new_model,
        old.shape[1],
        new.shape[1],
        best["document"],
        best["query"],
    )
    return Bridge(
        spec,
        {
            "document": {name: fit(old, new) for name, fit in _METHODS.items()},
            "query": {name: fit(new, old) for name, fit in _METHODS.items()},
        },
        {
            direction: {name: {"recall@10": share} for name, share in of.items()}
            for direction, of in found.items()
        },
    )


def recall(queries: Vectors, documents: Vectors, truth: Vectors, held: np.ndarray) -> float:
    """Of the ten texts nearest to each held-out text by the new encoder, the share that `queries` find in `documents`.

    queries float32[h, d], documents float32[n, d]; truth float32[n, d_new] new vectors of all texts; held int64[h].
    """
    exact, scores = truth[held] @ truth.T, queries @ documents.T
    rows = np.arange(len(held))
    exact[rows, held] = scores[rows, held] = -np.inf  # a text is no answer to itself
    best, found = (np.argpartition(-of, _RECALL_AT, axis=1)[:, :_RECALL_AT] for of in (exact, scores))
    return float(np.mean([len(np.intersect1d(*pair)) / _RECALL_AT for pair in zip(best, found, strict=True)]))


def _check_pairs(old: Vectors, new: Vectors, options: BridgeOptions) -> None:
    check_vectors(old, old.shape[-1], "the old encoder")
    check_vectors(new, new.shape[-1], "the new encoder")
    if options.old_version and options.old_version == options.new_version:
        raise EncoderError(
            f"{options.old_model} twice, version {options.old_version[:12]}",
            "Two encoders of different versions",
            "Nothing has to be bridged: their vectors can be compared",
        )
    if len(old) != len(new) or len(old) < LEAST_TEXTS:
        raise EncoderError(
            f"{len(old)} vectors of the old encoder, {len(new)} of the new one",
            f"One of each for the same texts, of at least {LEAST_TEXTS}",
            "Give a larger --sample: 2,000 texts like those in the collection are a good start",
        )
