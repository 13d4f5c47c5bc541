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
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from pipeline.errors import StoreError
from pipeline.schemas import Counts, Rejected, Split, SplitAck


def split_key(split: Split) -> str:
    """A split's name in the ledger: its id, and which of its rows lost to others of the same document id."""
    if not split.superseded:
        return split.id
    lost = hashlib.sha256(",".join(map(str, split.superseded)).encode()).hexdigest()
    return f"{split.id}-{lost[:16]}"


class Ledger:
    """The committed splits of one run of one plan on one collection.

    After a crash at any moment, `open` finds every split whose `commit` returned, and drops a torn last line.
    """

    def __init__(self, file: Path, run_id: str, done: dict[str, int]) -> None:
        self.file = file
        self.run_id = run_id
        self._done = done  # split key -> byte offset of its line

    @classmethod
    def open(cls, folder: Path, plan: str, last_run: str) -> Self:
        """Resume the unfinished run of this plan, or begin a new one; creates `folder`.

        `last_run` is the run that wrote to the collection last, as its metadata says: any other than ours has
        changed what we remember as done, so then nothing is resumed.
        """
        file = folder / "ledger.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls._resume(file, plan, last_run) or cls._begin(file, plan)
        except OSError as error:
            raise StoreError(
                f"the ledger in {folder} cannot be written: {error}",
                "A folder to remember what is done",
                "Name one with --set run.state=DIR",
            ) from error

    @classmethod
    def _begin(cls, file: Path, plan: str) -> Self:
        run_id = uuid.uuid4().hex[:12]
        fresh = file.with_suffix(".new")
        with fresh.open("wb") as out:
            out.write(_line({"run": run_id, "plan": plan}))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
        _sync_folder(file.parent)
        return cls(file, run_id, {})

    @classmethod
    def _resume(cls, file: Path, plan: str, last_run: str) -> Self | None:
        if not file.exists():
            return None
        entries = list(_entries(file))
        if not entries:
            return None
        header = entries[0][1]
        if (header.get("plan"), header.get("run")) != (plan, last_run) or any(
            "finished" in entry for _, entry, _ in entries
        ):
            return None
        with file.open("r+b") as out:
            out.truncate(entries[-1][2])
        return cls(file, header["run"], {entry["split"]: at for at, entry, _ in entries[1:]})

    def __contains__(self, split: Split) -> bool:
        return split_key(split) in self._done

    def __len__(self) -> int:
        return len(self._done)

    def commit(self, acks: Iterable[tuple[Split, SplitAck]]) -> None:
        """Record complete splits; call it only after the store is durable. Returns after fsync."""
        with self.file.open("ab") as out:
            for split, ack in acks:
                key = split_key(split)
                self._done[key] = out.tell()
                out.write(_line({**ack.as_dict(), "split": key}))
            out.flush()
            os.fsync(out.fileno())

    def finish(self) -> None:
        """Record that the run is over: it will never be resumed."""
        with self.file.open("ab") as out:
            out.write(_line({"finished": True}))
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


def plan_hash(*parts: Any) -> str:  # noqa: ANN401 - any JSON values
    """What makes two runs the same run: the SHA-256 of the parts' canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=asdict).encode()).hexdigest()


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _entries(file: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Whole entries as (offset, entry, end); stops at the first torn one."""
    at = 0
    with file.open("rb") as lines:
        for line in lines:
            end = at + len(line)
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(entry, dict):
                return
            yield at, entry, end
            at = end


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
