"""Ten thousand random histories with crashes: `python tests/benchmarks/histories.py [--count 10000] [--workers 2]`.

The model-based test of tests/test_commit_protocol.py at length. Each history goes through the real sieve and writers
twice: once unharmed, to see how many writes each of its runs makes, and once with every run crashing at one of its
writes, after it or half-way, and run again. After each run the store must hold what the oracle says, point for point.
One history in twenty goes through the engine of an edge store, the others through the store in memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import harness
from hypothesis import HealthCheck, given, seed, settings
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1]))

import histories  # of tests/, which comes before this file's own folder now
import test_commit_protocol as protocol
from histories import Crashing, Oracle, Row, Run

from pipeline.config import StoreConfig
from pipeline.stores import Store, open_store

CHUNK = 250  # histories that hypothesis draws in one go
EDGE = 20  # one in so many is on an edge store
ANOTHER = "another version after the crash"
KINDS = {
    "plain": histories.HISTORIES,
    "sequences": histories.SEQUENCED,
    "rejections": histories.REJECTING,
    ANOTHER: histories.HISTORIES,
}


@dataclass
class Total:
    """What was gone through."""

    histories: Counter[str] = field(default_factory=Counter)  # by kind and store
    runs: int = 0
    crashes: int = 0
    writes: Counter[int] = field(default_factory=Counter)  # by number in its run: the ones to crash at
    steps: Counter[str] = field(default_factory=Counter)
    distinct: set[str] = field(default_factory=set)

    def __iadd__(self, other: Total) -> Total:
        self.histories += other.histories
        self.runs += other.runs
        self.crashes += other.crashes
        self.writes += other.writes
        self.steps += other.steps
        self.distinct |= other.distinct
        return self


@dataclass(frozen=True)
class Chunk:
    """Some histories of one kind, on one store, from one seed."""

    kind: str
    store: str
    count: int
    seed: int


def go(chunk: Chunk) -> tuple[Total, str]:
    """Go through a chunk; the error with the smallest history that shows it, or ""."""
    tally = Total()

    @seed(chunk.seed)
    @settings(max_examples=chunk.count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(KINDS[chunk.kind])
    def through(history: list[Run]) -> None:
        chance = random.Random(repr(history))
        history = with_metadata_edits(history, chance)
        if sum(tally.histories.values()) < chunk.count:  # what is drawn to shrink a failure is not counted
            tally.histories[f"{chunk.kind}, {chunk.store}"] += 1
            tally.distinct.add(f"{chunk.kind} {history}")
            tally.steps += steps(history, chunk.kind in ("sequences", "rejections"))
        once(chunk, history, chance, tally)

    try:
        through()
    except BaseException:  # noqa: BLE001 - whatever went wrong, it is what we are looking for
        return tally, traceback.format_exc()
    return tally, ""


def with_metadata_edits(history: Sequence[Run], chance: random.Random) -> list[Run]:
    """A history in which some documents keep the text they had and change their metadata: random words rarely do."""
    found: list[Run] = []
    latest: dict[tuple[str, str], Row] = {}
    for run in history:
        rows = tuple(
            replace(row, words=latest[row.key].words, year=3 - latest[row.key].year, fate="")
            if row.key in latest and chance.random() < 0.15
            else row
            for row in run.rows
        )
        latest.update((row.key, row) for row in rows)
        found.append(replace(run, rows=rows))
    return found


def once(chunk: Chunk, history: list[Run], chance: random.Random, tally: Total) -> None:
    """One history, unharmed and then crashing."""
    sequenced = chunk.kind in ("sequences", "rejections")
    with new_store(chunk.store) as store:
        changes = [changes_of(store, run, sequenced) for run in history]
    crashing = [
        replace(run, crash=chance.randrange(writes) if writes else None, whole=chance.random() < 0.5)
        for run, writes in zip(history, changes, strict=True)
    ]
    tally.runs += len(crashing)
    if chunk.kind == ANOTHER:
        another: Callable[..., None] = (
            protocol.test_after_a_crash_another_version_of_the_same_documents_is_as_good.hypothesis.inner_test
        )
        another(crashing, chance)
        return
    with new_store(chunk.store) as store:
        crashed = histories.check(store, crashing, sequenced)
    tally.crashes += crashed
    tally.writes.update(run.crash for run in crashing if run.crash is not None)


def changes_of(store: Store, run: Run, sequenced: bool) -> int:
    """Index a run unharmed; how many writes that took."""
    watched = Crashing(store, None, True)
    histories.index(watched, run, sequenced)
    return watched.changes


@contextmanager
def new_store(kind: str) -> Iterator[Store]:
    """An empty collection."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(StoreConfig(url="memory:" if kind == "memory" else f"edge:{folder}/index"))
        try:
            histories.new_collection(store)
            yield store
        finally:
            store.close()


def steps(history: Sequence[Run], sequenced: bool) -> Counter[str]:
    """What happens to documents in a history, by kind."""
    found: Counter[str] = Counter()
    oracle, known = Oracle(sequenced), set()
    for number, run in enumerate(history):
        before = history[number - 1] if number else run
        found["other settings"] += (before.window, before.batch_points) != (run.window, run.batch_points)
        for row in run.rows:
            stored = oracle.documents.get(row.key)
            outcome = oracle.apply(replace(run, rows=(row,)))
            if outcome.stale:
                found["replay out of order"] += 1
            elif outcome.rejected:
                found["rejected version"] += 1
            elif outcome.deleted:
                found["delete" if stored else "delete of nothing"] += 1
            elif stored is None:
                found["re-insert" if row.key in known else "insert"] += 1
            elif outcome.unchanged:
                found["unchanged"] += 1
            elif outcome.patched:
                found["metadata edit"] += 1
            else:
                change = len(row.words) - len(stored.words)
                found["grow" if change > 0 else "shrink" if change < 0 else "edit"] += 1
            known |= oracle.documents.keys()
    return +found


def chunks(count: int, first_seed: int) -> list[Chunk]:
    """The work: each kind as often, one history in so many on an edge store."""
    found = []
    for number, start in enumerate(range(0, count, CHUNK)):
        some = min(CHUNK, count - start)
        kind = list(KINDS)[number % len(KINDS)]
        edge = 0 if kind == ANOTHER else round(some / EDGE * len(KINDS) / (len(KINDS) - 1))
        found.append(Chunk(kind, "memory", some - edge, first_seed + number))
        if edge:
            found.append(Chunk(kind, "edge", edge, first_seed + 1_000_000 + number))
    return found


def main() -> None:
    """Go through them, write results/histories.json; exit code 1 if one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, total, failures = time.perf_counter(), Total(), []
    with (
        multiprocessing.get_context("spawn").Pool(options.workers) as workers,
        Progress(console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("histories", total=options.count)
        for tally, failure in workers.imap_unordered(go, chunks(options.count, options.seed)):
            total += tally
            failures += [failure] if failure else []
            progress.update(bar, completed=sum(total.histories.values()))
            if failure:
                harness.say(failure)
    results = {
        "histories": sum(total.histories.values()),
        "distinct": len(total.distinct),
        "by_kind_and_store": dict(sorted(total.histories.items())),
        "runs": total.runs,
        "crashes": total.crashes,
        "crashes_drawn_by_write": dict(sorted(total.writes.items())),
        "steps": dict(total.steps.most_common()),
        "failures": len(failures),
        "seconds": round(time.perf_counter() - began),
    }
    settings_used = {"workers": options.workers, "histories_a_chunk": CHUNK}
    harness.write_result("histories", {"kind": "generated"}, settings_used, options.seed, results)
    harness.say(str(results))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
