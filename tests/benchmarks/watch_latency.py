"""From a file's close to its documents' being searchable: `python tests/benchmarks/watch_latency.py [--changes 300]`.

`headwater watch --max-latency 2s` follows a folder in a process of its own, while files come, are rewritten and are
removed at random moments: four a second, and then twenty. Close is the rename into the folder, or the unlink. With a
server, another process asks the store all the time, and searchable is when every document's head is the new version's,
or gone. An edge store can be asked by nobody else: there it is what the log line `file_searchable` says. The encoder
is a tiny one.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
from killing import Run

sys.path.insert(0, str(Path(__file__).parents[1]))

import documents
import models
import runs
from qdrant_server import Server
from waiting import wait_for

from pipeline.config import StoreConfig
from pipeline.schemas import digest, point_id
from pipeline.stores import Store, collection, open_store

ROWS = 10  # documents in a file; each is one chunk
LATENCY = "2s"
CASES = (("server", 4), ("server", 20), ("edge", 4))  # where to, and how many changes a second
KINDS = ("new", "rewritten", "removed")
COLOURS = ("#06c", "#c60", "#393")
FIGURE = (640, 220)


@dataclass
class Change:
    """What was done to a file, and what the heads of its documents must be: hashes of texts, None for no document."""

    kind: str
    at: float
    heads: dict[str, str | None]
    lag_s: float = 0.0


class Changes:
    """Changes files in a folder, one after the other, at random moments."""

    def __init__(self, folder: Path, a_second: float, seed: int) -> None:
        self.folder = folder
        self._a_second = a_second
        self._chance = random.Random(seed)
        self._texts: dict[str, list[str]] = {}  # by file
        self._made = 0
        self._latest: dict[str, float] = {}

    def one(self) -> Change:
        """Change a file that has not changed for some seconds."""
        settled = [name for name, at in self._latest.items() if at < time.time() - 3 and name in self._texts]
        kind = self._chance.choice(KINDS) if len(settled) > 5 else "new"
        name = f"file-{self._made}.parquet" if kind == "new" else self._chance.choice(settled)
        self._made += kind == "new"
        at, heads = self._remove(name) if kind == "removed" else self._put(name)
        self._latest[name] = at
        return Change(kind, at, heads)

    def _put(self, name: str) -> tuple[float, dict[str, str | None]]:
        texts = [" ".join(self._chance.choices(documents.WORDS, k=12)) for _ in range(ROWS)]
        rows = [{"id": f"{name}-{n}", "text": text} for n, text in enumerate(texts)]
        fresh = documents.write(self.folder / f".{name}.new", rows)
        self._texts[name] = texts
        at = time.time()
        os.utime(fresh, (at, at))
        fresh.replace(self.folder / name)
        return at, {head(row["id"]): digest(row["text"]) for row in rows}

    def _remove(self, name: str) -> tuple[float, dict[str, str | None]]:
        del self._texts[name]
        at = time.time()
        (self.folder / name).unlink()
        return at, {head(f"{name}-{n}"): None for n in range(ROWS)}

    def pause(self) -> None:
        """A random while."""
        time.sleep(self._chance.expovariate(self._a_second))


def head(document: str) -> str:
    """The id of a document's first point."""
    return point_id("", document, 0)


class Looker:
    """Asks the store again and again which changes have arrived."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._physical = wait_for(lambda: collection.resolve(store, "docs"), "no collection")
        self._pending: list[Change] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def expect(self, change: Change) -> None:
        """Look out for a change."""
        with self._lock:
            self._pending.append(change)

    def end(self) -> None:
        """Wait until everything has arrived."""
        wait_for(lambda: not self._pending, "a change never arrived")
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            with self._lock:
                pending = list(self._pending)
            if not pending:
                continue
            ids = [id for change in pending for id in change.heads]
            found = {
                str(one.id): one.payload["headwater"] for one in self._store.retrieve(self._physical, ids)
            }
            now = time.time()
            for change in pending:
                if all(arrived(found.get(id), wanted) for id, wanted in change.heads.items()):
                    change.lag_s = now - change.at
                    with self._lock:
                        self._pending.remove(change)


def arrived(ours: dict[str, str] | None, wanted: str | None) -> bool:
    """Whether a head is as it should be."""
    if ours is None or wanted is None:
        return ours is wanted
    return ours["text_hash"] == wanted and "writing" not in ours


def watching(folder: Path, root: Path, url: str) -> Run:
    """`headwater watch` in a process of its own."""
    flags = [
        "--encoder", root / "model", "--store", url, "--collection", "docs", "--json", "--max-latency", LATENCY,
        "--max-deletes", "100%", "--set", "encoder.provider=cpu", "--set", f"encoder.cache={root / 'cache'}",
        "--set", f"run.state={folder.parent / 'state'}", "--set", "run.log=json", "--set", "run.log_level=info",
    ]  # fmt: skip
    words = [sys.executable, "-m", "pipeline.cli", "watch", folder, *flags]
    run = Run.start([str(word) for word in words], folder.parent, {"HF_HUB_OFFLINE": "1"})
    wait_for(lambda: run.over or '"watch_started"' in run.err.read_text(), "it does not watch")
    return run


def measure(root: Path, store: str, a_second: float, count: int, seed: int) -> dict[str, list[float]]:
    """Seconds by kind of change, as the store was asked, or as the log says."""
    folder = root / f"{store}-{a_second}" / "inbox"
    folder.mkdir(parents=True)
    server = Server(folder.parent / "server") if store == "server" else None
    run = watching(folder, root, server.grpc_url if server else f"edge:{folder.parent}/index")
    changes = Changes(folder, a_second, seed)
    try:
        if server is None:
            for _ in range(count):
                changes.one()
                changes.pause()
            time.sleep(5)
            lines = [line for line in runs.lines(run.err.read_text()) if line["event"] == "file_searchable"]
            return {"new or rewritten": [line["lag_s"] for line in lines]}
        looker, made = Looker(open_store(StoreConfig(url=server.grpc_url))), []
        for _ in range(count):
            made.append(changes.one())
            looker.expect(made[-1])
            changes.pause()
        looker.end()
        return {kind: [one.lag_s for one in made if one.kind == kind] for kind in KINDS}
    finally:
        run.process.terminate()
        run.wait()
        if server:
            server.stop()


def quantiles(lags: Sequence[float]) -> dict[str, float]:
    """The median, the 99th percentile and the most, in seconds."""
    cuts = statistics.quantiles(lags, n=100, method="inclusive")
    return {
        "count": len(lags),
        "p50": round(cuts[49], 3),
        "p99": round(cuts[98], 3),
        "most": round(max(lags), 3),
    }


def figure(lags: dict[str, list[float]], file: Path) -> None:
    """Which share of the changes was searchable after so many seconds, a line for each kind, as SVG."""
    width, height = FIGURE
    most = max(max(some) for some in lags.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="10"><path d="M40 10V{height - 25}H{width - 10}" fill="none" stroke="#999"/>'
        f'<text x="4" y="18">100 %</text><text x="4" y="{height - 25}">0</text>'
        f'<text x="{width - 60}" y="{height - 10}">{most:.1f} s</text>'
        f'<text x="40" y="{height - 10}">searchable after</text>'
    ]
    for number, (kind, colour) in enumerate(zip(lags, COLOURS, strict=False)):
        ordered = sorted(lags[kind])
        line = " ".join(
            f"{40 + (width - 50) * lag / most:.1f},{height - 25 - (height - 35) * (n + 1) / len(ordered):.1f}"
            for n, lag in enumerate(ordered)
        )
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            f'<text x="{width - 90}" y="{60 + 14 * number}" fill="{colour}">{kind}</text>'
        )
    file.write_text("".join([*parts, "</svg>\n"]), encoding="utf-8")


def main() -> None:
    """Measure, write results/watch_latency.json and .svg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models.tiny_bert(Path(scratch) / "model")
        lags = {case: measure(Path(scratch), *case, options.changes, options.seed) for case in CASES}
    results = {
        f"{store}, {a_second} changes a second": {
            "all": quantiles([lag for some in found.values() for lag in some]),
            **{kind: quantiles(some) for kind, some in found.items() if len(found) > 1},
        }
        for (store, a_second), found in lags.items()
    }
    dataset = {"kind": "generated", "changes": options.changes, "documents_in_a_file": ROWS}
    file = harness.write_result("watch_latency", dataset, {"max_latency": LATENCY}, options.seed, results)
    figure(lags[CASES[0]], file.with_suffix(".svg"))
    harness.say(str(results))


if __name__ == "__main__":
    main()
