"""The write protocol: a document's head (chunk 0) is written after all of its other chunks.

So whoever finds a document's new head finds the document as it should be: all chunks written, surplus ones gone.
A run that died can be run again, over the same source or a later one: ids are deterministic, what was written
is written over, and what should not be there is found by asking the store, not by remembering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models

from pipeline import metrics
from pipeline.errors import BrokenInvariant, PointTooLarge
from pipeline.stores.points import Points
from pipeline.stores.store import Store

Key = tuple[str, str]
"""A document: (namespace, document id)."""

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
    """Writes the chunks of documents that arrive in order, a document's over one or several writes.

    One writer serves one stream of chunks; after an error throw it away and begin the stream again with a new
    one (PointTooLarge is no such error). In memory it keeps one held-back head for each document that has begun
    and not ended: at most one in a split. A crash at any moment, and a new run over the same or a later source,
    leaves the points of the last run alone.
    """

    def __init__(self, store: Store, collection_name: str, batch_points: int = 256) -> None:
        self._store = store
        self._collection = collection_name
        self._batch_points = batch_points
        self._heads: dict[Key, Points] = {}
        self._written: dict[Key, int] = {}  # chunks of open documents so far, the held-back head included

    @property
    def open_documents(self) -> int:
        """Documents whose last chunk has not come yet; 0 at the end of a split."""
        return len(self._heads)

    def write(self, points: Points) -> Written:
        """Write chunks; `headwater` in their payloads says which chunk of which document each is.

        Returns when the store has applied: all chunks but heads, then the removal of chunks past the new end
        of the documents that are complete with this call, then their heads. Raises BrokenInvariant for chunks
        out of order. The head of a document that goes on in the next call counts as a point of the call that
        completes it. PointTooLarge leaves the writer as it was before the call: drop the point's document and
        write the others again.
        """
        before = dict(self._heads), dict(self._written)
        try:
            return self._write(points)
        except PointTooLarge:
            self._heads, self._written = before
            raise

    def _write(self, points: Points) -> Written:
        rest, ended = self._sort(points)
        for batch in points.take(rest).batches(self._batch_points) if rest else ():
            self._upsert(batch)
        removed = self._delete(self._surplus(ended))
        heads = [self._heads.pop(key) for key in ended]
        for start in range(0, len(heads), self._batch_points):
            self._upsert(_join(heads[start : start + self._batch_points]))
        return Written(sum(ended.values()), len(heads), removed)

    def _upsert(self, points: Points) -> None:
        with metrics.timed(metrics.UPSERT_SECONDS):
            self._store.upsert(self._collection, points)

    def delete(self, documents: Sequence[Key]) -> int:
        """Delete all chunks of these documents, heads last; returns how many there were.

        After a crash in between, the same call deletes the rest.
        """
        return self._delete(self._surplus(dict.fromkeys(documents, 0)))

    def drop(self, documents: Sequence[Key]) -> int:
        """Give up documents half-way and delete what is stored of them; returns how many points that were."""
        for key in documents:
            self._heads.pop(key, None)
            self._written.pop(key, None)
        return self.delete(documents)

    def _sort(self, points: Points) -> tuple[list[int], dict[Key, int]]:
        """Hold heads back; return the rows of other chunks, and the chunk counts of complete documents."""
        rest: list[int] = []
        ended: dict[Key, int] = {}
        for row, payload in enumerate(points.payloads):
            ours = payload["headwater"]
            key = (ours["namespace"], ours["document_id"])
            index, count = ours["chunk_index"], ours["chunk_count"]
            if index != self._written.get(key, 0) or not index < count:
                raise BrokenInvariant(
                    f"chunk {index} of {count} of document {key} after {self._written.get(key, 0)} others",
                    "A document's chunks arrive in order, and none twice",
                    "Report it as a bug with this message",
                )
            if index == 0:
                self._heads[key] = points.take([row])
            else:
                rest.append(row)
            self._written[key] = index + 1
            if index + 1 == count:
                ended[key] = count
                del self._written[key]
        return rest, ended

    def _surplus(self, counts: dict[Key, int]) -> list[tuple[int, str]]:
        """(chunk index, id) of stored points at or past their document's count.

        The store is asked, not the old head: a run that died while a document grew has left chunks no head
        counts.
        """
        found: list[tuple[int, str]] = []
        keys = list(counts)
        for start in range(0, len(keys), _DOCUMENTS_PER_FILTER):
            some = keys[start : start + _DOCUMENTS_PER_FILTER]
            least = min(counts[key] for key in some)
            for record in self._scroll(_chunks_of(some, least)):
                ours = record.payload["headwater"]
                index = ours["chunk_index"]
                # The filter names namespaces and ids apart, so it also finds other pairs of them.
                if index >= counts.get((ours["namespace"], ours["document_id"]), index + 1):
                    found.append((index, str(record.id)))
        return found

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


def _join(heads: Sequence[Points]) -> Points:
    return Points(
        [head.ids[0] for head in heads],
        np.concatenate([head.vectors for head in heads]),
        [head.payloads[0] for head in heads],
        heads[0].vector_name,
    )
