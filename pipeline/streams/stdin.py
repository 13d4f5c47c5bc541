"""An Arrow stream on standard input, searchable while it goes on.

Record batches are gathered for `watch.max_latency_s` seconds at most and put into a file, which is a source of its own
for the lane; meanwhile no more is read than a few batches. A sender that does not know how far the process came before
it died sends everything again: the same documents again change nothing.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from queue import Empty, Queue
from typing import cast

import pyarrow as pa

from pipeline import logs
from pipeline.config import Settings
from pipeline.errors import HeadwaterError, LeaseLost, SourceError, TransientError, UsageError
from pipeline.ingest import Executor
from pipeline.schemas import Rejected, SplitAck, Unreadable
from pipeline.sources import open_source, reading, spooled_name
from pipeline.streams.changes import pause
from pipeline.streams.session import Session, session
from pipeline.summary import Summary
from pipeline.sync import write_rejected

GATHERED_BYTES = 32 << 20
LISTED = 10_000  # rejected documents, the newest
LONGEST_PAUSE_S = 30.0
_WAITING = 4  # batches read ahead

log = logs.logger(__name__)


def watch_stream(settings: Settings, executor: Executor, stop: threading.Event) -> Summary:
    """Index an Arrow stream from standard input as it comes, until it ends or `stop` is set.

    After a crash what was searchable stays; the sender repeats what may be missing. Raises as `watch` does.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "no stream on standard input", "An Arrow stream", "headwater watch - … < docs.arrows"
        )
    with session("-", settings, executor, stop) as held, tempfile.TemporaryDirectory() as scratch:
        held.begin(uuid.uuid4().hex[:12])
        incoming = Incoming(cast("BufferedIOBase", sys.stdin.buffer))
        indexer = Indexer(held, settings, Path(scratch))
        broken: list[Unreadable] = []
        try:
            while not stop.is_set() and (batches := incoming.gather(settings.watch.max_latency_s, stop)):
                indexer.index(batches)
        except SourceError as error:
            broken.append(Unreadable("-", str(error)))
        return held.end(broken, interrupted=stop.is_set())


class Incoming:
    """Reads a stream in a thread of its own, a few batches ahead."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._batches: Queue[pa.RecordBatch | HeadwaterError | None] = Queue(_WAITING)
        self._last: HeadwaterError | None = None
        self._over = False
        threading.Thread(target=self._read, args=(stream,), name="stdin", daemon=True).start()

    def gather(self, gather_s: float, stop: threading.Event) -> list[pa.RecordBatch]:
        """What comes within `gather_s` seconds after the first batch, or less; nothing at the end or a stop.

        Raises SourceError where the stream broke, once what came before has been given out.
        """
        gathered: list[pa.RecordBatch] = []
        until, size = None, 0
        while not self._over and not stop.is_set() and size < GATHERED_BYTES:
            left = 0.1 if until is None else min(0.1, until - time.monotonic())
            if left <= 0:
                break
            try:
                batch = self._batches.get(timeout=left)
            except Empty:
                continue
            if not isinstance(batch, pa.RecordBatch):
                self._over, self._last = True, batch
            elif batch.num_rows:
                gathered.append(batch)
                size += batch.nbytes
                until = until or time.monotonic() + gather_s
        if not gathered and self._last:
            raise self._last
        return gathered

    def _read(self, stream: BufferedIOBase) -> None:
        try:
            with reading("the stream on standard input"), pa.ipc.open_stream(stream) as batches:
                for batch in batches:
                    self._batches.put(batch)
        except HeadwaterError as error:
            self._batches.put(error)
        else:
            self._batches.put(None)


class Indexer:
    """Indexes gathered batches one after the other; of the same document the later row wins, as with sequences."""

    def __init__(self, held: Session, settings: Settings, scratch: Path) -> None:
        self._held = held
        self._source = settings.source.model_copy(update={"format": "arrows"})
        self._scratch = scratch
        self._rows = 0  # of the stream, before this batch
        self._rejected: deque[Rejected] = deque(maxlen=LISTED)

    def index(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Return when the store has applied the batches durably, or the session is to stop.

        Waits errors out that may pass.
        """
        file = self._scratch / spooled_name(uuid.uuid4().hex)
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        failures = 0
        while not self._held.stop.is_set():
            try:
                self._add(self._run(file))
                break
            except LeaseLost:
                raise
            except TransientError as error:
                failures += 1
                wait = min(LONGEST_PAUSE_S, 2.0**failures)
                log.warning("round_failed", error=str(error), wait_s=wait)
                pause(wait, self._held.stop)
        file.unlink()
        self._rows += sum(batch.num_rows for batch in batches)

    def _run(self, file: Path) -> list[SplitAck]:
        source = open_source(str(file), self._source, self._scratch / "keys")
        acks = [_overtaken_as_stale(ack) for _, ack in self._held.run(source.splits)]
        self._held.store.flush()
        return acks

    def _add(self, acks: Iterable[SplitAck]) -> None:
        fresh: list[Rejected] = []
        for ack in acks:
            self._held.add(ack)
            fresh += ack.rejected
            if ack.error is not None:
                raise SourceError(ack.error)
        if fresh:
            self._rejected += (replace(rejected, row=rejected.row + self._rows) for rejected in fresh)
            write_rejected(self._held.journal.dead_letter, self._rejected)
        self._held.tell(time.time())


def _overtaken_as_stale(ack: SplitAck) -> SplitAck:
    """A row that a later one of the same gathering overtakes is no mistake, as it would be in a file."""
    kept = tuple(rejected for rejected in ack.rejected if rejected.reason != "duplicate")
    stale = len(ack.rejected) - len(kept)
    counts = replace(ack.counts, rejected=ack.counts.rejected - stale, stale=ack.counts.stale + stale)
    return replace(ack, counts=counts, rejected=kept)
