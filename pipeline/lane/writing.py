"""From embedded windows to acknowledged points: payloads, vectors that cannot be stored, and the split's counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import StoreConfig
from pipeline.errors import PointTooLarge
from pipeline.lane.sieve import newer_version_of
from pipeline.lane.windows import TOKENS, Patch, Window, token_counts
from pipeline.schemas import Counts, Rejected, Split, digest
from pipeline.stores import (
    MARKS,
    DocumentWriter,
    Head,
    Key,
    Points,
    Store,
    Tombstones,
    Written,
    profile_named,
    read_heads,
)

Rows = list[dict[str, Any]]
"""Rows of CHUNKS, as Python objects."""


_NO_VECTOR = {
    "unusable_vector": "the encoder gave it a vector that is zero or holds NaN or infinity. "
    "A point needs a finite vector with a direction. Check the model with headwater doctor.",
    "out_of_memory": "alone it is more than the encoder has memory for. A chunk has to fit, in a batch of its own. "
    "Lower chunking.max_tokens, or use a machine with more memory.",
    "too_long": "an aspect's tokenizer makes more tokens of it than that encoder takes, and nothing is truncated. "
    "Lower chunking.max_tokens.",
}
_TOO_LARGE = "Make the document's metadata smaller, or cut words of megabytes in its text."


class SplitWriter:
    """Writes the windows of one split in order; see `DocumentWriter` for what a crash leaves.

    A document is written when all of its chunks are embedded; until then they are kept here. `widths`: the vectors of
    a point by name, in the order of an embedded row.
    """

    def __init__(
        self,
        split: Split,
        store: Store,
        collection: str,
        config: StoreConfig,
        encoder_version: str,
        widths: Mapping[str, int],
    ) -> None:
        self._split = split
        self._names = list(widths)
        self._cuts = np.cumsum(list(widths.values()))[:-1].tolist()
        self._profile = profile_named(config.profile)
        self._encoder_version = encoder_version
        self._store = store
        self._collection = collection
        self._writer = DocumentWriter(store, collection, config.batch_points)
        self._tombstones = Tombstones(store, collection)
        self._begun = Begun()
        self._stored: dict[Key, Head] = {}  # of documents that are still to be written
        self._revived: set[Key] = set()  # those of them, and of new ones, that have a tombstone
        self._without: dict[str, str] = {}  # points of chunks that lack a vector, and why

    def write(self, window: Window, vectors: NDArray[np.float32]) -> tuple[Counts, list[Rejected]]:
        """Write a window whose chunks have these rows of vectors (float32[n, width]) and say what became of it.

        A document of which a vector is not finite, or zero, or of which a point is more than the store takes, is
        rejected whole. What is stored of it stays, and its head says so, unless the store has refused a point of it
        half-way: then nothing of it stays.
        """
        self._stored.update(window.stored)
        self._revived.update(window.revived)
        self._without.update(window.without)
        rejected = list(window.rejected)
        tokens = [name for name in window.chunks.schema.names if name.startswith(TOKENS)]
        rows, vectors_of_rows = self._begun.add(window.chunks.drop_columns(tokens).to_pylist(), vectors)
        written, chunks = self._write(rows, vectors_of_rows, rejected)
        self._tombstones.set(window.tombstones)
        removed = written.removed + self._writer.delete((*window.deleted, *window.leftovers), self._stored)
        patched = self._patch(window.patches, rejected)
        removed += self._keep(rejected)
        self._settle({*map(_key, rows), *(patch.key for patch in window.patches)}, window, rejected)
        others = len(window.deleted) + patched + window.unchanged + window.stale + len(rejected)
        return Counts(
            read=written.documents + others,
            indexed=written.documents,
            unchanged=window.unchanged,
            patched=patched,
            deleted=len(window.deleted),
            stale=window.stale,
            rejected=len(rejected),
            points_removed=removed,
            chunks=chunks,
            points=written.points,
            tokens=int(token_counts(window.chunks).sum()),
            truncated=window.truncated,
        ), rejected

    def _write(
        self, rows: Rows, vectors: NDArray[np.float32], rejected: list[Rejected]
    ) -> tuple[Written, int]:
        """Write whole documents, and count their chunks; those that cannot be stored are added to `rejected`."""
        lost = self._unusable(rows, vectors, rejected)
        payloads = [self._payload(row) for row in rows]
        lost |= self._oversized(rows, vectors, payloads, lost, rejected)
        removed = 0
        while True:
            points = self._points(rows, vectors, payloads, lambda key: key not in lost)
            try:
                written = self._writer.write(points, self._stored)
            except PointTooLarge as error:
                row = next(row for row in rows if row["point_id"] == error.point_id)
                lost.add(_key(row))
                rejected.append(self._reject(row, "store", "too_large", str(error)))
                begun = read_heads(self._store, self._collection, [_key(row)])
                removed += self._writer.delete(list(begun), begun)
                self._stored.pop(_key(row), None)
            else:
                return Written(written.points, written.documents, written.removed + removed), len(points)

    def _points(
        self,
        rows: Rows,
        vectors: NDArray[np.float32],
        payloads: list[dict[str, Any]],
        wanted: Callable[[Key], bool],
    ) -> Points:
        kept = [number for number, row in enumerate(rows) if wanted(_key(row))]
        ids = [rows[number]["point_id"] for number in kept]
        columns = np.split(vectors[kept], self._cuts, axis=1)
        return Points(
            ids, dict(zip(self._names, columns, strict=True)), [payloads[number] for number in kept]
        )

    def _oversized(
        self,
        rows: Rows,
        vectors: NDArray[np.float32],
        payloads: list[dict[str, Any]],
        lost: set[Key],
        rejected: list[Rejected],
    ) -> set[Key]:
        """The stored documents whose new version the store will not take, found before anything is overwritten."""
        points = self._points(rows, vectors, payloads, lambda key: key in self._stored and key not in lost)
        large = set(self._store.too_large(self._collection, points))
        found = {_key(row): row for row in rows if row["point_id"] in large}
        for row in found.values():
            message = f"chunk {row['chunk_index']} is more than the store takes in a request. {_TOO_LARGE}"
            rejected.append(self._reject(row, "store", "too_large", message))
        return set(found)

    def _unusable(self, rows: Rows, vectors: NDArray[np.float32], rejected: list[Rejected]) -> set[Key]:
        """The documents with a vector that is not finite, or zero; each is added to `rejected` once."""
        unusable = np.zeros(len(vectors), np.bool_)
        for column in np.split(vectors, self._cuts, axis=1):
            unusable |= ~np.isfinite(column).all(axis=1) | ~column.any(axis=1)
        lost: set[Key] = set()
        for number in np.flatnonzero(unusable).tolist():
            row = rows[number]
            if _key(row) not in lost:
                lost.add(_key(row))
                reason = self._without.get(row["point_id"], "unusable_vector")
                message = f"chunk {row['chunk_index']}: {_NO_VECTOR[reason]}"
                rejected.append(self._reject(row, "encoder", reason, message))
        return lost

    def _patch(self, patches: tuple[Patch, ...], rejected: list[Rejected]) -> int:
        """Give all chunks of documents whose text is the same their new metadata and sequence; count the documents."""
        fresh = {patch.key: patch for patch in patches}

        def change(id: str, payload: dict[str, Any]) -> dict[str, Any]:
            ours = {name: value for name, value in payload["headwater"].items() if name not in MARKS}
            patch = fresh[ours["namespace"], ours["document_id"]]
            ours["sequence"] = patch.sequence
            if not ours["chunk_index"]:
                ours["metadata_hash"] = digest(patch.metadata)
            text, _ = self._profile.read(payload)
            return self._profile.write(id, text, json.loads(patch.metadata), ours)

        refused = self._writer.patch({key: self._stored[key] for key in fresh}, change)
        for (namespace, document_id), error in refused.items():
            patch = fresh[namespace, document_id]
            row = {"namespace": namespace, "document_id": document_id, **vars(patch)}
            rejected.append(self._reject(row, "store", "too_large", str(error)))
        return len(fresh) - len(refused)

    def _keep(self, rejected: list[Rejected]) -> int:
        """Say on the heads of stored documents that a newer version was rejected; returns points removed.

        What no head vouches for is removed: it is no version of its document.
        """
        flags: dict[Key, str] = {}
        torn: list[Key] = []
        for one in rejected:
            key = newer_version_of(one)
            head = self._stored.get(key) if key else None
            if key is None or head is None or (one.sequence or 0) < head.sequence:
                continue
            if head.writing:
                torn.append(key)
            elif head.rejected != one.reason:
                flags[key] = one.reason
        self._writer.flag(flags)
        return self._writer.delete(torn, self._stored)

    def _settle(self, written: set[Key], window: Window, rejected: list[Rejected]) -> None:
        """Remove tombstones that have no use any more, and forget about documents that are done with."""
        lost = {key for key in map(newer_version_of, rejected) if key is not None}
        self._tombstones.remove(sorted((written - lost) & self._revived))
        for key in written.union(lost, window.deleted, window.leftovers):
            self._stored.pop(key, None)
            self._revived.discard(key)

    def _reject(self, row: Mapping[str, Any], stage: str, reason: str, message: str) -> Rejected:
        return Rejected(
            row["document_id"],
            self._split.uri,
            row["row"],
            stage,
            reason,
            message,
            row["namespace"],
            row["sequence"],
        )

    def _payload(self, row: dict[str, Any]) -> dict[str, Any]:
        ours = {
            "document_id": row["document_id"],
            "namespace": row["namespace"],
            "chunk_index": row["chunk_index"],
            "chunk_count": row["chunk_count"],
            "start": row["start"],
            "end": row["end"],
            "sequence": row["sequence"],
            "encoder_version": self._encoder_version,
        }
        if not row["chunk_index"]:
            ours |= {"text_hash": row["text_hash"], "metadata_hash": digest(row["metadata"])}
        return self._profile.write(row["point_id"], row["text"], json.loads(row["metadata"]), ours)


class Begun:
    """The chunks of the one document that has begun and goes on in the next window."""

    def __init__(self) -> None:
        self._rows: Rows = []
        self._vectors: list[NDArray[np.float32]] = []

    def add(self, rows: Rows, vectors: NDArray[np.float32]) -> tuple[Rows, NDArray[np.float32]]:
        """Take a window's chunks, and give those of documents that are whole now, kept ones first."""
        last = rows[-1] if rows else None
        if last is None or last["chunk_index"] + 1 == last["chunk_count"]:
            whole = len(rows)
        else:
            whole = max(0, len(rows) - 1 - last["chunk_index"])
        if not whole:
            if rows:
                self._rows += rows
                self._vectors.append(vectors)
            return [], vectors[:0]
        ready = self._rows + rows[:whole], np.concatenate([*self._vectors, vectors[:whole]])
        self._rows, self._vectors = rows[whole:], [vectors[whole:]]
        return ready


def _key(row: Mapping[str, Any]) -> Key:
    return row["namespace"], row["document_id"]
