"""Rounds: what senders sent within a short time is indexed together, and each learns what became of its own.

offer ► Inbox (bounded in bytes) ► gather ► Indexer: one file a sender, one split a file ► one trailer a sender
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pyarrow as pa

from pipeline import metrics
from pipeline.config import Settings
from pipeline.errors import SourceError, TransientError
from pipeline.schemas import Counts, Rejected, SplitAck
from pipeline.sources import open_source, spooled_name
from pipeline.streams.changes import Backoff
from pipeline.streams.session import Session
from pipeline.sync import write_rejected

GATHERED_BYTES = 32 << 20
LISTED = 10_000  # rejected documents, the newest


@dataclass(eq=False)
class Sender:
    """Who sends record batches, as people are shown it, and how many rows of its own are done."""

    name: str
    rows: int = 0


@dataclass(frozen=True)
class Arrival:
    """A record batch, and when it came (seconds since 1970)."""

    sender: Sender
    batch: pa.RecordBatch
    at: float


class Inbox:
    """Batches that wait for the next round, of all senders: `limit` bytes at most, or one batch that is larger."""

    def __init__(self, limit: int = GATHERED_BYTES) -> None:
        self._limit = limit
        self._waiting: list[Arrival] = []
        self._size = 0
        self._blocked = 0  # senders that wait for room
        self._closed = False
        self._changed = threading.Condition()

    def offer(self, sender: Sender, batch: pa.RecordBatch) -> bool:
        """Put a batch in when there is room; False, and it is not taken, once the inbox is closed."""
        arrival = Arrival(sender, batch, time.time())
        with self._changed:
            self._blocked += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._has_room(batch.nbytes))
            self._blocked -= 1
            if self._closed:
                return False
            self._waiting.append(arrival)
            self._size += batch.nbytes
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Take no more; what waits is still given out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def gather(self, gather_s: float, stop: threading.Event) -> list[Arrival]:
        """All that came within `gather_s` seconds after the first; less when full, closed or once `stop` is set.

        Nothing once it is closed and empty, or at a stop with nothing waiting.
        """
        with self._changed:
            while not (self._waiting or self._closed or stop.is_set()):
                self._changed.wait(0.1)  # not longer: a stop comes from a signal, which cannot notify
            waited = time.time() - self._waiting[0].at if self._waiting else 0.0
            until = time.monotonic() + gather_s - min(max(waited, 0.0), gather_s)
            while not (self._closed or self._blocked or stop.is_set()):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.1))
            gathered, self._waiting, self._size = self._waiting, [], 0
            self._changed.notify_all()
            return gathered

    def _has_room(self, size: int) -> bool:
        return not self._waiting or self._size + size <= self._limit


class Spool:
    """A round on disk, for as long as a `with` block: files, in their order, and who sent which (`files`)."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / uuid.uuid4().hex
        self.files: dict[str, Sender] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, sender: Sender, batches: Sequence[pa.RecordBatch]) -> None:
        """Add a file of batches of one schema; none where they hold no row. Raises SourceError."""
        if not any(batch.num_rows for batch in batches):
            return
        file = self.folder / spooled_name(f"{len(self.files):08x}{uuid.uuid4().hex[8:]}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
        except OSError as error:
            raise SourceError(
                f"a round of batches cannot be written to {self.folder}: {error}",
                f"Room for rounds of {GATHERED_BYTES >> 20} MiB and more",
                "Point TMPDIR to a larger disk",
            ) from error
        self.files[str(file)] = sender


class Indexer:
    """Indexes rounds one after the other; of the same document the later row wins, as with sequences.

    Splits are not ended early unless `stop` is set, which need not be the session's. A crash leaves what a repetition
    of the round completes.
    """

    def __init__(self, held: Session, settings: Settings, scratch: Path, stop: threading.Event) -> None:
        self._held = held
        self._source = settings.source.model_copy(update={"format": "arrows"})
        self._scratch = scratch
        self._stop = stop
        self._rejected: deque[Rejected] = deque(maxlen=LISTED)
        self._listed = 0

    def index(self, arrivals: Sequence[Arrival]) -> dict[Sender, SplitAck]:
        """Each sender's trailer, once the store has applied its batches durably; rows count from its first ever.

        The result is empty where the round was given up; see `index_spooled`, also for errors.
        """
        parts: dict[Sender, list[pa.RecordBatch]] = {}
        for arrival in arrivals:
            parts.setdefault(arrival.sender, []).append(arrival.batch)
        with Spool(self._scratch) as spool:
            for sender, batches in parts.items():
                spool.write(sender, batches)
            trailers = self.index_spooled(spool)
        if trailers is None:
            return {}
        for sender, batches in parts.items():
            sender.rows += sum(batch.num_rows for batch in batches)
        for arrival in arrivals:
            metrics.record(metrics.WATCH_LAG, time.time() - arrival.at)
        self._held.tell(arrivals[-1].at)
        none_sent = {sender: SplitAck("", Counts()) for sender in parts}  # of one whose batches have no row
        return none_sent | {spool.files[uri]: ack for uri, ack in trailers.items()}

    def index_spooled(self, spool: Spool) -> dict[str, SplitAck] | None:
        """The trailer of each file, once the store has applied all durably, and none before.

        Errors that may pass are waited out; where one meets a session that is to stop, the round is given up: None.
        Raises LeaseLost, and SourceError where the round cannot be kept on this machine.
        """
        trailers = self._persist(spool.folder) if spool.files else {}
        if trailers is None:
            return None
        trailers = {uri: _as_sent(ack, spool.files[uri]) for uri, ack in trailers.items()}
        self._note(trailers.values())
        return trailers

    def _persist(self, folder: Path) -> dict[str, SplitAck] | None:
        """Trailers by file; None where the session is to stop before that."""
        backoff = Backoff(self._held.stop)
        while True:
            try:
                return self._run(folder)
            except TransientError as error:
                if self._held.stop.is_set():
                    return None
                backoff.failed(error)

    def _run(self, folder: Path) -> dict[str, SplitAck]:
        source = open_source(str(folder), self._source, self._scratch / "keys")
        for unreadable in source.unreadable:
            raise SourceError(unreadable.message)
        acks = {split.uri: ack for split, ack in self._held.run(source.splits, self._stop)}
        self._held.store.flush()
        return acks

    def _note(self, acks: Iterable[SplitAck]) -> None:
        """Count what was done, and list what was rejected."""
        before = self._listed
        for ack in acks:
            self._held.add(ack)
            self._rejected += ack.rejected
            self._listed += len(ack.rejected)
        if self._listed > before:
            write_rejected(self._held.journal.dead_letter, self._rejected)


def _as_sent(ack: SplitAck, sender: Sender) -> SplitAck:
    """A trailer in the sender's own rows; one that a later row of the same round overtakes is stale, no mistake."""
    kept = tuple(
        replace(rejected, uri=sender.name, row=rejected.row + sender.rows)
        for rejected in ack.rejected
        if rejected.reason != "duplicate"
    )
    stale = len(ack.rejected) - len(kept)
    counts = replace(ack.counts, rejected=ack.counts.rejected - stale, stale=ack.counts.stale + stale)
    return replace(ack, counts=counts, rejected=kept)
