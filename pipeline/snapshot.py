"""Full snapshots: documents that a source no longer has are removed from the collection.

Both sides are ids of heads, so 16 bytes a document, compared bucket by bucket on disk. A source speaks for its own
namespace ("" where none is configured); with a namespace column it speaks for all, so that the last document of a
tenant can go too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from pipeline import logs
from pipeline.config import SourceConfig
from pipeline.errors import DeletesRefused
from pipeline.schemas import Counts, Observer, Progress, point_id
from pipeline.sources import Source, read_named
from pipeline.stores import DocumentWriter, Head, Store, Suppressions, scan_heads
from pipeline.sync import KEYS, Buckets, absent, ids_of, keys_of

log = logs.logger(__name__)

_AT_ONCE = 500  # documents in one request


class Snapshot:
    """Which stored documents a source lacks. `present` counts the source's documents, `stored` the store's."""

    def __init__(self, folder: Path) -> None:
        self._source = Buckets(folder / "source", KEYS)
        self._store = Buckets(folder / "store", KEYS)
        self.present = 0
        self.stored = 0

    @classmethod
    def take(
        cls,
        source: Source,
        config: SourceConfig,
        store: Store,
        collection: str,
        forgotten: Suppressions,
        folder: Path,
    ) -> Snapshot:
        """Compare; a forgotten document is absent, whatever the source says.

        Writes 16 bytes for each document of either side to `folder`, and nothing else.
        Raises SourceError where the source has changed since it was opened.
        """
        snapshot = cls(folder)
        for ids in present_ids(source, config, forgotten):
            snapshot._source.add(keys_of(ids))
            snapshot.present += len(ids)
        for ids in scan_heads(store, collection, scope(config)):
            snapshot._store.add(keys_of(ids))
            snapshot.stored += len(ids)
        return snapshot

    def lacking(self) -> Iterator[list[str]]:
        """The ids of the heads that the source lacks; safe to repeat."""
        for keys in absent(self._store, self._source):
            yield ids_of(keys)

    def check(self, max_deletes: str) -> int:
        """How many documents are to be removed; raise DeletesRefused where that is more than allowed."""
        lacking = sum(map(len, self.lacking()))
        if lacking and not self.present and max_deletes != "100%":
            raise DeletesRefused(
                f"the source is empty, and {self.stored} documents are stored",
                "A snapshot with documents; nothing was removed",
                "Check the source. If all documents are to go, say --max-deletes 100%",
            )
        if lacking > allowed(max_deletes, self.stored):
            raise DeletesRefused(
                f"the source lacks {lacking} of {self.stored} stored documents",
                f"At most {max_deletes} may go; nothing was removed",
                f"Check the source. If they are to go, say --max-deletes {lacking}",
            )
        return lacking

    def remove(
        self, store: Store, collection: str, max_deletes: str, stop: threading.Event, observe: Observer
    ) -> Counts:
        """Remove the documents that the source lacks and say how many went, with how many points.

        A crash leaves whole documents and marked heads: the same again ends right. Ends early once `stop` is set.
        Raises DeletesRefused, before anything is removed.
        """
        total = self.check(max_deletes)
        writer = DocumentWriter(store, collection)
        gone = Counts()
        for ids in self.lacking():
            for start in range(0, len(ids), _AT_ONCE):
                if stop.is_set():
                    return gone
                gone += _remove(ids[start : start + _AT_ONCE], store, collection, writer)
                observe(Progress("removing", gone.removed, total))
        store.flush()
        log.info("snapshot_removed", documents=gone.removed, points=gone.points_removed, stored=self.stored)
        return gone


def scope(config: SourceConfig) -> str | None:
    """The namespace that a source speaks for; None: all of them."""
    return None if config.namespace_column else config.namespace


def present_ids(source: Source, config: SourceConfig, forgotten: Suppressions) -> Iterator[list[str]]:
    """The ids of the heads of the source's documents, also of those it rejects, but not of forgotten ones."""
    for split in source.splits:
        for keys in read_named(split, config):
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                gone = forgotten.find(some)
                yield [point_id(*key, 0) for key in some if key not in gone]


def allowed(max_deletes: str, stored: int) -> int:
    """How many of so many documents `source.max_deletes` lets go."""
    if max_deletes.endswith("%"):
        return int(Fraction(max_deletes[:-1]) * stored / 100)
    return int(max_deletes)


def _remove(ids: list[str], store: Store, collection: str, writer: DocumentWriter) -> Counts:
    """Remove the documents of these heads, as they are now."""
    heads = {}
    for record in store.retrieve(collection, ids, with_payload=["headwater"]):
        payload = dict(record.payload or {})
        ours = payload["headwater"]
        heads[ours["namespace"], ours["document_id"]] = Head.read(payload)
    return Counts(removed=len(heads), points_removed=writer.delete(list(heads), heads))
