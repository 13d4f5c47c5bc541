"""The write protocol: an unmarked head vouches for its whole document (see heads.py).

    mark the heads of documents that are stored and will change
    write all chunks but heads
    remove chunks past the new end
    write the heads, which takes the mark away

So a document is found as it was, as it should be, or marked. A run that died can be run again, over the same source
or a later one: ids are deterministic, what was written is written over, and what should not be there is computed from
an unmarked head, and else found by asking the store, never by remembering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from pipeline import metrics
from pipeline.errors import BrokenInvariant
from pipeline.schemas import point_id
from pipeline.stores.heads import WRITING, Head, Key
from pipeline.stores.points import Points
from pipeline.stores.profiles import OURS
from pipeline.stores.store import Store

_KEYS = ["headwater.namespace", "headwater.document_id", "headwater.chunk_index"]
_PAGE = 1000
# Documents asked for in one filter; servers and the engine slow down on filters of many thousand values.
_DOCUMENTS_PER_FILTER = 500


@dataclass(frozen=True)
class Written:
    """What the store acknowledged: documents completed, all their points, surplus points removed."""

    points: int = 0
    documents: int = 0
    removed: int = 0


class DocumentWriter:
    """Writes, patches and deletes whole documents, each by the protocol above.

    `stored` is what the store was found to hold of the documents at hand: heads by document, without those that it
    does not hold. A crash at any moment, and a new run over the same or a later source, leaves the points of the last
    run alone.
    """

    def __init__(self, store: Store, collection_name: str, batch_points: int = 256) -> None:
        self._store = store
        self._collection = collection_name
        self._batch_points = batch_points

    def write(self, points: Points, stored: Mapping[Key, Head]) -> Written:
        """Write documents; `headwater` in their payloads says which chunk of which document each point is.

        Raises BrokenInvariant for chunks out of order or documents that are not whole. After PointTooLarge, delete
        the point's document and write the others again.
        """
        counts = _documents(points)
        self._mark(
            key for key in stored.keys() & counts.keys() if max(stored[key].chunk_count, counts[key]) > 1
        )
        heads: list[int] = []
        rest: list[int] = []
        for row, payload in enumerate(points.payloads):
            (rest if payload[OURS]["chunk_index"] else heads).append(row)
        self._upsert(points, rest)
        removed = self._delete(self._surplus(counts, stored))
        self._upsert(points, heads)
        return Written(len(points), len(counts), removed)

    def patch(
        self, documents: Mapping[Key, Head], change: Callable[[str, dict[str, Any]], dict[str, Any]]
    ) -> None:
        """Give every chunk of these stored documents the payload `change(point id, payload)`; vectors stay.

        The new payload of a head must not carry the mark.
        """
        self._mark(key for key, head in documents.items() if head.chunk_count > 1)
        rest = [point_id(*key, n) for key, head in documents.items() for n in range(1, head.chunk_count)]
        for ids in (rest, [point_id(*key, 0) for key in documents]):
            for start in range(0, len(ids), self._batch_points):
                found = self._store.retrieve(self._collection, ids[start : start + self._batch_points])
                fresh = {str(record.id): change(str(record.id), record.payload or {}) for record in found}
                self._store.overwrite_payloads(self._collection, list(fresh), list(fresh.values()))

    def delete(self, documents: Sequence[Key], stored: Mapping[Key, Head]) -> int:
        """Delete all chunks of these documents, heads last; returns how many there were."""
        self._mark(key for key in documents if key in stored and stored[key].chunk_count > 1)
        return self._delete(self._surplus(dict.fromkeys(documents, 0), stored))

    def _mark(self, documents: Iterator[Key]) -> None:
        """Take back what the heads of these stored documents vouch for, until they are written anew."""
        ids = sorted(point_id(*key, 0) for key in documents)
        for start in range(0, len(ids), _PAGE):
            some = ids[start : start + _PAGE]
            self._store.set_payload(self._collection, {WRITING: True}, some, key=OURS)

    def _upsert(self, points: Points, rows: list[int]) -> None:
        if rows:
            for batch in points.take(rows).batches(self._batch_points):
                with metrics.timed(metrics.UPSERT_SECONDS):
                    self._store.upsert(self._collection, batch)

    def _surplus(self, counts: Mapping[Key, int], stored: Mapping[Key, Head]) -> list[tuple[int, str]]:
        """(chunk index, id) of stored points at or past their document's count.

        Where no head vouches for a document the store is asked: a run that died while a document grew has left
        chunks that no head counts.
        """
        vouched = {key: stored[key] for key in counts if key in stored and not stored[key].writing}
        known = [
            (index, point_id(*key, index))
            for key, head in vouched.items()
            for index in range(counts[key], head.chunk_count)
        ]
        return [*known, *self._ask({key: count for key, count in counts.items() if key not in vouched})]

    def _ask(self, counts: Mapping[Key, int]) -> Iterator[tuple[int, str]]:
        keys = list(counts)
        for start in range(0, len(keys), _DOCUMENTS_PER_FILTER):
            some = keys[start : start + _DOCUMENTS_PER_FILTER]
            least = min(counts[key] for key in some)
            for record in self._scroll(_chunks_of(some, least)):
                ours = record.payload[OURS]
                index = ours["chunk_index"]
                # The filter names namespaces and ids apart, so it also finds other pairs of them.
                if index >= counts.get((ours["namespace"], ours["document_id"]), index + 1):
                    yield index, str(record.id)

    def _scroll(self, where: models.Filter) -> Iterator[Any]:
        offset: str | None = None
        while True:
            records, offset = self._store.scroll(
                self._collection, where, limit=_PAGE, offset=offset, with_payload=_KEYS
            )
            yield from records
            if offset is None:
                return

    def _delete(self, chunks: list[tuple[int, str]]) -> int:
        """Delete points, heads last."""
        ids = [id for _, id in sorted(chunks, reverse=True)]
        for start in range(0, len(ids), _PAGE):
            self._store.delete(self._collection, ids[start : start + _PAGE])
        return len(ids)


def _documents(points: Points) -> dict[Key, int]:
    """The chunk count of each document; raise BrokenInvariant unless all are whole and in order."""
    counts: dict[Key, int] = {}
    expected = 0
    for payload in points.payloads:
        ours = payload[OURS]
        key = (ours["namespace"], ours["document_id"])
        index, count = ours["chunk_index"], ours["chunk_count"]
        if index != expected or not index < count or (index == 0) == (key in counts):
            raise BrokenInvariant(
                f"chunk {index} of {count} of document {key} where chunk {expected} was due",
                "A document's chunks come in order, all at once, and none twice",
                "Report it as a bug with this message",
            )
        counts[key] = count
        expected = (index + 1) % count
    if expected:
        raise BrokenInvariant(
            f"document {key} without its last chunks, from {expected} on",
            "A document is written as a whole",
            "Report it as a bug with this message",
        )
    return counts


def _chunks_of(documents: Sequence[Key], first: int) -> models.Filter:
    """Chunks numbered `first` or higher of documents with one of these namespaces and one of these ids."""
    namespaces = sorted({namespace for namespace, _ in documents})
    ids = sorted({document_id for _, document_id in documents})
    return models.Filter(
        must=[
            models.FieldCondition(key="headwater.document_id", match=models.MatchAny(any=ids)),
            models.FieldCondition(key="headwater.namespace", match=models.MatchAny(any=namespaces)),
            models.FieldCondition(key="headwater.chunk_index", range=models.Range(gte=first)),
        ]
    )
