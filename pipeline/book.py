"""The book of a run: what its trailers add up to, and what of it is committed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.schemas import Counts, Rejected, Split, SplitAck, Unreadable
from pipeline.stores import Store
from pipeline.sync import Ledger


class Book:
    """Adds up trailers, and commits the complete ones once the store is durable.

    A crash between two commits costs the splits since the first: they are run again, to the same points.
    """

    def __init__(self, ledger: Ledger, store: Store, counts: Counts, commit_every_s: float) -> None:
        self.counts = counts
        self.failed: list[Unreadable] = []
        self.uncommitted: list[Rejected] = []  # of splits that did not come to their end
        self._ledger = ledger
        self._store = store
        self._commit_every_s = commit_every_s
        self._waiting: list[tuple[Split, SplitAck]] = []
        self._committed_at = time.monotonic()

    def add(self, split: Split, ack: SplitAck) -> None:
        """Count a trailer; commit if the last commit is long enough ago."""
        self.counts += ack.counts
        if ack.error is not None:
            self.failed.append(Unreadable(split.uri, ack.error))
        if ack.complete:
            self._waiting.append((split, ack))
        else:
            self.uncommitted.extend(ack.rejected)
        if time.monotonic() - self._committed_at >= self._commit_every_s:
            self.commit()

    def commit(self) -> None:
        """Make the store durable, then the ledger."""
        if self._waiting:
            self._store.flush()
            self._ledger.commit(self._waiting)
            self._waiting = []
        self._committed_at = time.monotonic()

    def open_splits(self, splits: Sequence[Split]) -> int:
        """How many of these splits are not committed."""
        return sum(split not in self._ledger for split in splits)
