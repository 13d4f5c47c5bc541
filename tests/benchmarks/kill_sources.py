"""The three ways in that the kill matrix feeds documents by: a Parquet run on Ray, a watched folder, Flight."""

from __future__ import annotations

import random
import re
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from killing import PATIENCE_S, SETTINGS, SPLIT, Ground, Run, begun, version

sys.path.insert(0, str(Path(__file__).parents[1]))

import documents
from cluster import Head, Machine, commits, lanes, processes
from waiting import wait_for

LANES = 2
CREDITS = 2
COMMAND = [sys.executable, "-m", "pipeline.cli"]


def flags(ground: Ground, store: str, folder: Path) -> list[str]:
    """What every command of a trial is told."""
    settings = {**SETTINGS, "encoder.cache": ground.cache, "run.state": folder / "state"}
    told = ["--encoder", str(ground.model), "--store", store, "--collection", "docs", "--json"]
    return told + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


class ParquetOnRay:
    """`headwater ingest --snapshot` on a running Ray, with two lanes; each split is committed as it ends."""

    limit = LANES * CREDITS * SPLIT

    def __init__(self, ground: Ground, store: str, folder: Path, head: Head) -> None:
        self.head = head
        self.folder = folder
        self._ground = ground
        self._flags = flags(ground, store, folder)
        self._splits = pq.ParquetFile(ground.files[1]).num_row_groups

    def start(self, number: int, killable: bool = False) -> Run:
        """Begin to index a version of the source."""
        command = [sys.executable, str(Path(__file__).with_name("ray_kill.py")), str(self.folder)]
        more = ["--executor", "ray", "--set", f"run.lanes={LANES}", "--snapshot", "--max-deletes", "100%"]
        words = ["ingest", str(self._ground.files[number]), *self._flags, *more]
        place = {"RAY_ADDRESS": self.head.address}
        return Run.start([*(command if killable else COMMAND), *words], self.folder, place)

    def amid(self, run: Run, chance: random.Random) -> None:
        """Return at a random moment while the run is at work."""
        at = chance.randint(1, self._splits * 3 // 4)
        wait_for(lambda: commits(self.folder / "state") >= at or run.over, "no split was committed")
        time.sleep(chance.random() * 0.2)
        if run.over:
            raise RuntimeError(f"it was over before anything could be killed: {run.said()}")

    def finish(self, run: Run, number: int) -> list[int]:
        """Let it end, and run it again until it is done; all exit codes."""
        codes = []
        while True:
            summary = run.wait()
            codes.append(summary["exit_code"])
            if summary["exit_code"] == 0 and "held" not in summary:
                return codes
            if len(codes) > 8:
                raise RuntimeError(f"not done after {len(codes)} attempts, {codes}: {run.said()}")
            time.sleep(1.0)
            run = self.start(number)

    def refused(self, run: Run) -> bool:
        """Whether this run was told that another one has the store; else it is done."""
        return "held" in run.wait()

    def read(self) -> Counter[str]:
        """How often each split of version 1 was begun, wherever."""
        session = re.search(r'SessionName="([^"]+)"', self.head.page())
        assert session is not None
        mine = {ledger.stem.removeprefix("run-") for ledger in self.folder.glob("state/*/run-*.jsonl")}
        return begun(Path("/tmp/ray", session[1], "logs").glob("worker-*.err"), mine)

    def lanes(self) -> list[psutil.Process]:
        """The processes of the lanes on the head."""
        return lanes(processes(self.head.mark))

    def sink(self) -> list[psutil.Process]:
        """The process that holds the edge folder."""
        return [one for one in processes(self.head.mark) if "StoreActor" in " ".join(one.cmdline())]

    def machine(self) -> Machine:
        """Another machine for the cluster; a lane goes there."""
        return Machine(self.folder, "--address", self.head.address)


class WatchedFolder:
    """`headwater watch FOLDER`: files of one split each, half of which the next version rewrites and half renames."""

    limit = CREDITS * SPLIT

    def __init__(self, ground: Ground, store: str, folder: Path) -> None:
        self.folder = folder
        self._flags = flags(ground, store, folder)
        self._inbox = folder / "inbox"
        self._inbox.mkdir()
        self._runs: list[Run] = []
        self._put: set[int] = set()

    def start(self, number: int, killable: bool = False) -> Run:
        """Put a version into the folder if it is not there, and watch it if nobody does."""
        self.put(number)
        words = ["watch", str(self._inbox), *self._flags, "--max-latency", "200ms", "--max-deletes", "100%"]
        self._runs.append(Run.start([*COMMAND, *words], self.folder, {}))
        return self._runs[-1]

    def put(self, number: int) -> None:
        """Make the folder hold this version: each file is written under another name and renamed."""
        if number in self._put:
            return
        self._put.add(number)
        rows, wanted = version(number), set()
        for part in range(0, len(rows), SPLIT):
            name = f"part-{part:05}{f'-{number}' if part % (2 * SPLIT) else ''}.parquet"
            fresh = self._inbox / f".{name}.new"
            documents.write(fresh, rows[part : part + SPLIT], row_group=SPLIT)
            fresh.replace(self._inbox / name)
            wanted.add(name)
        for file in self._inbox.glob("*.parquet"):
            if file.name not in wanted:
                file.unlink()

    def amid(self, run: Run, chance: random.Random) -> None:
        """Return at a random moment while the files are being indexed."""
        at = chance.randint(1, len(list(self._inbox.glob("*.parquet"))) * 3 // 4)
        wait_for(lambda: self._done() >= at or run.over, "no file was indexed")
        time.sleep(chance.random() * 0.2)
        if run.over or self._settled():
            raise RuntimeError(f"it was done before anything could be killed: {run.said()}")

    def finish(self, run: Run, number: int) -> list[int]:
        """Wait until all of a version is searchable, watching again if nobody does; then drain."""
        self.put(number)
        codes, deadline = [], time.monotonic() + PATIENCE_S
        while not self._settled():
            if run.over:
                codes.append(run.wait()["exit_code"])
                time.sleep(1.0)
                run = self.start(number)
            if time.monotonic() > deadline:
                raise RuntimeError(f"not settled, {codes}: {run.said()}")
            time.sleep(0.05)
        run.process.send_signal(signal.SIGTERM)
        return [*codes, run.wait()["exit_code"]]

    def refused(self, run: Run) -> bool:
        """Whether this run was told that another one has the store; else it has all to itself."""
        wait_for(lambda: run.over or self._settled(), "neither refused nor settled")
        return run.over

    def read(self) -> Counter[str]:
        """How often each split was begun."""
        return begun(run.err for run in self._runs)

    def sink(self) -> list[psutil.Process]:
        """No process of its own."""
        return []

    def _done(self) -> int:
        return sum(done for _, _, done in self._manifest())

    def _settled(self) -> bool:
        lying = {(file.name, file.stat().st_mtime_ns, 1) for file in self._inbox.glob("*.parquet")}
        return lying == self._manifest()

    def _manifest(self) -> set[tuple[str, int, int]]:
        """(name, time of change, done) of each file; empty while documents are still to be removed."""
        for file in self.folder.glob("state/*/watch-*.sqlite"):
            database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
            try:
                if database.execute("select count(*) from due").fetchone()[0]:
                    return set()
                found = database.execute("select uri, modified, done from file")
                return {(uri.rpartition("/")[2], at, done) for uri, at, done in found}
            except sqlite3.Error:  # being made
                return set()
            finally:
                database.close()
        return set()
