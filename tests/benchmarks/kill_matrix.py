"""Real processes killed and frozen at work: `python tests/benchmarks/kill_matrix.py [--only WORD …] [--repeats 3]`.

Victims × ways to die × sources × stores. The store holds version 0 of some documents, version 1 is being indexed when
the victim is killed or frozen at a random moment; what is left over is run again until it is done. Then every point is
compared with those of an unharmed run over version 1 in an empty store. Of a frozen process the others get on without
it where they can, version 2 is indexed, and only then it goes on, late: the store must still be version 2.

A cell's name is "SOURCE VICTIM WAY STORE"; `--only` takes cells whose name has all the words.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import psutil
from kill_flight import FlightStream
from kill_sources import CREDITS, LANES, ParquetOnRay, WatchedFolder
from killing import (
    DEADLINE_S,
    DOCUMENTS,
    LEASE_S,
    SPLIT,
    TIMEOUT_S,
    EdgeFolder,
    Ground,
    Run,
    StubbedServer,
    differences,
    kill,
    resume,
    stop,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import Head, Machine, lanes, processes
from waiting import wait_for

SOURCES = ("parquet", "folder", "flight")
VICTIMS = ("lane", "sink", "driver", "node")
WAYS = ("SIGKILL", "SIGSTOP", "ray.kill")
STORES = ("edge", "server")
FAULTS = ("lost", "doubled", "orphaned", "stale")


@dataclass(frozen=True)
class Cell:
    """Who dies how, at what work."""

    source: str
    victim: str
    way: str
    store: str

    def __str__(self) -> str:
        return f"{self.source} {self.victim} {self.way} {self.store}"

    @property
    def impossible(self) -> str:
        """Why there is no such cell; "" where there is one."""
        if self.source != "parquet":
            if self.way == "ray.kill" or self.victim == "node":
                return "runs without Ray"
            if self.victim == "lane" or (self.victim == "sink" and self.store == "edge"):
                return "is a thread of the driver"
        if self.way == "ray.kill" and not (
            self.victim == "lane" or (self.victim == "sink" and self.store == "edge")
        ):
            return "is no actor"
        return ""


class Trial:
    """One death, and what came of it."""

    def __init__(
        self, cell: Cell, ground: Ground, folder: Path, head: Head | None, chance: random.Random
    ) -> None:
        self.cell = cell
        self.ground = ground
        self.chance = chance
        self.folder = folder
        self.store = (EdgeFolder if cell.store == "edge" else StubbedServer)(ground.base, folder)
        make = {"folder": WatchedFolder, "flight": FlightStream}.get(cell.source)
        self.source = (make or ParquetOnRay)(ground, self.store.url, folder, *([head] if head else []))
        self.machine: Machine | None = None
        self.notes: list[str] = []

    def go(self) -> dict[str, Any]:
        """Kill, finish, compare."""
        began = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self.store.close)
            if self.cell.victim == "node":
                self.machine = self.source.machine()
                stack.callback(self.machine.kill)
            run = self.source.start(1, killable=self.cell.way == "ray.kill")
            stack.callback(run.process.kill)
            self.source.amid(run, self.chance)
            faults = self._frozen(run) if self.cell.way == "SIGSTOP" else self._killed(run)
            return {
                **faults,
                **self._again,
                "seconds": round(time.perf_counter() - began, 1),
                "notes": "; ".join(self.notes),
            }

    def _killed(self, run: Run) -> dict[str, int]:
        if self.cell.way == "ray.kill":
            (self.folder / self.cell.victim).touch()
            wait_for(lambda: (self.folder / "killed").exists() or run.over, "nothing was killed")
        elif self._server_is_victim:
            if self.chance.random() < 0.5:
                self.store.amid_an_upsert()
            self.store.server.kill()
            time.sleep(self.chance.uniform(0.1, 1.5))
            self.store.again()
        else:
            kill(self._victims(run))
        self._finish(run, 1)
        return self._compare(1)

    def _frozen(self, run: Run) -> dict[str, int]:
        """Freeze, get on without it, let it go on late. A frozen server is waited for: there is no other."""
        frozen = self._victims(run)
        stop(frozen)
        try:
            if self._server_is_victim:
                time.sleep(TIMEOUT_S * self.chance.uniform(1.2, 2.5))
                resume(frozen, 0)
                self._finish(run, 1)
                return self._compare(1)
            if self.cell.victim == "driver":
                self._take_over(run, frozen)
            else:
                self._finish(run, 1)
            self.source.finish(self.source.start(2), 2)
            late = [one for one in frozen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
            self.notes.append(f"{len(late)} of {len(frozen)} processes went on late")
            resume(late)
        finally:
            kill(frozen)
        return self._compare(2)

    def _take_over(self, run: Run, frozen: list[psutil.Process]) -> None:
        """Another run takes over from a frozen one, or is told who has the store; then the frozen one goes on."""
        time.sleep(LEASE_S)
        second = self.source.start(1)
        if not self.source.refused(second):
            self.notes.append("taken over")
            self._finish(second, 1)
            return
        holders = {str(one.pid) for one in (*frozen, *self.source.sink())}
        named = any(holder in second.out.read_text() + second.said() for holder in holders)
        self.notes.append(f"refused, the holder {'named' if named else 'NOT NAMED'}; then it went on")
        resume(frozen, 0)
        self._finish(run, 1)

    @property
    def _server_is_victim(self) -> bool:
        return self.cell.victim == "sink" and self.cell.store == "server"

    def _victims(self, run: Run) -> list[psutil.Process]:
        match self.cell.victim:
            case "driver":
                return [psutil.Process(run.process.pid)]
            case "lane":
                return [self.chance.choice(wait_for(self.source.lanes, "no lane"))]
            case "node":
                assert self.machine is not None
                found = processes(self.machine.mark)
                assert lanes(found), "no lane on the other machine"
                return found
            case _ if self._server_is_victim:
                return [psutil.Process(self.store.server.process.pid)]
        return self.source.sink()

    def _finish(self, run: Run, number: int) -> None:
        """Let it end and note what that took."""
        codes = self.source.finish(run, number)
        self.notes.append(f"exit codes {codes}")
        splits = sum(count > 1 for count in self.source.read().values())
        lanes_hit = 1 if self.cell.victim in ("lane", "node") or self.cell.source != "parquet" else LANES
        self._again = {"read_again": splits * SPLIT, "at_most": lanes_hit * CREDITS * SPLIT}

    def _compare(self, number: int) -> dict[str, int]:
        return differences(self.ground.wanted[number], self.store.contents())


def attempt(cell: Cell, ground: Ground, folder: Path, head: Head | None, seed: str) -> dict[str, Any]:
    """One trial, whatever comes of it."""
    folder.mkdir()
    try:
        return Trial(cell, ground, folder, head, random.Random(seed)).go()
    except Exception as error:  # noqa: BLE001 - the next cells are to be tried, too
        harness.say(traceback.format_exc()[-2000:])
        return {"error": (str(error) or repr(error))[-1000:]}


def run_cell(cell: Cell, ground: Ground, repeats: int, seed: int) -> list[dict[str, Any]]:
    """All trials of a cell; on a Ray of its own, with room for two runs, as one may be frozen."""
    folder = ground.folder / str(cell).replace(" ", "-")
    folder.mkdir()
    head = Head(folder, cpus=2 * LANES) if cell.source == "parquet" else None
    found = []
    try:
        for number in range(repeats):
            trial = attempt(cell, ground, folder / str(number), head, f"{seed} {cell} {number}")
            harness.say(f"{cell} #{number}: {trial}")
            found.append(trial)
    finally:
        if head:
            head.kill()
    return found


def good(trial: dict[str, Any]) -> bool:
    """Whether nothing is wrong with what came of a trial."""
    if "error" in trial:
        return False
    return not any(trial[fault] for fault in FAULTS) and trial["read_again"] <= trial["at_most"]


def summed_up(trials: list[dict[str, Any]]) -> str:
    """A cell of the table."""
    if not trials:
        return "not run"
    if bad := [trial for trial in trials if not good(trial)]:
        return f"**{len(bad)} of {len(trials)} wrong**"
    again = max(trial["read_again"] for trial in trials)
    return f"{len(trials)} ok, ≤ {again} again"


def table(found: dict[Cell, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each source and victim, a column for each way and store."""
    columns = list(itertools.product(WAYS, STORES))
    lines = [
        "A trial is wrong if any point is lost, doubled, orphaned or stale, or if more documents were read again than "
        f"the lanes concerned hold ({CREDITS} splits of {SPLIT} each). `–`: nothing to kill. In a watch the lane and "
        "an edge store are threads of the driver, without Ray; `ray.kill` ends actors only.\n",
        "| | " + " | ".join(f"{way}, {store}" for way, store in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for source, victim in itertools.product(SOURCES, VICTIMS):
        cells = [Cell(source, victim, way, store) for way, store in columns]
        if not all(cell.impossible for cell in cells):
            entries = ["–" if cell.impossible else summed_up(found.get(cell, [])) for cell in cells]
            lines.append(f"| {source}, {victim} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells, write results/kill_matrix.json and .md; exit code 1 if anything was wrong in one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
    cells = [Cell(*parts) for parts in itertools.product(SOURCES, VICTIMS, WAYS, STORES)]
    cells = [cell for cell in cells if set(options.only) <= set(str(cell).split())]
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(Path(scratch))
        found = {
            cell: run_cell(cell, ground, options.repeats, options.seed)
            for cell in cells
            if not cell.impossible
        }
    settings = {"deadline_s": DEADLINE_S, "lease_s": LEASE_S, "timeout_s": TIMEOUT_S, "lanes": LANES}
    results = {
        "cells": {str(cell): cell.impossible or found[cell] for cell in cells},
        "trials": sum(map(len, found.values())),
        "wrong": sum(not good(trial) for trials in found.values() for trial in trials),
    }
    if not options.only:
        dataset = {"kind": "generated", "documents": DOCUMENTS, "split": SPLIT}
        file = harness.write_result("kill_matrix", dataset, settings, options.seed, results)
        file.with_suffix(".md").write_text(table(found), encoding="utf-8")
    sys.stdout.write(table(found))
    sys.exit(bool(results["wrong"]))


if __name__ == "__main__":
    main()
