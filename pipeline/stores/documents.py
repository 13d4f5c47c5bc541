"""Whole documents as they are stored, read while others may write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from pipeline.schemas import point_id
from pipeline.stores.heads import Head, Key, read_heads
from pipeline.stores.profiles import OURS
from pipeline.stores.store import Store

_PAGE = 256  # points, with their payloads and perhaps vectors, in one request


@dataclass(frozen=True)
class Chunk:
    """A chunk's point. `vectors`: by name, "" for the unnamed one; {} where they were not read."""

    id: str
    payload: dict[str, Any]
    vectors: dict[str, Any]

    @classmethod
    def of(cls, record: models.Record) -> Chunk:
        """The chunk of a point that was read."""
        named = record.vector if isinstance(record.vector, dict) else {"": record.vector}
        return cls(str(record.id), record.payload or {}, named if record.vector else {})


def read_documents(
    store: Store, collection_name: str, documents: Mapping[Key, Head], with_vectors: bool = False
) -> Iterator[dict[Key, list[Chunk]]]:
    """The points of these documents in order of their chunks, some documents at a time.

    A document is given as its head says, or not at all: left out are those that were changed since, or are being
    changed. For that heads are read once more after the chunks.
    """
    for some in _groups(documents):
        ids = {key: [point_id(*key, n) for n in range(head.chunk_count)] for key, head in some.items()}
        found = _retrieve(store, collection_name, [id for each in ids.values() for id in each], with_vectors)
        now = read_heads(store, collection_name, list(some))
        whole: dict[Key, list[Chunk]] = {}
        for key, head in some.items():
            chunks = [found[id] for id in ids[key] if id in found]
            if now.get(key) == head and not head.writing and _belong(chunks, head):
                whole[key] = chunks
        yield whole


def _groups(documents: Mapping[Key, Head]) -> Iterator[dict[Key, Head]]:
    some: dict[Key, Head] = {}
    points = 0
    for key, head in documents.items():
        if some and points + head.chunk_count > _PAGE:
            yield some
            some, points = {}, 0
        some[key] = head
        points += head.chunk_count
    if some:
        yield some


def _retrieve(store: Store, collection_name: str, ids: Sequence[str], with_vectors: bool) -> dict[str, Chunk]:
    pages = (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))
    records = (one for page in pages for one in store.retrieve(collection_name, page, True, with_vectors))
    return {str(record.id): Chunk.of(record) for record in records}


def _belong(chunks: Sequence[Chunk], head: Head) -> bool:
    """Whether these are all chunks of the version that the head speaks of, as far as they say it."""
    said = [chunk.payload[OURS] for chunk in chunks]
    return len(said) == head.chunk_count and all(
        (one["chunk_count"], one["sequence"]) == (head.chunk_count, head.sequence) for one in said
    )
