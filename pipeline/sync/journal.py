"""The journal of a run without an end: what `headwater status` says of it, in a file of the ledger's form.

Unlike a ledger it does not grow: it is written anew, whole or not at all. Nothing is resumed from it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.owner import Owner
from pipeline.schemas import Counts
from pipeline.sync.ledger import Header, dead_letter_of, line, now, prune, run_file


class Journal:
    """What a run has done so far, this attempt, and up to when its source is searchable.

    After a crash it says what it said last.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = run_file(folder, header.run)
        self._lines = line(asdict(header)) + line({"attempt": Owner.here().as_dict(), "at": now()})
        self._put(b"")
        prune(folder)

    @property
    def dead_letter(self) -> Path:
        """Where the run lists what it rejected."""
        return dead_letter_of(self._file)

    def tell(self, counts: Counts, watermark: str) -> None:
        """Replace what was said: documents so far, and the time up to which the source is searchable ("": none)."""
        self._put(self._progress(counts, watermark))

    def end(self, counts: Counts, watermark: str, summary: dict[str, Any]) -> None:
        """Say how it ended."""
        self._put(self._progress(counts, watermark) + line({"ended": {"summary": summary}, "at": now()}))

    def fail(self, error: str) -> None:
        """Say that an error ended it."""
        self._put(line({"ended": {"error": error}, "at": now()}))

    def _progress(self, counts: Counts, watermark: str) -> bytes:
        return line({"watched": {"counts": counts.as_dict(), "watermark": watermark}, "at": now()})

    def _put(self, last: bytes) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(self._lines + last)
        fresh.replace(self._file)
