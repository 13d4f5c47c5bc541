"""Runs as their ledgers tell of them: what `headwater status` shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import logs
from pipeline.owner import Owner
from pipeline.schemas import Counts
from pipeline.sync.ledger import Header, read_entries

log = logs.logger(__name__)

State = Literal["running", "finished", "interrupted", "failed", "lost", "elsewhere"]


@dataclass(frozen=True)
class Run:
    """One run.

    `state`: "lost" is a run whose process is gone without a last word: started again, it resumes; "elsewhere" one
    of another machine that has not ended. `committed` counts what is in the ledger, over all attempts; `last_at` is
    when the ledger was last written. `summary` is that of the last attempt that came to an end, `error` what ended the
    last one before it came to one. `watermark`, of a run without an end: what its source held then is searchable.
    """

    header: Header
    state: State
    attempts: int
    process: str
    splits_done: int
    committed: Counts
    last_at: str
    summary: dict[str, Any] | None
    error: str
    watermark: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The run as JSON values; the header's at the top level."""
        values = asdict(self)
        values["committed"] = self.committed.as_dict()
        return {**values.pop("header"), **values}


def runs(folders: Iterable[Path]) -> list[Run]:
    """The runs whose ledgers lie in these folders, the one that was written to last first.

    What is no ledger, or cannot be read, is left out with a warning.
    """
    files = [file for folder in folders for file in folder.glob("run-*.jsonl")]
    found = [run for run in map(_read_safely, files) if run is not None]
    return sorted(found, key=lambda run: run.last_at, reverse=True)


def _read_safely(file: Path) -> Run | None:
    try:
        return _read(file)
    except (OSError, TypeError, KeyError, AttributeError) as error:
        log.warning("ledger_unreadable", file=str(file), error=f"{type(error).__name__}: {error}")
        return None


def _read(file: Path) -> Run | None:
    header: Header | None = None
    committed: dict[str, Counts] = {}  # after a take-over two processes may have committed the same split
    attempts, last_at, error, watermark = 0, "", "", ""
    owner: Owner | None = None
    summary: dict[str, Any] | None = None
    over = False
    for entry in read_entries(file):
        values = entry.values
        if header is None:
            header = Header(**values)
        last_at = str(values.get("at", last_at))
        if "attempt" in values:
            attempts, owner, over, error = attempts + 1, Owner.read(values["attempt"]), False, ""
        elif "ended" in values:
            ended = values["ended"]
            summary, error, over = ended.get("summary", summary), ended.get("error", ""), True
        elif "watched" in values:
            committed["watched"] = Counts(**values["watched"]["counts"])
            watermark = values["watched"]["watermark"]
        elif "split" in values:
            committed[values["split"]] = Counts(**values["counts"])
    if header is None:
        return None
    state: State = "failed" if error else _state(owner, summary if over else None)
    counts = sum(committed.values(), Counts())
    at = last_at or header.began
    process, splits = str(owner or ""), len(committed) if header.splits else 0
    return Run(header, state, attempts, process, splits, counts, at, summary, error, watermark)


def _state(owner: Owner | None, summary: dict[str, Any] | None) -> State:
    if summary is not None:
        if summary["interrupted"]:
            return "interrupted"
        return "failed" if summary["exit_code"] == 1 else "finished"
    if owner is None or owner.gone():
        return "lost"
    return "running" if owner.near else "elsewhere"
