"""What is to be done with a document, decided by comparing it with what the store holds of it.

A document is new or its text changed: it is chunked, embedded and written. Only its metadata, or sequence, changed:
the payloads of its chunks are patched. Nothing changed: nothing is done. It is older than what is stored: stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.lane.windows import NO_CHUNKS, Patch, Window
from pipeline.schemas import DocumentBatch, digest
from pipeline.stores import Head, Key, Store, read_heads


@dataclass
class Sifted:
    """Rows by what is to be done; `rows` are the numbers of those to be embedded, in their batch."""

    rows: list[int] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    deleted: list[Key] = field(default_factory=list)
    unchanged: int = 0
    stale: int = 0
    stored: dict[Key, Head] = field(default_factory=dict)


class Sieve:
    """Compares batches of documents with a collection; one request a batch."""

    def __init__(self, store: Store, collection: str, encoder_version: str) -> None:
        self._store = store
        self._collection = collection
        self._encoder_version = encoder_version

    def sift(self, batch: DocumentBatch) -> tuple[Window, pa.RecordBatch]:
        """What is decided about a batch, as a window without chunks, and the documents that are to be embedded."""
        rows = batch.documents.to_pylist()
        keys = [(row["namespace"], row["document_id"]) for row in rows]
        heads = read_heads(self._store, self._collection, keys) if keys else {}
        done = sift(rows, heads, self._encoder_version)
        window = Window(
            NO_CHUNKS,
            rows=len(rows) + len(batch.rejected),
            deleted=tuple(done.deleted),
            patches=tuple(done.patches),
            unchanged=done.unchanged,
            stale=done.stale,
            stored=done.stored,
            rejected=batch.rejected,
        )
        return window, batch.documents.take(pa.array(done.rows, type=pa.int64()))


def sift(rows: list[dict[str, Any]], heads: Mapping[Key, Head], encoder_version: str) -> Sifted:
    """Decide about rows (DOCUMENTS), given the heads that are stored."""
    done = Sifted()
    for number, row in enumerate(rows):
        key = (row["namespace"], row["document_id"])
        head = heads.get(key)
        if head is not None and row["sequence"] < head.sequence:
            done.stale += 1
            continue
        if row["operation"] == "delete":
            done.deleted.append(key)
        elif head is None or _to_embed(row, head, encoder_version):
            done.rows.append(number)
        elif (digest(row["metadata"]), row["sequence"]) == (head.metadata_hash, head.sequence):
            done.unchanged += 1
            continue
        else:
            done.patches.append(Patch(key, row["metadata"], row["sequence"], row["row"]))
        if head is not None:
            done.stored[key] = head
    return done


def _to_embed(row: dict[str, Any], head: Head, encoder_version: str) -> bool:
    return head.writing or head.encoder_version != encoder_version or head.text_hash != digest(row["text"])
