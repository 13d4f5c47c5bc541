"""Runs as their ledgers tell of them: what `headwater status` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.owner import Owner
from pipeline.schemas import Counts
from pipeline.sync.ledger import Header, read_entries

State = Literal["running", "finished", "interrupted", "failed", "lost", "elsewhere"]


@dataclass(frozen=True)
class Run:
    """One run.

    `state`: "lost" is a run whose process is gone without a last word: started again, it resumes; "elsewhere" one
    of another machine that has not ended. `committed` counts what is in the ledger, over all attempts; `last_at` is
    when the ledger was last written. `summary` is that of the last attempt that came to an end.
    """

    header: Header
    state: State
    attempts: int
    process: str
    splits_done: int
    committed: Counts
    last_at: str
    summary: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """The run as JSON values; the header's at the top level."""
        values = asdict(self)
        values["committed"] = self.committed.as_dict()
        return {**values.pop("header"), **values}


def runs(folders: Iterator[Path] | list[Path]) -> list[Run]:
    """The runs whose ledgers lie in these folders, the one that was written to last first."""
    files = [file for folder in folders for file in folder.glob("run-*.jsonl")]
    found = [run for run in map(_read, files) if run is not None]
    return sorted(found, key=lambda run: run.last_at, reverse=True)


def _read(file: Path) -> Run | None:
    header: Header | None = None
    counts, splits, attempts, last_at = Counts(), 0, 0, ""
    owner: Owner | None = None
    summary: dict[str, Any] | None = None
    over = False
    for entry in read_entries(file):
        values = entry.values
        if header is None:
            header = Header(**values)
        last_at = values.get("at", last_at)
        if "attempt" in values:
            attempts, owner, over = attempts + 1, Owner.read(values["attempt"]), False
        elif "ended" in values:
            summary, over = values["ended"]["summary"], True
        elif "split" in values:
            splits += 1
            counts += Counts(**values["counts"])
    if header is None:
        return None
    state = _state(owner, summary if over else None)
    return Run(header, state, attempts, str(owner or ""), splits, counts, last_at or header.began, summary)


def _state(owner: Owner | None, summary: dict[str, Any] | None) -> State:
    if summary is not None:
        if summary["interrupted"]:
            return "interrupted"
        return "failed" if summary["exit_code"] == 1 else "finished"
    if owner is None or owner.gone():
        return "lost"
    return "running" if owner.near else "elsewhere"
