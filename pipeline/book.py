"""The book of a run: what its trailers add up to, and what of it is committed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from pipeline import logs, metrics
from pipeline.config import RunConfig
from pipeline.schemas import Counts, Rejected, Split, SplitAck, Unreadable
from pipeline.stores import Store
from pipeline.sync import Ledger

log = logs.logger(__name__)


class Book:
    """Adds up trailers, and commits the complete ones once the store is durable.

    A crash between two commits costs the splits since the first: they are run again, to the same points.
    """

    def __init__(self, ledger: Ledger, store: Store, splits: Sequence[Split], config: RunConfig) -> None:
        self.earlier = ledger.counts(splits)  # of earlier attempts of this run
        self.counts = self.earlier
        self.resumed_splits = sum(split in ledger for split in splits)
        self.failed: list[Unreadable] = []
        self.uncommitted: list[Rejected] = []  # of splits that did not come to their end
        self.refused = ""  # why what a snapshot lacks was not removed
        self._ledger = ledger
        self._store = store
        self._splits = splits
        self._commit_every_s = config.commit_every_s
        self._waiting: list[tuple[Split, SplitAck]] = []
        self._committed_at = time.monotonic()
        self._done = self.resumed_splits

    def begin(self) -> None:
        """Say that the run begins, or goes on, and how much there is to do."""
        rows = [split.rows for split in self._splits]
        documents = None if None in rows else sum(row or 0 for row in rows)
        if documents is not None:
            metrics.record(metrics.SOURCE_DOCUMENTS, documents)
        metrics.record(metrics.SPLITS, len(self._splits))
        metrics.record(metrics.SPLITS_DONE, self._done)
        event = "run_resumed" if self.resumed_splits else "run_started"
        log.info(event, splits=len(self._splits), splits_done=self._done, documents=documents)

    def add(self, split: Split, ack: SplitAck) -> None:
        """Count a trailer; commit if the last commit is long enough ago."""
        self.counts += ack.counts
        self._done += ack.complete
        self._tell(split, ack)
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

    def _tell(self, split: Split, ack: SplitAck) -> None:
        metrics.record_trailer(ack)
        metrics.record(metrics.SPLITS_DONE, self._done)
        about = log.bind(split=split.id, uri=split.uri)
        if ack.rejected:
            about.info("documents_rejected", **Counter(rejected.reason for rejected in ack.rejected))
        if ack.error is not None:
            about.error("split_failed", error=ack.error)
        elif ack.complete:
            about.debug("split_done", **ack.counts.as_dict())

    def add_removed(self, gone: Counts) -> None:
        """Count what was removed because a snapshot lacks it."""
        self.counts += gone
        metrics.record_counts(gone)

    def open_splits(self) -> list[Split]:
        """The splits that are not committed."""
        return [split for split in self._splits if split not in self._ledger]
