"""Nearest points, many queries in one request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from pipeline.stores.collection import CODES
from pipeline.stores.store import Store, payload_keys

# Keeps an answer of 100 hits a query with full payloads within a few megabytes.
_QUERIES_PER_REQUEST = 32

_LEAST_EF = 128
"""How many of a graph's points a search in codes keeps at least while it walks; Qdrant's own default is 100."""


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
    exact: bool = False,
) -> list[list[Hit]]:
    """For each row of `vectors` (float32[n, dim]) the `limit` nearest points that match, best first.

    `with_payload` may name the keys of the payload that are wanted; `exact`: without a graph, all vectors compared.
    """
    payload = payload_keys(with_payload)
    params = models.SearchParams(exact=True) if exact else None
    requests = (
        models.QueryRequest(
            query=row.tolist(),
            using=vector_name or None,
            filter=where,
            params=params,
            limit=limit,
            with_payload=payload,
        )
        for row in vectors
    )
    return _ask(store, collection_name, requests)


@dataclass(frozen=True)
class CodedQueries:
    """Queries for codes: `rows` float32[n, bits · dims] from `query_rows`, and `full` float32[n, dims] or None.

    `oversampling` candidates a wanted point, found by the bits in memory, are ranked again, once: by the vectors called
    `full_name`, or by the codes with their scale where `full` is None. Ranking by codes before vectors was measured:
    it finds no more, and reads more from the disk (tests/benchmarks/codes_search.py).
    """

    rows: NDArray[np.float32]
    full: NDArray[np.float32] | None
    full_name: str
    oversampling: float

    def requests(
        self, limit: int, where: models.Filter | None, with_payload: bool | list[str], exact: bool
    ) -> Iterator[models.QueryRequest]:
        """One request a query."""
        wanted = math.ceil(self.oversampling * limit)
        # Walking the graph takes memory alone; what is read from the disk are the candidates.
        params = models.SearchParams(
            exact=exact,
            hnsw_ef=max(_LEAST_EF, 2 * wanted),
            quantization=models.QuantizationSearchParams(
                rescore=self.full is None, oversampling=self.oversampling if self.full is None else None
            ),
        )
        if self.full is None:
            for row in self.rows:
                yield models.QueryRequest(
                    query=row.tolist(),
                    using=CODES,
                    filter=where,
                    params=params,
                    limit=limit,
                    with_payload=with_payload,
                )
            return
        for row, full in zip(self.rows, self.full, strict=True):
            candidates = models.Prefetch(
                query=row.tolist(), using=CODES, filter=where, params=params, limit=wanted
            )
            yield models.QueryRequest(
                prefetch=candidates,
                query=full.tolist(),
                using=self.full_name,
                limit=limit,
                with_payload=with_payload,
            )


def nearest_by_codes(
    store: Store,
    collection_name: str,
    queries: CodedQueries,
    limit: int,
    where: models.Filter | None = None,
    with_payload: bool | Sequence[str] = True,
    exact: bool = False,
) -> list[list[Hit]]:
    """For each query the `limit` nearest points by their codes, best first, as `nearest` gives them."""
    requests = queries.requests(limit, where, payload_keys(with_payload), exact)
    return _ask(store, collection_name, requests)


def _ask(store: Store, collection_name: str, requests: Iterable[models.QueryRequest]) -> list[list[Hit]]:
    answers = []
    waiting = iter(requests)
    while some := list(itertools.islice(waiting, _QUERIES_PER_REQUEST)):
        answers.extend(store.query_batch_points(collection_name, some))
    return [[Hit(str(hit.id), hit.score, hit.payload or {}) for hit in answer.points] for answer in answers]
