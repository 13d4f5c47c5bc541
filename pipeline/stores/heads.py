"""Heads: what a document's first point says of the document as it is stored.

A head is marked `writing` before anything of its document changes, that of a new document from its first moment on,
and written without the mark after everything else. So an unmarked head vouches for the whole document: all its chunks
are there, none too many, as its hashes say. And no chunk is there without a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.schemas import point_id
from pipeline.stores.profiles import OURS
from pipeline.stores.store import Store

Key = tuple[str, str]
"""A document: (namespace, document id)."""

WRITING = "writing"
REJECTED = "rejected"
MARKS = frozenset({WRITING, REJECTED})
"""What is written on a head besides what the document's version says."""


@dataclass(frozen=True)
class Head:
    """A document as it is stored.

    `writing`: a change of it began and did not come to its end. `rejected`: why a newer version of it was not taken,
    "" if none was.
    """

    text_hash: str
    metadata_hash: str
    chunk_count: int
    sequence: int
    encoder_version: str
    writing: bool
    rejected: str = ""

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Head:
        """The head in a first point's payload."""
        ours = payload[OURS]
        return cls(
            text_hash=ours["text_hash"],
            metadata_hash=ours["metadata_hash"],
            chunk_count=ours["chunk_count"],
            sequence=ours["sequence"],
            encoder_version=ours["encoder_version"],
            writing=ours.get(WRITING, False),
            rejected=ours.get(REJECTED, ""),
        )


def read_heads(store: Store, collection_name: str, documents: Sequence[Key]) -> dict[Key, Head]:
    """The heads of these documents, in one request; documents that are not stored are left out."""
    keys = {point_id(*key, 0): key for key in documents}
    found = store.retrieve(collection_name, list(keys), with_payload=[OURS])
    return {keys[str(record.id)]: Head.read(record.payload or {}) for record in found}
