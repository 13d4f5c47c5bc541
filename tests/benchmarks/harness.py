"""What every benchmark shares: contestants in turn, medians, and a JSON file that says where and with what.

Standard library only, so that a contestant may run in an environment of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "headwater",
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "qdrant-client",
    "qdrant-edge-py",
    "pyarrow",
)
LIBRARIES += ("ray", "sentence-transformers", "tokenizers", "torch", "transformers")


def alternate(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each contestant once a round, beginning with another one each time; returns what each run measured.

    A machine that slows down or is shared slows all of them, and their ratio stays.
    """
    names = list(contestants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            measured[name].append(contestants[name]())
    return measured


def ratio_of_medians(measured: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """The median of our runs over the median of theirs."""
    return statistics.median(measured[ours]) / statistics.median(measured[theirs])


def ratio_of_best(measured: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """Our best run over their best: the fairer number where others use the machine, as waiting threads suffer most."""
    return max(measured[ours]) / max(measured[theirs])


def read_cells(file: Path) -> list[dict[str, Any]]:
    """What a measurement that goes on where it was ended has measured; a line that was cut off is none."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def add_cell(file: Path, cell: Mapping[str, Any]) -> None:
    """Add a cell as a line of its own, also behind one that was cut off."""
    cut_off = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write(("\n" if cut_off else "") + json.dumps(cell) + "\n")


def write_result(
    name: str, dataset: Mapping[str, Any], settings: Mapping[str, Any], seed: int, results: Mapping[str, Any]
) -> Path:
    """Write results/NAME.json with the machine, the versions, the commit and the time; returns the file."""
    record = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
        "dataset": dict(dataset),
        "settings": dict(settings),
        "seed": seed,
        "results": dict(results),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def dataset_of(file: Path, rows: int) -> dict[str, Any]:
    """What identifies a data set: its file's name and hash, and how many of its rows were used."""
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "rows": rows}


def machine() -> dict[str, Any]:
    """The processor, cores this process may use, memory and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpus": _gpus(),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python and those of our libraries that are installed here."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def say(text: str) -> None:
    """A line of progress, on standard error: standard output is the result's."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def _gpus() -> list[str]:
    return _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()


def _commit() -> str:
    return _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD").strip()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
