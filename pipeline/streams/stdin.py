"""An Arrow stream on standard input, searchable while it goes on.

A sender that does not know how far the process came before it died sends everything again: the same documents again
change nothing.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import uuid
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import pyarrow as pa

from pipeline.config import Settings
from pipeline.errors import HeadwaterError, SourceError, UsageError
from pipeline.ingest import Executor
from pipeline.schemas import Unreadable
from pipeline.sources import reading
from pipeline.streams.rounds import Inbox, Indexer, Sender
from pipeline.streams.session import session
from pipeline.summary import Summary


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
        indexer = Indexer(held, settings, Path(scratch), stop)
        broken: list[Unreadable] = []
        try:
            while (
                arrivals := incoming.inbox.gather(settings.watch.max_latency_s, stop)
            ) and not stop.is_set():
                for ack in indexer.index(arrivals).values():
                    if ack.error is not None:
                        raise SourceError(ack.error)
            if incoming.error and not stop.is_set():
                raise incoming.error
        except SourceError as error:
            broken.append(Unreadable("-", str(error)))
        return held.end(broken, interrupted=stop.is_set())


class Incoming:
    """Reads a stream in a thread of its own, ahead of the rounds by what the inbox holds; `error` ended it."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self.inbox = Inbox()
        self.error: HeadwaterError | None = None
        threading.Thread(target=self._read, args=(stream,), name="stdin", daemon=True).start()

    def _read(self, stream: BufferedIOBase) -> None:
        sender = Sender("-")
        try:
            with reading("the stream on standard input"), pa.ipc.open_stream(stream) as batches:
                for batch in batches:
                    self.inbox.offer(sender, batch)
        except HeadwaterError as error:
            self.error = error
        finally:
            self.inbox.close()
