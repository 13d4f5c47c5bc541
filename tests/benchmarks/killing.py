"""What the kill matrix works with: versions of a source, stores, processes to kill, and what must come of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import documents
import models
import points
import runs
from qdrant_server import Server

from pipeline.config import StoreConfig
from pipeline.stores import open_store

DOCUMENTS = 2000
SPLIT = 50  # documents
DEADLINE_S = 10.0  # after which a lane that does nothing is given up
LEASE_S = 3.0
TIMEOUT_S = 3.0  # of a request to a server
PATIENCE_S = 120.0  # as wait_for has
SETTINGS = {
    "chunking.max_tokens": 48,
    "run.commit_every_s": 0,
    "run.split_deadline_s": DEADLINE_S,
    "run.lease_s": LEASE_S,
    "run.log": "json",
    "run.log_level": "debug",
    "store.timeout_s": TIMEOUT_S,
    "encoder.provider": "cpu",
    "encoder.threads": 1,
}

ENVIRONMENT = {  # of all processes; a machine that gives no sign of life for some seconds is lost
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
os.environ.update(ENVIRONMENT)

Contents = dict[str, tuple[dict[str, Any], list[float]]]
"""Point id -> (payload, vector)."""


def version(number: int) -> list[dict[str, Any]]:
    """The source as it is at one time: against another one documents come, go, grow, shrink and change."""
    found = []
    for row in documents.rows(DOCUMENTS, most_words=60):
        match (int(row["id"][4:]) * 7 + number * 3) % 8:
            case 0:
                continue
            case 1:
                found.append({**row, "text": " ".join(row["text"].split()[:3])})
            case 2:
                found.append({**row, "text": " ".join([row["text"]] * 3)})
            case 3:
                found.append({**row, "year": 1900 + number})
            case 4:
                found.append({**row, "text": f"edition {number}. {row['text']}"})
            case _:
                found.append(row)
    return found


class Ground:
    """What all cells share: a model, versions of a source, a store that holds version 0, and what each must become."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = models.tiny_bert(folder / "model")
        self.cache = folder / "cache"
        self.base = folder / "base"
        self.files = {
            number: documents.write(folder / f"version-{number}.parquet", version(number), row_group=SPLIT)
            for number in range(3)
        }
        self._index(self.files[0], self.base)
        self.wanted = {
            number: self._index(self.files[number], folder / f"wanted-{number}") for number in (1, 2)
        }

    def _index(self, file: Path, store: Path) -> Contents:
        state = {"run__state": str(self.folder / f"state-{store.name}")}
        to = runs.settings(self.model, self.cache, f"edge:{store}", **state)
        runs.run(file, to)
        return points.contents_of(to.store.url, "docs")


def differences(wanted: Contents, found: Contents) -> dict[str, int]:
    """Points by what is wrong with them: lost, doubled, orphaned, stale."""
    places = Counter(place(payload) for payload, _ in found.values())
    surplus = [id for id in found if id not in wanted]
    known = {place(payload) for payload, _ in wanted.values()}
    doubled = [id for id in surplus if places[place(found[id][0])] > 1 and place(found[id][0]) in known]
    stale = [id for id in wanted.keys() & found.keys() if not same(wanted[id], found[id])]
    return {
        "lost": len(wanted.keys() - found.keys()),
        "doubled": len(doubled),
        "orphaned": len(surplus) - len(doubled),
        "stale": len(stale),
    }


def place(payload: Mapping[str, Any]) -> tuple[str, str, int]:
    """Which chunk of which document a point says it is."""
    ours = payload["headwater"]
    return ours["namespace"], ours["document_id"], ours["chunk_index"]


def same(left: tuple[dict[str, Any], list[float]], right: tuple[dict[str, Any], list[float]]) -> bool:
    """Equal payloads, and vectors but for rounding."""
    return left[0] == right[0] and bool(np.allclose(left[1], right[1], atol=1e-4))


class EdgeFolder:
    """A copy of the store that holds version 0, in a folder."""

    def __init__(self, base: Path, folder: Path) -> None:
        shutil.copytree(base, folder / "index")
        self.url = f"edge:{folder}/index"

    def contents(self) -> Contents:
        """All that it holds, once the folder is free."""
        return points.contents_of(self.url, "docs")

    def close(self) -> None:
        """Nothing is open."""


class StubbedServer:
    """The same behind a server in a process of its own."""

    def __init__(self, base: Path, folder: Path) -> None:
        shutil.copytree(base, folder / "server")
        self.server = Server(folder / "server")
        self.url = self.server.grpc_url

    def contents(self) -> Contents:
        """All that it holds."""
        store = open_store(StoreConfig(url=self.url))
        try:
            return points.contents(store, "docs")
        finally:
            store.close()

    def amid_an_upsert(self) -> None:
        """Return when a write is being carried out: each one takes half a second from now on."""
        self.server.plant("hang", on="upsert", seconds=0.5, times=10_000)
        time.sleep(0.3)

    def again(self) -> None:
        """A new server over the same folder."""
        self.server = self.server.again()

    def close(self) -> None:
        """End the server."""
        self.server.kill()
        self.server.process.stdout.close()


@dataclass
class Run:
    """A process of `headwater`, with what it says in files."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @classmethod
    def start(cls, command: list[str], folder: Path, environment: Mapping[str, str]) -> Run:
        """Start it; its output goes into the folder."""
        stem = f"{time.monotonic_ns()}"
        out, err = folder / f"{stem}.out", folder / f"{stem}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=stdout, stderr=stderr, cwd=folder
            )
        return cls(process, out, err)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self) -> dict[str, Any]:
        """Its summary when it has ended, with the exit code; {} where it printed none."""
        code = self.process.wait(PATIENCE_S)
        lines = runs.lines(self.out.read_text())
        return {**(lines[-1] if lines else {}), "exit_code": code}

    def said(self) -> str:
        """The end of what it said."""
        return self.err.read_text()[-600:]


def stop(processes: list[psutil.Process]) -> None:
    """Freeze processes."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)


def resume(processes: list[psutil.Process], for_s: float = 4.0) -> None:
    """Let frozen processes go on, and wait until they are gone or had some seconds for what they were at."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
    psutil.wait_procs(processes, timeout=for_s)


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def begun(logs: Iterable[Path], runs_of: set[str] | None = None) -> Counter[str]:
    """How often each split was begun, by the log lines of these runs, or of all."""
    found: Counter[str] = Counter()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if '"split_begun"' in line:
                said = json.loads(line)
                found[said["split"]] += runs_of is None or said["run"] in runs_of
    return found
