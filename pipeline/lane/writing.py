"""From embedded windows to acknowledged points: payloads, vectors that cannot be stored, and the split's counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import StoreConfig
from pipeline.errors import PointTooLarge
from pipeline.lane.windows import Patch, Window, token_counts
from pipeline.schemas import Counts, Rejected, Split, digest
from pipeline.stores import DocumentWriter, Head, Key, Points, Store, Written, profile_named

Rows = list[dict[str, Any]]
"""Rows of CHUNKS, as Python objects."""


class SplitWriter:
    """Writes the windows of one split in order; see `DocumentWriter` for what a crash leaves.

    A document is written when all of its chunks are embedded; until then they are kept here.
    """

    def __init__(
        self, split: Split, store: Store, collection: str, config: StoreConfig, encoder_version: str
    ) -> None:
        self._split = split
        self._vector_name = config.vector_name
        self._profile = profile_named(config.profile)
        self._encoder_version = encoder_version
        self._writer = DocumentWriter(store, collection, config.batch_points)
        self._begun = Begun()
        self._stored: dict[Key, Head] = {}  # of documents that are still to be written

    def write(self, window: Window, vectors: NDArray[np.float32]) -> tuple[Counts, list[Rejected]]:
        """Write a window whose chunks have these vectors (float32[n, dims]) and say what became of it.

        A document of which a vector is not finite, or zero, or of which a point is more than the store takes, is
        rejected whole. What is stored of it stays, unless the store has refused a point of it half-way.
        """
        self._stored.update(window.stored)
        rejected = list(window.rejected)
        rows, vectors_of_rows = self._begun.add(
            window.chunks.drop_columns(["token_ids"]).to_pylist(), vectors
        )
        written, chunks = self._write(rows, vectors_of_rows, rejected)
        removed = written.removed + self._writer.delete(window.deleted, self._stored)
        patched = self._patch(window.patches, rejected)
        for key in {_key(row) for row in rows}.union(window.deleted, (patch.key for patch in window.patches)):
            self._stored.pop(key, None)
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
        ), rejected

    def _write(
        self, rows: Rows, vectors: NDArray[np.float32], rejected: list[Rejected]
    ) -> tuple[Written, int]:
        """Write whole documents, and count their chunks; those that cannot be stored are added to `rejected`."""
        lost = self._unusable(rows, vectors, rejected)
        removed = 0
        while True:
            kept = [number for number, row in enumerate(rows) if _key(row) not in lost]
            points = Points(
                [rows[number]["point_id"] for number in kept],
                vectors[kept],
                [self._payload(rows[number]) for number in kept],
                self._vector_name,
            )
            try:
                written = self._writer.write(points, self._stored)
            except PointTooLarge as error:
                row = next(row for row in rows if row["point_id"] == error.point_id)
                lost.add(_key(row))
                rejected.append(
                    self._reject(row["document_id"], row["row"], "store", "too_large", str(error))
                )
                removed += self._writer.delete([_key(row)], {})
            else:
                return Written(written.points, written.documents, written.removed + removed), len(kept)

    def _unusable(self, rows: Rows, vectors: NDArray[np.float32], rejected: list[Rejected]) -> set[Key]:
        """The documents with a vector that is not finite, or zero; each is added to `rejected` once."""
        unusable = np.asarray(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))
        lost: set[Key] = set()
        for number in np.flatnonzero(unusable).tolist():
            row = rows[number]
            if _key(row) not in lost:
                lost.add(_key(row))
                message = (
                    f"the encoder gave chunk {row['chunk_index']} a vector that is zero or holds NaN or infinity. "
                    "A point needs a finite vector with a direction. Check the model with headwater doctor."
                )
                rejected.append(
                    self._reject(row["document_id"], row["row"], "encoder", "unusable_vector", message)
                )
        return lost

    def _patch(self, patches: tuple[Patch, ...], rejected: list[Rejected]) -> int:
        """Give all chunks of documents whose text is the same their new metadata and sequence; count the documents."""
        fresh = {patch.key: patch for patch in patches}
        owners: dict[str, Patch] = {}  # by point id

        def change(id: str, payload: dict[str, Any]) -> dict[str, Any]:
            ours = {name: value for name, value in payload["headwater"].items() if name != "writing"}
            owners[id] = patch = fresh[ours["namespace"], ours["document_id"]]
            ours["sequence"] = patch.sequence
            if not ours["chunk_index"]:
                ours["metadata_hash"] = digest(patch.metadata)
            text, _ = self._profile.read(payload)
            return self._profile.write(id, text, json.loads(patch.metadata), ours)

        while True:
            try:
                self._writer.patch({key: self._stored[key] for key in fresh}, change)
            except PointTooLarge as error:
                lost = owners[error.point_id]
                rejected.append(self._reject(lost.key[1], lost.row, "store", "too_large", str(error)))
                del fresh[lost.key]
            else:
                return len(fresh)

    def _reject(self, document_id: str, row: int, stage: str, reason: str, message: str) -> Rejected:
        return Rejected(document_id, self._split.uri, row, stage, reason, message)

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
