"""How fast codes are searched: `python tests/benchmarks/codes_search.py [--points 1000000] [--folder DIR]`.

Clustered vectors of 384 dimensions, their codes by a random rotation, and edge collections of them: codes of one and of
two bits with their vectors, the same without a graph, and float32 under HNSW. Each is built and searched in a process
of its own, whose memory is that collection's. Against them, every product computed by numpy on all cores. One query at
a time; recall@10 is against those products. With --folder what was built is kept, and found again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from qdrant_client import models

from pipeline.codes import Binarizer, CodesSpec, make_binarizer, query_rows, to_rows
from pipeline.config import HnswConfig, StoreConfig
from pipeline.stores import CodedQueries, Points, collection, nearest, nearest_by_codes
from pipeline.stores.edge import EdgeStore

DIMS, BATCH, QUERIES, LIMIT, ROUNDS = 384, 5000, 100, 10, 2
CENTRES, RANK = 5000, 64  # texts lie in clusters, and in fewer dimensions than their vectors have
KINDS = ("float32", "384x2", "384x1", "384x2 without a graph")
SWEEP = (1, 2, 4, 8, 16)

Search = Callable[[int], list[str]]


def vectors(seed: int, count: int) -> np.ndarray:
    """Unit vectors float32[count, DIMS] of one distribution."""
    shape = np.random.default_rng(0)
    basis = shape.normal(size=(RANK, DIMS)).astype("f4")
    centres = shape.normal(size=(CENTRES, RANK)).astype("f4")
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((count, RANK), dtype="f4")
    inner = centres[draw.integers(0, CENTRES, count)] + noise
    rows = inner @ basis + draw.standard_normal((count, DIMS), dtype="f4") * 2
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def binarizer_of(kind: str) -> Binarizer | None:
    """The codes of a kind of collection; None where it holds floats."""
    found = re.match(r"(\d+)x(\d)", kind)
    return make_binarizer("rotation", vectors(7, 5000), int(found[1]), int(found[2])) if found else None


def build(store: EdgeStore, kind: str, points: int) -> tuple[str, dict[str, float]]:
    """The collection of this kind, made if it is not there; its physical name, and the seconds that it took."""
    name = f"{kind.replace(' ', '-')}-{points}"
    if held := collection.resolve(store, name):
        return held, {}
    harness.say(f"building {name}")
    binarizer = binarizer_of(kind)
    config = StoreConfig(hnsw=HnswConfig(m=0)) if "without" in kind else StoreConfig()
    spec = CodesSpec.of(binarizer) if binarizer else None
    physical = collection.create(store, name, config, DIMS, {}, spec)
    since = time.perf_counter()
    for start in range(0, points, BATCH):
        rows = vectors(start + 1, BATCH)
        columns = {"": rows}
        if binarizer:
            columns = {"codes": to_rows(binarizer.encode(rows), binarizer.spec.bits), "full": rows}
        ids = [point(n) for n in range(start, start + BATCH)]
        store.upsert(physical, Points(ids, columns, [{}] * BATCH))
    store.flush()
    filled = time.perf_counter()
    store.optimize(physical)
    store.flush()
    return physical, {"fill_s": round(filled - since), "optimize_s": round(time.perf_counter() - filled)}


def point(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def timed(search: Search, truth: Sequence[set[str]]) -> dict[str, float]:
    """Queries a second, milliseconds a query (median, 99th percentile, of all cores' time) and recall@10.

    The first round warms up and is not counted.
    """
    taken, kept, busy = [], [], 0.0
    for number in range(ROUNDS + 1):
        if number == 1:
            busy = time.process_time()
        for query in range(QUERIES):
            since = time.perf_counter()
            found = search(query)
            if number:
                taken.append(1000 * (time.perf_counter() - since))
                kept.append(len(truth[query] & set(found)) / LIMIT)
    return {
        "queries_s": round(1000 / float(np.mean(taken)), 1),
        "p50_ms": round(float(np.median(taken)), 2),
        "p99_ms": round(float(np.quantile(taken, 0.99)), 2),
        "cpu_ms": round(1000 * (time.process_time() - busy) / len(taken), 2),
        "recall@10": round(float(np.mean(kept)), 4),
    }


def contestants(store: EdgeStore, physical: str, kind: str) -> dict[str, Search]:
    """The ways to search a collection, by name."""
    queries = vectors(0, QUERIES)
    binarizer = binarizer_of(kind)

    def ask(request: models.QueryRequest) -> list[str]:
        return [str(hit.id) for hit in store.query_batch_points(physical, [request])[0].points]

    def exactly(query: int) -> list[str]:
        params = models.SearchParams(exact=True)
        return ask(models.QueryRequest(query=queries[query].tolist(), limit=LIMIT, params=params))

    def by_graph(query: int) -> list[str]:
        hits = nearest(store, physical, queries[query : query + 1], LIMIT, with_payload=False)
        return [hit.id for hit in hits[0]]

    if binarizer is None:
        return {"every product": exactly, "HNSW": by_graph}
    rows = query_rows(binarizer, queries)

    def coded(oversampling: float, full: bool) -> Search:
        def search(query: int) -> list[str]:
            one = slice(query, query + 1)
            asked = CodedQueries(rows[one], queries[one] if full else None, "full", oversampling)
            hits = nearest_by_codes(store, physical, asked, LIMIT, with_payload=False)
            return [hit.id for hit in hits[0]]

        return search

    def in_between(oversampling: int) -> Search:
        """Candidates by the bits in memory, the best of them by planes with their scale, then by vectors."""
        again = models.QuantizationSearchParams(rescore=True, oversampling=oversampling)

        def search(query: int) -> list[str]:
            candidates = models.Prefetch(
                query=rows[query].tolist(),
                using="codes",
                params=models.SearchParams(quantization=again),
                limit=oversampling * LIMIT,
            )
            wanted = queries[query].tolist()
            return ask(models.QueryRequest(prefetch=candidates, query=wanted, using="full", limit=LIMIT))

        return search

    return {
        **{f"codes alone, oversampling {n}": coded(n, False) for n in (1, 8)},
        **{f"codes, vectors, oversampling {n}": coded(n, True) for n in SWEEP},
        **{f"codes, planes, vectors, oversampling {n}": in_between(n) for n in SWEEP[1:-1]},
    }


def searched(folder: Path, kind: str, points: int) -> dict[str, Any]:
    """Seconds that a collection took to build; where it was there, searches of it, and this process's MiB."""
    store = EdgeStore.open(folder, batch_points=BATCH)
    physical, took = build(store, kind, points)
    if took:
        store.close()
        return took
    truth = [{point(n) for n in row} for row in np.load(folder / f"truth-{points}.npy").tolist()]
    found = {name: timed(search, truth) for name, search in contestants(store, physical, kind).items()}
    memory = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+)", Path("/proc/self/status").read_text()))
    store.close()
    mib = {name: int(value) // 1024 for name, value in memory.items()}
    return {"own_mib": mib["RssAnon"], "mapped_mib": mib["RssFile"], "searches": found}


def brute(folder: Path, points: int) -> dict[str, Any]:
    """Every product by numpy; the nearest are kept for the others."""
    queries = vectors(0, QUERIES)
    everything = np.empty((points, DIMS), np.float32)
    for start in range(0, points, BATCH):
        everything[start : start + BATCH] = vectors(start + 1, BATCH)

    def search(query: int) -> np.ndarray:
        scores = everything @ queries[query]
        return np.argpartition(-scores, LIMIT)[:LIMIT]

    truth = np.stack([search(query) for query in range(QUERIES)])
    np.save(folder / f"truth-{points}.npy", truth)
    named = [{point(n) for n in row} for row in truth.tolist()]
    return {"every product": timed(lambda query: [point(n) for n in search(query).tolist()], named)}


def child(folder: Path, kind: str, points: int) -> dict[str, Any]:
    """`searched` in a process of its own."""
    command = [sys.executable, __file__, "--points", str(points), "--folder", str(folder), "--one", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Build, search and write results/codes_search.POINTS.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(searched(options.folder, options.one, options.points)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results: dict[str, Any] = {"numpy": {"searches": brute(folder, options.points)}}
        for kind in options.kinds:
            found = child(folder, kind, options.points)
            if "searches" not in found:  # it was built: it is searched by a process that did not build it
                found = child(folder, kind, options.points) | {"built": found}
            results[kind] = found
    settings = {"dims": DIMS, "queries": QUERIES, "rounds": ROUNDS, "store": "edge", "m": 16}
    dataset = {"kind": "generated, clustered", "points": options.points}
    harness.write_result(f"codes_search.{options.points}", dataset, settings, 0, results)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
