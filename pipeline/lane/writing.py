"""From embedded windows to acknowledged points: payloads, vectors that cannot be stored, and the split's counts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import StoreConfig
from pipeline.errors import PointTooLarge
from pipeline.lane.windows import Window, token_counts
from pipeline.schemas import Counts, Rejected, Split, point_id
from pipeline.stores import DocumentWriter, Points, Store, Written, profile_named

Key = tuple[str, str]  # (namespace, document id)


class SplitWriter:
    """Writes the windows of one split in order; see `DocumentWriter` for what a crash leaves."""

    def __init__(
        self, split: Split, store: Store, collection: str, config: StoreConfig, encoder_version: str
    ) -> None:
        self._split = split
        self._vector_name = config.vector_name
        self._profile = profile_named(config.profile)
        self._encoder_version = encoder_version
        self._writer = DocumentWriter(store, collection, config.batch_points)
        self._broken: Key | None = None  # a rejected document of which chunks may still come

    def write(self, window: Window, vectors: NDArray[np.float32]) -> tuple[Counts, list[Rejected]]:
        """Write a window whose chunks have these vectors (float32[n, dims]) and say what became of it.

        A document of which a vector is not finite, or zero, or of which a point is more than the store takes, is
        rejected whole; what is stored of it is removed if some of it was written before.
        """
        rows = window.chunks.drop_columns(["token_ids"]).to_pylist()
        unusable = np.asarray(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))
        rejected = list(window.rejected)
        lost = self._lost(rows, unusable, rejected)
        begun = [_key(rows[0])] if lost and rows[0]["chunk_index"] and _key(rows[0]) in lost else []
        removed = self._writer.drop(begun)
        written, kept = self._store(rows, vectors, lost, rejected)
        unfinished = rows and rows[-1]["chunk_index"] + 1 < rows[-1]["chunk_count"]
        self._broken = _key(rows[-1]) if unfinished and _key(rows[-1]) in lost else None
        removed += written.removed + self._writer.delete(window.deleted)
        return Counts(
            read=written.documents + len(window.deleted) + len(rejected),
            indexed=written.documents,
            deleted=len(window.deleted),
            rejected=len(rejected),
            removed=removed,
            chunks=sum(
                rows[n]["chunk_count"] for n in kept if rows[n]["chunk_index"] + 1 == rows[n]["chunk_count"]
            ),
            points=written.points,
            tokens=int(token_counts(window.chunks).sum()),
        ), rejected

    def _lost(
        self, rows: list[dict[str, Any]], unusable: NDArray[np.bool_], rejected: list[Rejected]
    ) -> set[Key]:
        """The documents of which nothing is written here; those that are rejected now are added to `rejected`."""
        lost = {self._broken} if self._broken and rows and _key(rows[0]) == self._broken else set()
        for number in np.flatnonzero(unusable).tolist():
            row = rows[number]
            if _key(row) not in lost:
                lost.add(_key(row))
                message = (
                    f"the encoder gave chunk {row['chunk_index']} a vector that is zero or holds NaN or infinity. "
                    "A point needs a finite vector with a direction. Check the model with headwater doctor."
                )
                rejected.append(self._reject(row, "encoder", "unusable_vector", message))
        return lost

    def _store(
        self,
        rows: list[dict[str, Any]],
        vectors: NDArray[np.float32],
        lost: set[Key],
        rejected: list[Rejected],
    ) -> tuple[Written, list[int]]:
        """Write the rows of documents that are not lost, and say which; those the store cannot take are lost too."""
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
                written = self._writer.write(points)
            except PointTooLarge as error:
                row = _owner(rows, error.point_id)
                lost.add(_key(row))
                rejected.append(self._reject(row, "store", "too_large", str(error)))
                removed += self._writer.drop([_key(row)])
            else:
                return replace(written, removed=written.removed + removed), kept

    def _reject(self, row: dict[str, Any], stage: str, reason: str, message: str) -> Rejected:
        return Rejected(row["document_id"], self._split.uri, row["row"], stage, reason, message)

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
        return self._profile.write(row["point_id"], row["text"], json.loads(row["metadata"]), ours)


def _owner(rows: list[dict[str, Any]], point: str) -> dict[str, Any]:
    """A row of the document that a point belongs to; its head may have come in an earlier window."""
    return next(
        row for row in rows if point in (row["point_id"], point_id(row["namespace"], row["document_id"], 0))
    )


def _key(row: dict[str, Any]) -> Key:
    return row["namespace"], row["document_id"]
