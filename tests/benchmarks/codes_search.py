"""How fast codes are searched: `python tests/benchmarks/codes_search.py [--points 1000000] [--folder DIR]`.

Clustered vectors of 384 dimensions, their 2-bit codes by a random rotation, and two edge collections of them: codes
with their vectors, and float32 under HNSW. Against both, every product computed by numpy on all cores. One query at a
time; recall@10 is against those products. With --folder what was built is kept, and found again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
from qdrant_client import models

from pipeline.codes import Binarizer, CodesSpec, make_binarizer, query_rows, to_rows
from pipeline.config import StoreConfig
from pipeline.stores import CodedQueries, Hit, Points, collection, nearest, nearest_by_codes
from pipeline.stores.edge import EdgeStore

DIMS, BITS, BATCH, QUERIES, LIMIT, ROUNDS = 384, 2, 5000, 100, 10, 3
CENTRES, RANK = 5000, 64  # texts lie in clusters, and in fewer dimensions than their vectors have


def vectors(seed: int, count: int) -> np.ndarray:
    """Unit vectors float32[count, DIMS] of one distribution."""
    shape = np.random.default_rng(0)
    basis = shape.normal(size=(RANK, DIMS)).astype("f4")
    centres = shape.normal(size=(CENTRES, RANK)).astype("f4")
    draw = np.random.default_rng(seed)
    inner = centres[draw.integers(0, CENTRES, count)] + draw.normal(size=(count, RANK)).astype("f4")
    rows = inner @ basis + draw.normal(size=(count, DIMS)).astype("f4") * 2
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(store: EdgeStore, name: str, points: int, binarizer: Binarizer | None) -> str:
    """The collection of this name, filled and with its graph, made if it is not there; its physical name."""
    if held := collection.resolve(store, name):
        return held
    harness.say(f"building {name}: {points:,} points")
    spec = CodesSpec.of(binarizer) if binarizer else None
    physical = collection.create(store, name, StoreConfig(), DIMS, {}, spec)
    for start in range(0, points, BATCH):
        rows = vectors(start + 1, BATCH)
        columns = (
            {"": rows}
            if binarizer is None
            else {"codes": to_rows(binarizer.encode(rows), BITS), "full": rows}
        )
        store.upsert(physical, Points([point(n) for n in range(start, start + BATCH)], columns, [{}] * BATCH))
    store.flush()
    store.optimize(physical)
    return physical


def point(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def timed(search: Callable[[int], list[str]], truth: Sequence[set[str]]) -> dict[str, float]:
    """Milliseconds a query, the median and the 99th percentile over all rounds, and recall@10."""
    taken, kept = [], []
    for _ in range(ROUNDS):
        for query in range(QUERIES):
            since = time.perf_counter()
            found = search(query)
            taken.append(1000 * (time.perf_counter() - since))
            kept.append(len(truth[query] & set(found)) / LIMIT)
    p99 = float(np.quantile(taken, 0.99))
    return {
        "ms": round(statistics.median(taken), 2),
        "p99_ms": round(p99, 2),
        "recall@10": round(np.mean(kept), 4),
    }


def named(hits: list[list[Hit]]) -> list[str]:
    return [hit.id for hit in hits[0]]


def main() -> None:
    """Build, search and write results/codes_search.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    queries = vectors(0, QUERIES)
    binarizer = make_binarizer("rotation", vectors(7, 5000), DIMS, BITS)
    everything = np.concatenate([vectors(start + 1, BATCH) for start in range(0, options.points, BATCH)])
    with tempfile.TemporaryDirectory() as scratch:
        store = EdgeStore.open(options.folder or Path(scratch), batch_points=BATCH)
        codes = build(store, f"codes-{options.points}", options.points, binarizer)
        floats = build(store, f"floats-{options.points}", options.points, None)
        rows = query_rows(binarizer, queries)

        def brute(query: int) -> list[str]:
            scores = everything @ queries[query]
            return [point(n) for n in np.argpartition(-scores, LIMIT)[:LIMIT].tolist()]

        def coded(oversampling: float, full: bool) -> Callable[[int], list[str]]:
            def search(query: int) -> list[str]:
                one = slice(query, query + 1)
                asked = CodedQueries(rows[one], queries[one] if full else None, "full", oversampling)
                return named(nearest_by_codes(store, codes, asked, LIMIT, with_payload=False))

            return search

        def exactly(query: int) -> list[str]:
            asked = models.QueryRequest(
                query=queries[query].tolist(), limit=LIMIT, params=models.SearchParams(exact=True)
            )
            return [str(hit.id) for hit in store.query_batch_points(floats, [asked])[0].points]

        truth = [set(brute(query)) for query in range(QUERIES)]
        contestants = {
            "float32, numpy": brute,
            "float32, engine, exact": exactly,
            "float32, HNSW": lambda query: named(
                nearest(store, floats, queries[query : query + 1], LIMIT, with_payload=False)
            ),
            **{f"codes, HNSW, oversampling {n}": coded(n, False) for n in (1, 2, 4, 8)},
            **{f"codes, HNSW, oversampling {n}, then vectors": coded(n, True) for n in (1, 2, 4, 8)},
        }
        results = {name: timed(search, truth) for name, search in contestants.items()}
        store.close()
    settings = {"dims": DIMS, "bits": BITS, "queries": QUERIES, "rounds": ROUNDS, "store": "edge", "m": 16}
    dataset = {"kind": "generated, clustered", "points": options.points}
    harness.write_result("codes_search", dataset, settings, 0, results)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
