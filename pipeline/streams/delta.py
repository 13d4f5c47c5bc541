"""A Delta Lake table: the collection follows its change data feed, some commits at a time.

    new commits ► deletes, then new rows, as files of one round ► the store is durable ► position saved

A document's sequence is the version of the commit that made it, unless a column has it; so a commit that is read twice
changes nothing. Where the feed cannot tell what happened, the whole table is read: what it lacks is removed.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileType

from pipeline import logs, metrics
from pipeline.config import Settings, SourceConfig
from pipeline.errors import (
    ChangesLost,
    CollectionHeld,
    DeletesRefused,
    SourceError,
    TransientError,
)
from pipeline.ingest import Executor
from pipeline.schemas import SplitAck
from pipeline.snapshot import Snapshot
from pipeline.sources import Source, below, locate, open_source, reading
from pipeline.stores import Suppressions
from pipeline.streams.changes import Backoff, ticks
from pipeline.streams.feed import CHANGE, VERSION, Feed, another_table
from pipeline.streams.rounds import GATHERED_BYTES, Indexer, Sender, Spool
from pipeline.streams.session import Session, session
from pipeline.summary import Summary

COMMITS = 100  # in one round

log = logs.logger(__name__)


def is_table(place: str) -> bool:
    """Whether a Delta Lake table lies at this normal place."""
    with reading(f"source {place}"):
        filesystem, path = locate(below(place, "_delta_log"))
        return filesystem.get_file_info(path).type == FileType.Directory


def watch_table(place: str, settings: Settings, executor: Executor, stop: threading.Event) -> Summary:
    """Keep a collection in step with a table until `stop` is set.

    After a crash the same call goes on after the last commit that is wholly indexed. Raises as `watch` does, and
    UsageError for a table without a change data feed.
    """
    feed = Feed.open(place, settings.source)
    settings = settings.model_copy(update={"source": _as_fed(settings.source)})
    with session(place, settings, executor, stop) as held, tempfile.TemporaryDirectory() as scratch:
        follower = Follower(feed, settings, held, Path(scratch))
        follower.begin()
        follower.try_round()
        for changed in ticks(place, settings.watch.max_latency_s, stop):
            if changed or follower.behind:
                follower.try_round()
        return held.end(refused=follower.refused)


def _as_fed(config: SourceConfig) -> SourceConfig:
    """The columns of the feed that say what is done with a row, and in which order."""
    return config.model_copy(update={"operation": CHANGE, "sequence": config.sequence or VERSION})


@dataclass(frozen=True)
class Position:
    """Up to which commit a run has indexed a table; `compared` unless documents were kept that the table lacks."""

    run: str
    table: str
    version: int
    fields: dict[str, Any]
    compared: bool = True

    @classmethod
    def load(cls, file: Path) -> Position | None:
        """What was saved, if it can be read."""
        try:
            return cls(**json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, file: Path) -> None:
        """Whole or not at all."""
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)), "utf-8")
        fresh.replace(file)


class Follower:
    """Follows one table; `behind` after a round that failed, `refused` says which documents may not be removed."""

    def __init__(self, feed: Feed, settings: Settings, held: Session, scratch: Path) -> None:
        self.behind = True
        self.refused = ""
        self._feed = feed
        self._config = settings.source
        self._held = held
        self._scratch = scratch
        # A column's sequences do not say which commit came first: a deleted row has the one it was inserted with.
        self._commits = COMMITS if settings.source.sequence == VERSION else 1
        self._indexer = Indexer(held, settings, scratch, held.stop)
        self._sender = Sender(feed.uri)
        self._file = held.folder / f"watch-{held.plan[:16]}.json"
        self._position: Position | None = None
        self._backoff = Backoff(held.stop)

    def begin(self) -> None:
        """Go on from the saved position if its run was the last to write to the collection; else from the start."""
        saved = Position.load(self._file)
        if saved and saved.table != self._feed.id:
            raise another_table(self._feed.uri)
        known = saved and saved.compared and saved.run == self._held.last_run()
        self._position = saved if known else None
        self._held.begin(saved.run if saved and known else uuid.uuid4().hex[:12])

    def try_round(self) -> None:
        """Bring the collection in step with the table as it is; errors that may pass are waited out."""
        began = time.time()
        try:
            self._feed.refresh()
            self._round()
        except CollectionHeld:
            raise
        except (TransientError, SourceError) as error:
            self._backoff.failed(error)
            self.behind = True
        else:
            self._backoff.over()
            self.behind = False
            if not self._held.stop.is_set():
                self._held.tell(began)

    def _round(self) -> None:
        position = self._position
        if position is None or not position.fields.items() <= self._feed.fields.items():
            self._read_all()  # from the start, or a column went: documents have it that no commit mentions
            return
        try:
            for first in range(position.version + 1, self._feed.version + 1, self._commits):
                if not self._read_commits(first, min(first + self._commits - 1, self._feed.version)):
                    return
        except ChangesLost as error:
            log.warning("changes_lost", error=str(error))
            self._read_all()

    def _read_commits(self, first: int, last: int) -> bool:
        """Index what these commits changed; False where the session is to stop before that."""
        with Spool(self._scratch) as spool:
            for batches in _pieces(self._feed.changes(first, last, self._scratch)):
                spool.write(self._sender, batches)
            if not self._index(spool):
                return False
        self._save(last)
        metrics.record(metrics.WATCH_LAG, time.time() - self._feed.committed_at())
        return True

    def _read_all(self) -> None:
        """Index the whole table, and remove the documents that it lacks."""
        log.info("table_read", uri=self._feed.uri, version=self._feed.version)
        names = (self._config.id, self._config.namespace_column, CHANGE)
        with Spool(self._scratch) as keys:
            for batches in _pieces(self._feed.rows()):
                with Spool(self._scratch) as spool:
                    spool.write(self._sender, batches)
                    if not self._index(spool):
                        return
                keys.write(self._sender, [batch.select(list(filter(None, names))) for batch in batches])
            if self._held.stop.is_set():
                return
            self._remove_absent(keys)
        self._save(self._feed.version)

    def _index(self, spool: Spool) -> bool:
        trailers = self._indexer.index_spooled(spool)
        if trailers is None or not all(map(_is_done, trailers.values())):
            return False
        return not self._held.stop.is_set()

    def _remove_absent(self, keys: Spool) -> None:
        """Remove what is stored and not in the table, unless that is too much."""
        config = self._config.model_copy(
            update={"format": "arrows", "text": (CHANGE,), "template": "", "metadata": (), "sequence": ""}
        )  # of texts there are none here, and any column of strings will do
        empty = Source(self._feed.uri, (), (), 0, "")
        source = open_source(str(keys.folder), config, self._scratch / "keys") if keys.files else empty
        store, collection = self._held.store, self._held.job.collection
        forgotten = Suppressions(store, self._held.job.settings.store.collection)
        snapshot = Snapshot.take(
            source, config, store, collection, forgotten, self._scratch / uuid.uuid4().hex
        )
        try:
            gone = snapshot.remove(store, collection, config.max_deletes, self._held.stop, lambda _: None)
        except DeletesRefused as refused:
            self.refused = str(refused)
            log.error("deletes_refused", error=self.refused)
        else:
            self.refused = ""
            self._held.add_removed(gone)

    def _save(self, version: int) -> None:
        """Note that all up to this version is indexed; losing that means reading again."""
        run, feed = self._held.job.run, self._feed
        position = Position(run, feed.id, version, feed.fields, compared=not self.refused)
        position.save(self._file)
        self._position = position


def _is_done(ack: SplitAck) -> bool:
    if ack.error is not None:
        raise SourceError(ack.error)
    return ack.complete


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Batches of one schema together until they are as large as a round."""
    piece: list[pa.RecordBatch] = []
    for batch in batches:
        if piece and (
            sum(one.nbytes for one in piece) + batch.nbytes > GATHERED_BYTES
            or batch.schema != piece[0].schema
        ):
            yield piece
            piece = []
        piece.append(batch)
    if piece:
        yield piece
