"""What is to be done with a document, decided by comparing it with what the store holds of it.

A document is new or its text changed: it is chunked, embedded and written. Only its metadata, or sequence, changed:
the payloads of its chunks are patched. Nothing changed: nothing is done. It is older than what is stored, or than its
deletion: stale. It was forgotten: stale too, whatever the row says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline import logs
from pipeline.lane.windows import NO_CHUNKS, Patch, Window
from pipeline.schemas import DocumentBatch, Rejected, digest
from pipeline.stores import Head, Key, Store, Suppressions, Tombstones, read_heads

log = logs.logger(__name__)


@dataclass
class Sifted:
    """Rows by what is to be done; `rows` are the numbers of those to be embedded, in their batch."""

    rows: list[int] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    deleted: list[Key] = field(default_factory=list)
    tombstones: dict[Key, int] = field(default_factory=dict)
    revived: list[Key] = field(default_factory=list)
    leftovers: list[Key] = field(default_factory=list)
    unchanged: int = 0
    stale: int = 0
    stored: dict[Key, Head] = field(default_factory=dict)


class Sieve:
    """Compares batches of documents with a collection.

    One request a batch, another where the source has sequences and something was deleted with one, and a third where
    something was forgotten.
    """

    def __init__(
        self,
        store: Store,
        collection: str,
        encoder_version: str,
        tombstones: Tombstones | None = None,  # where the source has sequences
        suppressions: Suppressions | None = None,
    ) -> None:
        self._store = store
        self._collection = collection
        self._encoder_version = encoder_version
        self._tombstones = tombstones
        self._suppressions = suppressions

    def sift(self, batch: DocumentBatch) -> tuple[Window, pa.RecordBatch]:
        """What is decided about a batch, as a window without chunks, and the documents that are to be embedded."""
        rows = batch.documents.to_pylist()
        forgotten = self._forgotten([*map(_key, rows), *filter(None, map(rejected_key, batch.rejected))])
        rejected = tuple(one for one in batch.rejected if rejected_key(one) not in forgotten)
        done = self._sift(rows, forgotten, rejected)
        suppressed = len(batch.rejected) - len(rejected) + sum(_key(row) in forgotten for row in rows)
        if suppressed:
            log.info("documents_suppressed", documents=suppressed)
        window = Window(
            NO_CHUNKS,
            rows=len(rows) + len(batch.rejected),
            deleted=tuple(done.deleted),
            tombstones=done.tombstones,
            revived=tuple(done.revived),
            leftovers=tuple(done.leftovers),
            patches=tuple(done.patches),
            unchanged=done.unchanged,
            stale=done.stale + suppressed,
            stored=done.stored,
            rejected=rejected,
        )
        return window, batch.documents.take(pa.array(done.rows, type=pa.int64()))

    def _sift(
        self, rows: list[dict[str, Any]], forgotten: set[Key], rejected: tuple[Rejected, ...]
    ) -> Sifted:
        """Ask the store about all documents but the forgotten ones, and decide about those."""
        numbered = {number: row for number, row in enumerate(rows) if _key(row) not in forgotten}
        keys = [_key(row) for row in numbered.values()]
        kept = [key for key in map(newer_version_of, rejected) if key is not None]
        heads = read_heads(self._store, self._collection, [*keys, *kept]) if keys or kept else {}
        deleted = self._tombstones.find(keys) if self._tombstones else None
        done = sift(numbered, heads, deleted, self._encoder_version)
        done.stored.update((key, heads[key]) for key in kept if key in heads)
        return done

    def _forgotten(self, keys: list[Key]) -> set[Key]:
        return self._suppressions.find(keys) if self._suppressions else set()


def sift(
    rows: Mapping[int, dict[str, Any]],
    heads: Mapping[Key, Head],
    tombstones: Mapping[Key, int] | None,
    encoder_version: str,
) -> Sifted:
    """Decide about rows (DOCUMENTS, by number), given the heads that are stored.

    `tombstones` are the sequences at which documents were deleted; None leaves none for the deletions among the rows.
    """
    done = Sifted()
    for number, row in rows.items():
        key, head = _key(row), heads.get(_key(row))
        gone = (tombstones or {}).get(key)
        if any(row["sequence"] < known for known in (head and head.sequence, gone) if known is not None):
            done.stale += 1
            if head is None or gone is None or head.sequence >= gone:
                continue
            done.leftovers.append(key)  # a deletion came half-way, or a writer too late
        elif row["operation"] == "delete":
            done.deleted.append(key)
            if tombstones is not None and gone != row["sequence"]:
                done.tombstones[key] = row["sequence"]
        elif head is None or _to_embed(row, head, encoder_version):
            done.rows.append(number)
        elif _is_as_stored(row, head) and gone is None:
            done.unchanged += 1
            continue
        else:
            done.patches.append(Patch(key, row["metadata"], row["sequence"], row["row"]))
        if head is not None:
            done.stored[key] = head
        if gone is not None:
            done.revived.append(key)
    return done


def rejected_key(rejected: Rejected) -> Key | None:
    """The document of a row that was rejected, as far as the row says it."""
    if rejected.document_id is None or rejected.namespace is None:
        return None
    return rejected.namespace, rejected.document_id


def newer_version_of(rejected: Rejected) -> Key | None:
    """The document that a rejected row would have changed; None for a duplicate, and where no order is known."""
    if rejected.reason == "duplicate" or rejected.sequence is None:
        return None
    return rejected_key(rejected)


def _key(row: Mapping[str, Any]) -> Key:
    return row["namespace"], row["document_id"]


def _to_embed(row: dict[str, Any], head: Head, encoder_version: str) -> bool:
    return head.writing or head.encoder_version != encoder_version or head.text_hash != digest(row["text"])


def _is_as_stored(row: dict[str, Any], head: Head) -> bool:
    same = (digest(row["metadata"]), row["sequence"]) == (head.metadata_hash, head.sequence)
    return same and not head.rejected  # a flag is taken off by a patch
