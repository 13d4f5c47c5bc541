"""An upgrade while others work: a server that is searched and edited all the time, and drivers that are killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import documents
import points
import runs
import upgrades
from qdrant_server import Server
from waiting import wait_for

from pipeline.config import EncoderConfig, Settings, StoreConfig
from pipeline.errors import CollectionHeld, CollectionMismatch
from pipeline.search import Reader
from pipeline.stores import count_stored, open_store

SEARCHES_A_SECOND = 20
_BATCH = 20  # rows that one ingest of the editor brings
_SEARCHERS = 2
_OPTIONS = {
    "chunking.max_tokens": 48,
    "source.sequence": "at",
    "source.operation": "op",
    "encoder.provider": "cpu",
    "gate.tolerance": 0.9,  # whether a tiny random model ranks better in int8 is not the question here
}


@dataclass
class Searched:
    """What searches found: `failed` with an error or nothing, `missed` the document whose text was asked for."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)


class Town:
    """Documents by id as they should be. Those with an even number stay as they are: searches ask for their texts."""

    def __init__(self, count: int, seed: int) -> None:
        self._draw = random.Random(seed)
        self.now = {f"doc-{number}": self._row(f"doc-{number}", 1) for number in range(count)}
        self.steady = [row for row in self.now.values() if self._is_steady(row)]
        self._sequence = 1
        self._born = count

    def batch(self) -> list[dict[str, Any]]:
        """Edits, insertions and deletions, at most one a document; `apply` them once they are stored."""
        self._sequence += 1
        movable = [id for id, row in self.now.items() if not self._is_steady(row)]
        some = self._draw.sample(movable, min(_BATCH, len(movable) // 2))
        rows = [
            self._row(id, self._sequence, "delete" if n % 3 == 0 else "upsert") for n, id in enumerate(some)
        ]
        fresh = [f"doc-{2 * (self._born + n) + 1}" for n in range(_BATCH // 4)]
        self._born += len(fresh)
        return rows + [self._row(id, self._sequence) for id in fresh]

    def apply(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["op"] == "delete":
                del self.now[row["id"]]
            else:
                self.now[row["id"]] = row

    def _row(self, id: str, at: int, op: str = "upsert") -> dict[str, Any]:
        text = " ".join(self._draw.choices(documents.WORDS, k=self._draw.randint(12, 30))) + "."
        return {"id": id, "text": text, "at": at, "op": op, "year": 2000 + at}

    @staticmethod
    def _is_steady(row: dict[str, Any]) -> bool:
        return int(row["id"].removeprefix("doc-")) % 2 == 0


class Editor:
    """Ingests batch after batch with the encoder of whichever version serves."""

    def __init__(self, town: Town, both: tuple[Settings, Settings], folder: Path) -> None:
        self.town, self.batches, self.refused = town, 0, 0
        self._both, self._folder = list(both), folder
        self.wanted = threading.Event()
        self._ended = threading.Event()
        self._idle = threading.Lock()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Editor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._error:
            raise self._error

    def wait(self, batches: int) -> None:
        """Until so many more batches are stored."""
        goal = self.batches + batches
        wait_for(lambda: self._error or self.batches >= goal, "no batch was stored", 600)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is edited meanwhile."""
        with self._idle:
            yield

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                with self._idle:
                    self._edit()
                time.sleep(0.05)
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self._error = error

    def _edit(self) -> None:
        rows = self.town.batch()
        file = documents.write(self._folder / f"edit-{self.batches}.parquet", rows)
        while not self._ended.is_set():
            try:
                assert runs.run(file, self._both[0]).exit_code == 0
            except CollectionMismatch:  # the other version serves now
                self._both.reverse()
                self.refused += 1
            except CollectionHeld:  # an upgrade takes its last look
                time.sleep(0.1)
            else:
                self.town.apply(rows)
                self.batches += 1
                return


@contextmanager
def searching(town: Town, url: str, cache: Path) -> Iterator[tuple[Searched, Reader]]:
    """Search for steady documents by their texts, twenty times a second, with one reader that is never reopened."""
    found, ended = Searched(), threading.Event()
    how = EncoderConfig(cache=str(cache), provider="cpu", threads=1)
    with Reader.open(StoreConfig(url=url, collection="docs"), how) as reader:

        def search(seed: int) -> None:
            draw = random.Random(seed)
            while not ended.is_set():
                row, since = draw.choice(town.steady), time.monotonic()
                try:
                    (result,) = reader.search(row["text"], limit=1)
                    found.versions.add(result.encoder_version)
                    if result.document_id != row["id"]:
                        found.missed.append(row["id"])
                except Exception as error:  # noqa: BLE001 - no search may fail, however
                    found.failed.append(repr(error))
                found.seconds.append(time.monotonic() - since)
                ended.wait(max(0.0, _SEARCHERS / SEARCHES_A_SECOND - found.seconds[-1]))

        threads = [threading.Thread(target=search, args=(n,), daemon=True) for n in range(_SEARCHERS)]
        for thread in threads:
            thread.start()
        try:
            yield found, reader
        finally:
            ended.set()
            for thread in threads:
                thread.join()


@dataclass(frozen=True)
class Drilled:
    """What a drill saw; `differing` are the points that were not as an ingest of the documents alone makes them."""

    searched: Searched
    batches: int
    killed_at: int
    caught_up: dict[str, int]
    differing: dict[str, list[str]]
    seconds: float


def drill(server: Server, model: Path, cache: Path, folder: Path, count: int, seed: int = 0) -> Drilled:
    """Upgrade `count` documents from fp32 to int8 and back, with everything that can happen meanwhile."""
    began = time.monotonic()
    old, new = (_settings(model, cache, server, folder, precision) for precision in ("fp32", "int8"))
    town = Town(count, seed)
    assert runs.run(documents.write(folder / "all.parquet", list(town.now.values()), 500), old).exit_code == 0
    differing, caught_up = {}, {}
    with (
        searching(town, server.grpc_url, cache) as (searched, reader),
        Editor(town, (old, new), folder) as editor,
    ):
        killed_at = _kill_the_build(model, cache, old, count // 3)
        _command("reindex", "--to", model, cache=cache, to=old)
        editor.wait(1)
        first = reader.contract.encoder_version
        _kill_between_swap_and_record(server, cache, old)
        wait_for(lambda: reader.contract.encoder_version != first, "the reader did not move")
        editor.wait(2)
        with editor.paused():
            differing["promoted"] = _differing(new, town, folder / "promoted")
        caught_up["rollback"] = _command("rollback", cache=cache, to=old)["caught_up"]
        wait_for(lambda: reader.contract.encoder_version == first, "the reader did not move back")
        editor.wait(1)
        with editor.paused():
            differing["rolled back"] = _differing(old, town, folder / "back")
        caught_up["promote"] = _command("promote", cache=cache, to=old)["caught_up"]
    return Drilled(searched, editor.batches, killed_at, caught_up, differing, time.monotonic() - began)


def _settings(model: Path, cache: Path, server: Server, folder: Path, precision: str) -> Settings:
    more = {**upgrades.SEQUENCED, "encoder__precision": precision, "run__lease_s": 5}
    return runs.settings(model, cache, server.grpc_url, run__state=str(folder / "state"), **more)


def _arguments(command: str, *more: Path | str, to: Settings) -> list[Path | str]:
    options = _OPTIONS | ({"encoder.precision": "int8"} if command == "reindex" else {})
    sets = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    return [command, *more, "--store", to.store.url, "--collection", "docs", *sets, "--json"]


def _command(command: str, *more: Path | str, cache: Path, to: Settings) -> dict[str, Any]:
    done = runs.command(*_arguments(command, *more, to=to), cache=cache, timeout=1800)
    assert done.returncode == 0, done.stderr
    return runs.lines(done.stdout)[0]


def _kill_the_build(model: Path, cache: Path, to: Settings, at: int) -> int:
    """Kill a reindex once the candidate has so many points, and say how many it had."""
    # windows of a small part of what there is: a build that writes all at once cannot be killed half-way
    slowly = ("--set", f"run.window_tokens={8 * at}")
    process = runs.start(*_arguments("reindex", "--to", model, *slowly, to=to), cache=cache)
    store = open_store(to.store)

    def stored() -> int:
        assert process.poll() is None, process.communicate()
        found = upgrades.aliases(to).get("docs@next")
        return count_stored(store, found).points if found else 0

    wait_for(lambda: stored() >= at, "nothing was built", 600)
    process.kill()
    process.communicate()
    held = count_stored(store, upgrades.aliases(to)["docs@next"]).points
    store.close()
    return held


def _kill_between_swap_and_record(server: Server, cache: Path, to: Settings) -> None:
    """Kill a promote that has swapped the aliases and does not know it yet; the next command tells that it is done."""
    before = upgrades.aliases(to)
    server.plant("late", on="aliases", seconds=60)
    process = runs.start(*_arguments("promote", to=to), cache=cache)

    def swapped() -> bool:
        assert process.poll() is None, process.communicate()
        return upgrades.aliases(to)["docs"] == before["docs@next"]

    wait_for(swapped, "nothing was promoted", 600)
    process.kill()
    process.communicate()
    server.plant()
    again = runs.command(*_arguments("promote", to=to), cache=cache)
    assert "no version of 'docs' is being built" in again.stderr, again.stderr
    assert upgrades.aliases(to) == {"docs": before["docs@next"], "docs@previous": before["docs"]}


def _differing(to: Settings, town: Town, folder: Path) -> list[str]:
    """The ids of points that are not as a run over these documents alone, into an empty store, makes them."""
    expected, found = (
        upgrades.expected(to, list(town.now.values()), folder),
        points.contents_of(to.store.url, "docs"),
    )
    return points.differing(expected, found)
