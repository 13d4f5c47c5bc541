"""Nearest points, many queries in one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from pipeline.stores.store import Store

# Keeps an answer of 100 hits a query with full payloads within a few megabytes.
_QUERIES_PER_REQUEST = 32


@dataclass(frozen=True)
class Hit:
    """A point that was found; `score` is the collection's distance, better first."""

    id: str
    score: float
    payload: dict[str, Any]


def nearest(
    store: Store,
    collection_name: str,
    vectors: NDArray[np.float32],
    limit: int,
    where: models.Filter | None = None,
    vector_name: str = "",
    with_payload: bool | Sequence[str] = True,
) -> list[list[Hit]]:
    """For each row of `vectors` (float32[n, dim]) the `limit` nearest points that match, best first.

    `with_payload` may name the keys of the payload that are wanted.
    """
    answers = []
    payload = with_payload if isinstance(with_payload, bool) else list(with_payload)
    for rows in _pieces(vectors.tolist()):
        requests = [
            models.QueryRequest(
                query=row, using=vector_name or None, filter=where, limit=limit, with_payload=payload
            )
            for row in rows
        ]
        answers.extend(store.query_batch_points(collection_name, requests))
    return [[Hit(str(hit.id), hit.score, hit.payload or {}) for hit in answer.points] for answer in answers]


def _pieces(rows: Sequence[list[float]]) -> Iterator[Sequence[list[float]]]:
    for start in range(0, len(rows), _QUERIES_PER_REQUEST):
        yield rows[start : start + _QUERIES_PER_REQUEST]
