"""All that a collection holds, page by page, as it takes to compare it with a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from qdrant_client import models

from pipeline.errors import StoreError
from pipeline.stores.heads import Head, Key
from pipeline.stores.profiles import CHUNK_INDEX, ENCODER_VERSION, NAMESPACE, OURS
from pipeline.stores.store import Store

_PAGE = 1000


@dataclass(frozen=True)
class Held:
    """How many documents, by their heads, and points of ours a collection holds."""

    documents: int
    points: int


def count_stored(store: Store, collection_name: str) -> Held:
    """What a collection holds of ours, exactly, by two counts over an index; points that others made do not count."""
    head = models.FieldCondition(key=CHUNK_INDEX, match=models.MatchValue(value=0))
    chunk = models.FieldCondition(key=CHUNK_INDEX, range=models.Range(gte=0))
    documents, points = (
        store.count(collection_name, models.Filter(must=[condition])).count for condition in (head, chunk)
    )
    return Held(documents, points)


def count_version(store: Store, collection_name: str, encoder_version: str) -> int:
    """How many points say that this version of an encoder made their vectors; exact."""
    made = models.FieldCondition(key=ENCODER_VERSION, match=models.MatchValue(value=encoder_version))
    return store.count(collection_name, models.Filter(must=[made])).count


def scan_heads(store: Store, collection_name: str, namespace: str | None) -> Iterator[list[str]]:
    """The ids of the heads of a namespace's documents, or (None) of all documents."""
    head = models.FieldCondition(key=CHUNK_INDEX, match=models.MatchValue(value=0))
    where = models.Filter(must=[head, *_of(namespace)])
    for records in _pages(store, collection_name, where, []):
        yield [str(record.id) for record in records]


def scan_documents(store: Store, collection_name: str) -> Iterator[dict[Key, Head]]:
    """All documents by their heads, a page at a time; what comes behind a page is read later."""
    head = models.FieldCondition(key=CHUNK_INDEX, match=models.MatchValue(value=0))
    for records in _pages(store, collection_name, models.Filter(must=[head]), [OURS]):
        payloads = [record.payload or {} for record in records]
        yield {(one[OURS]["namespace"], one[OURS]["document_id"]): Head.read(one) for one in payloads}


def scan_points(
    store: Store, collection_name: str, namespace: str | None
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """(id, payload) of the points of a namespace's documents, or (None) of all points, also those that others made.

    Of the payload there are our own fields alone.
    """
    conditions = _of(namespace)
    where = models.Filter(must=conditions) if conditions else None
    for records in _pages(store, collection_name, where, [OURS]):
        yield [(str(record.id), dict(record.payload or {})) for record in records]


def scan_vectors(store: Store, collection_name: str, vector_name: str) -> Iterator[list[float]]:
    """The vector of this name of each point; "" is the unnamed one."""
    offset: str | None = None
    while True:
        records, offset = store.scroll(
            collection_name, limit=_PAGE, offset=offset, with_payload=False, with_vectors=True
        )
        for record in records:
            yield _vector(record, vector_name)
        if offset is None:
            return


def _vector(record: models.Record, name: str) -> list[float]:
    held = record.vector.get(name) if isinstance(record.vector, dict) else record.vector
    if not isinstance(held, list):
        raise StoreError(
            f"point {record.id} has no vector {name!r}", "", "headwater audit shows what is damaged"
        )
    return cast(list[float], held)


def _of(namespace: str | None) -> list[models.Condition]:
    if namespace is None:
        return []
    return [models.FieldCondition(key=NAMESPACE, match=models.MatchValue(value=namespace))]


def _pages(
    store: Store, collection_name: str, where: models.Filter | None, fields: list[str]
) -> Iterator[list[models.Record]]:
    offset: str | None = None
    while True:
        records, offset = store.scroll(
            collection_name, where, limit=_PAGE, offset=offset, with_payload=fields or False
        )
        yield records
        if offset is None:
            return
