"""The write protocol: an unmarked head vouches for its whole document (see heads.py).

    mark the heads of documents that are stored and will change; write those of new documents, marked
    write all chunks but heads
    remove chunks past the new end
    write the heads, which takes the mark away

So a document is found as it was, as it should be, or marked, and where no head is there is nothing of it. A run that
died can be run again, over the same source or a later one: ids are deterministic, what was written is written over,
and what should not be there is computed from an unmarked head, or found by asking the store about a marked one, never
by remembering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qdrant_client import models

from pipeline import metrics
from pipeline.errors import BrokenInvariant, PointTooLarge
from pipeline.schemas import point_id
from pipeline.stores.heads import REJECTED, WRITING, Head, Key
from pipeline.stores.points import Points
from pipeline.stores.profiles import CHUNK_INDEX, DOCUMENT_ID, NAMESPACE, OURS
from pipeline.stores.store import Store

_KEYS = [NAMESPACE, DOCUMENT_ID, CHUNK_INDEX]
_PAGE = 1000
# Documents asked for in one filter; servers and the engine slow down on filters of many thousand values.
_DOCUMENTS_PER_FILTER = 500


Change = Callable[[str, dict[str, Any]], dict[str, Any]]
"""From a point's id and its payload to its new payload."""


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
        self._begin(points.take([row for row in heads if _is_new(points.payloads[row], stored)]))
        self._upsert(points, rest)
        removed = self._delete(self._surplus(counts, stored))
        self._upsert(points, heads)
        return Written(len(points), len(counts), removed)

    def patch(self, documents: Mapping[Key, Head], change: Change) -> dict[Key, PointTooLarge]:
        """Give every chunk of these stored documents the payload `change(point id, payload)`; vectors stay.

        The new payload of a head must not carry the mark. Documents of which the store finds a point too large get
        back what they had, and are returned with its error.
        """
        refused: dict[Key, PointTooLarge] = {}
        some: dict[Key, Head] = {}
        points = 0
        for key, head in documents.items():  # the payloads of so many points are in memory at a time
            some[key] = head
            points += head.chunk_count
            if points >= self._batch_points:
                refused |= self._patch(some, change)
                some, points = {}, 0
        return refused | self._patch(some, change)

    def _patch(self, documents: Mapping[Key, Head], change: Change) -> dict[Key, PointTooLarge]:
        before = self._payloads(documents)
        after = {
            key: {id: change(id, old) for id, old in payloads.items()} for key, payloads in before.items()
        }
        refused: dict[Key, PointTooLarge] = {}
        self._mark(key for key, head in documents.items() if head.chunk_count > 1)
        while True:
            try:
                self._overwrite(after)
            except PointTooLarge as error:
                key = next(key for key, payloads in after.items() if error.point_id in payloads)
                refused[key] = error
                del after[key]
            else:
                self._overwrite({key: before[key] for key in refused})
                return refused

    def _payloads(self, documents: Mapping[Key, Head]) -> dict[Key, dict[str, dict[str, Any]]]:
        """The payloads of each document's points by id."""
        owners = {point_id(*key, n): key for key, head in documents.items() for n in range(head.chunk_count)}
        ids = list(owners)
        payloads: dict[Key, dict[str, dict[str, Any]]] = {key: {} for key in documents}
        for start in range(0, len(ids), self._batch_points):
            for record in self._store.retrieve(self._collection, ids[start : start + self._batch_points]):
                payloads[owners[str(record.id)]][str(record.id)] = record.payload or {}
        return payloads

    def _overwrite(self, documents: Mapping[Key, Mapping[str, dict[str, Any]]]) -> None:
        """Give the points of documents these payloads, heads last."""
        heads = {point_id(*key, 0) for key in documents}
        every = [pair for payloads in documents.values() for pair in payloads.items()]
        for some in (
            [pair for pair in every if pair[0] not in heads],
            [pair for pair in every if pair[0] in heads],
        ):
            for start in range(0, len(some), self._batch_points):
                ids, payloads = zip(*some[start : start + self._batch_points], strict=True)
                self._store.overwrite_payloads(self._collection, ids, payloads)

    def rewrite(self, points: Points) -> None:
        """Write whole documents over themselves of which nothing but vectors is new, heads last.

        Nothing is marked: at every moment all chunks are there, as their head says, and only vectors are of two
        versions until the head names the new one.
        """
        _documents(points)
        heads = [row for row, payload in enumerate(points.payloads) if not payload[OURS]["chunk_index"]]
        self._upsert(points, sorted(set(range(len(points))) - set(heads)))
        self._upsert(points, heads)

    def flag(self, documents: Mapping[Key, str]) -> None:
        """Write on the heads of these stored documents why a newer version of theirs was rejected."""
        for reason in sorted(set(documents.values())):
            ids = [point_id(*key, 0) for key, why in documents.items() if why == reason]
            for start in range(0, len(ids), _PAGE):
                some = ids[start : start + _PAGE]
                self._store.set_payload(self._collection, {REJECTED: reason}, some, key=OURS)

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

    def _begin(self, heads: Points) -> None:
        """Write heads of new documents, marked, so that whoever finds a chunk finds a head."""
        marked = [payload | {OURS: payload[OURS] | {WRITING: True}} for payload in heads.payloads]
        self._upsert(replace(heads, payloads=marked), list(range(len(heads))))

    def _upsert(self, points: Points, rows: list[int]) -> None:
        if rows:
            with metrics.timed(metrics.UPSERT_SECONDS):
                self._store.upsert(self._collection, points.take(rows))  # which sends it in batches

    def _surplus(self, counts: Mapping[Key, int], stored: Mapping[Key, Head]) -> list[tuple[int, str]]:
        """(chunk index, id) of stored points at or past their document's count.

        The store is asked about a document whose head is marked: a run that died while the document grew has left
        chunks that no head counts.
        """
        known = {key: stored[key] for key in counts if key in stored}
        counted = [
            (index, point_id(*key, index))
            for key, head in known.items()
            if not head.writing
            for index in range(counts[key], head.chunk_count)
        ]
        return [*counted, *self._ask({key: counts[key] for key, head in known.items() if head.writing})]

    def _ask(self, counts: Mapping[Key, int]) -> Iterator[tuple[int, str]]:
        keys = list(counts)
        for start in range(0, len(keys), _DOCUMENTS_PER_FILTER):
            some = keys[start : start + _DOCUMENTS_PER_FILTER]
            least = min(counts[key] for key in some)
            for record in self._scroll(_chunks_of(some, least)):
                index = record.payload[OURS]["chunk_index"]
                # The filter names namespaces and ids apart, so it also finds other pairs of them.
                if index >= counts.get(_document(record.payload), index + 1):
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


def _document(payload: Mapping[str, Any]) -> Key:
    return payload[OURS]["namespace"], payload[OURS]["document_id"]


def _is_new(head: Mapping[str, Any], stored: Mapping[Key, Head]) -> bool:
    """Whether the document of this first point is not stored, and will be in more than one write."""
    return head[OURS]["chunk_count"] > 1 and _document(head) not in stored


def _documents(points: Points) -> dict[Key, int]:
    """The chunk count of each document; raise BrokenInvariant unless all are whole and in order."""
    counts: dict[Key, int] = {}
    expected = 0
    for payload in points.payloads:
        ours, key = payload[OURS], _document(payload)
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
            models.FieldCondition(key=DOCUMENT_ID, match=models.MatchAny(any=ids)),
            models.FieldCondition(key=NAMESPACE, match=models.MatchAny(any=namespaces)),
            models.FieldCondition(key=CHUNK_INDEX, range=models.Range(gte=first)),
        ]
    )
