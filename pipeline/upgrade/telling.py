"""How far a pass of the mirror is: what is in step with the source, not what has been read of it."""

from __future__ import annotations

import threading

from pipeline.schemas import Observer, Progress


class Told:
    """Counts documents, of about `total`, and tells an observer; threads may share it."""

    def __init__(self, observe: Observer, total: int) -> None:
        self.observe = observe
        self._done, self._total = 0, total
        self._one = threading.Lock()

    def add(self, documents: int) -> None:
        """So many more need nothing any more: they were the same, are written, or cannot be."""
        with self._one:
            self._done += documents
            self.observe(Progress("indexing", self._done, max(self._total, self._done)))
