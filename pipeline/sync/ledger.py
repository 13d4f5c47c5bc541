"""The ledger: which splits of an unfinished run are committed, one fsynced JSON line each.

It saves re-reading and nothing else: the store is the truth, and losing the ledger costs time, never correctness.
It resumes only its own run (same plan, same physical collection), only while that run is unfinished, and only if no
other run has written to the collection since.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pipeline.errors import StoreError, UsageError
from pipeline.owner import Owner
from pipeline.schemas import Counts, Rejected, Split, SplitAck

KEPT = 50  # ledgers of a collection: what `headwater status` looks back on


def split_key(split: Split) -> str:
    """A split's name in the ledger: its id, and which of its rows lost to others of the same document id."""
    if not split.superseded:
        return split.id
    superseded = hashlib.sha256(",".join(map(str, split.superseded)).encode()).hexdigest()
    return f"{split.id}-{superseded[:16]}"


@dataclass(frozen=True)
class Header:
    """What a run is: its plan, and what `status` says of it. `documents` is None where only reading tells."""

    run: str
    plan: str
    source: str
    collection: str
    encoder_version: str
    splits: int
    documents: int | None
    began: str
    store: str = ""


Finished = tuple[dict[str, Any], str]
"""The summary of a run that is finished, and when it ended."""


class Ledger:
    """The committed splits of one run of one plan on one collection.

    After a crash at any moment, `open` finds every split whose `commit` returned, and drops a torn last line.
    `finished` is set for a named run that was finished before: nothing is left to do.
    """

    def __init__(self, file: Path, run_id: str, done: dict[str, int], finished: Finished | None) -> None:
        self.file = file
        self.run_id = run_id
        self.finished = finished
        self._done = done  # split key -> byte offset of its line

    @classmethod
    def open(cls, folder: Path, header: Header, last_run: str) -> Self:
        """Resume the unfinished run of this header's plan, or begin a new one; creates `folder`.

        `last_run` is the run that wrote to the collection last, as its metadata says: any other than ours has
        changed what we remember as done, so then nothing is resumed. A run that was named (`header.run`) and is
        finished stays finished, whoever wrote since. Raises UsageError where a run of that name had another plan.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            ledger = cls._resume(run_file(folder, header.run or last_run), header, last_run)
            if ledger is None:  # one without a commit is false
                ledger = cls._begin(folder, header)
            if ledger.finished is None:
                ledger._append({"attempt": Owner.here().as_dict(), "at": now()})
        return ledger

    @classmethod
    def _begin(cls, folder: Path, header: Header) -> Self:
        run_id = header.run or uuid.uuid4().hex[:12]
        file = run_file(folder, run_id)
        fresh = file.with_suffix(".new")
        with fresh.open("wb") as out:
            out.write(line(asdict(replace(header, run=run_id))))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
        prune(folder)
        _sync_folder(folder)
        return cls(file, run_id, {}, None)

    @classmethod
    def _resume(cls, file: Path, header: Header, last_run: str) -> Self | None:
        entries = list(read_entries(file)) if file.exists() else []
        if not entries:
            return None
        begun, last = entries[0].values, entries[-1].values
        if begun.get("plan") != header.plan:
            if header.run:
                raise UsageError(
                    f"run {header.run!r} was begun with source {begun.get('source')} and other settings",
                    "One name for one source and one way to index it",
                    "Take another --run-id",
                )
            return None
        summary = last.get("ended", {}).get("summary")
        finished = summary is not None and summary["exit_code"] in (0, 3)
        if finished and header.run:
            return cls(file, begun["run"], {}, (summary, last["at"]))
        if finished or begun["run"] != last_run:
            return None
        with file.open("r+b") as out:
            out.truncate(entries[-1].end)
        done = {entry.values["split"]: entry.at for entry in entries if "split" in entry.values}
        return cls(file, begun["run"], done, None)

    def __contains__(self, split: Split) -> bool:
        return split_key(split) in self._done

    def __len__(self) -> int:
        return len(self._done)

    def commit(self, acks: Iterable[tuple[Split, SplitAck]]) -> None:
        """Record complete splits; call it only after the store is durable. Returns after fsync.

        Raises StoreError where the disk is full: the splits are run again, to the same points.
        """
        with writing(self.file), self.file.open("ab") as out:
            for split, ack in acks:
                key = split_key(split)
                self._done[key] = out.tell()
                out.write(line({**ack.as_dict(), "split": key, "at": now()}))
            out.flush()
            os.fsync(out.fileno())

    def end(self, summary: dict[str, Any]) -> None:
        """Record how this attempt ended. After exit codes 0 and 3 the run is finished and never resumed."""
        self._append({"ended": {"summary": summary}, "at": now()})

    def fail(self, error: str) -> None:
        """Record, where that can be written, that an error ended this attempt; the next one resumes."""
        with suppress(StoreError):
            self._append({"ended": {"error": error}, "at": now()})

    @property
    def dead_letter(self) -> Path:
        """Where the run lists what it rejected."""
        return dead_letter_of(self.file)

    def _append(self, entry: dict[str, Any]) -> None:
        with writing(self.file), self.file.open("ab") as out:
            out.write(line(entry))
            out.flush()
            os.fsync(out.fileno())

    def counts(self, splits: Iterable[Split]) -> Counts:
        """What the committed ones among these splits did, all together."""
        total = Counts()
        for entry in self._committed(splits):
            total += Counts(**entry["counts"])
        return total

    def rejected(self, splits: Iterable[Split]) -> Iterator[Rejected]:
        """The documents rejected in the committed ones among these splits."""
        for entry in self._committed(splits):
            yield from (Rejected(**rejected) for rejected in entry["rejected"])

    def _committed(self, splits: Iterable[Split]) -> Iterator[dict[str, Any]]:
        with self.file.open("rb") as lines:
            for split in splits:
                at = self._done.get(split_key(split))
                if at is not None:
                    lines.seek(at)
                    yield json.loads(lines.readline())


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise StoreError where what a run remembers cannot be written in the block, for want of room or of the right."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"what the run remembers cannot be written to {place}: {error.strerror or error}",
            "A folder to write to, and room on its disk",
            "Free some space, or name a folder with --set run.state=DIR, and run again: nothing is lost",
        ) from error


def plan_hash(*parts: Any) -> str:  # noqa: ANN401 - any JSON values
    """What makes two runs the same run: the SHA-256 of the parts' canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=asdict).encode()).hexdigest()


def line(entry: dict[str, Any]) -> bytes:
    """An entry as a ledger holds it."""
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Entry:
    """A whole line of a ledger, and the bytes [at, end) it takes."""

    at: int
    end: int
    values: dict[str, Any]


def read_entries(file: Path) -> Iterator[Entry]:
    """The whole entries of a ledger; stops at the first torn one."""
    at = 0
    with file.open("rb") as lines:
        for line in lines:
            end = at + len(line)
            try:
                values = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(values, dict):
                return
            yield Entry(at, end, values)
            at = end


def now() -> str:
    """The time, as ledgers write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_file(folder: Path, run_id: str) -> Path:
    """The ledger of a run."""
    return folder / f"run-{run_id}.jsonl"


def dead_letter_of(file: Path) -> Path:
    """Where the run of this ledger lists what it rejected."""
    return file.with_name(f"rejected-{file.stem.removeprefix('run-')}.parquet")


def prune(folder: Path) -> None:
    """Keep the newest ledgers of a collection, and their lists of rejected documents."""
    for old in sorted(folder.glob("run-*.jsonl"), key=lambda old: old.stat().st_mtime)[:-KEPT]:
        old.unlink()
        dead_letter_of(old).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
