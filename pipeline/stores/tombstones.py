"""Tombstones: which documents a source deleted, and at which sequence, so that no older version brings one back.

They are points of a collection beside the documents' own, made when first needed, which no reader, search or count of
the documents ever meets. Only sources with sequences leave and heed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from pipeline.schemas import point_id
from pipeline.stores.collection import make_beside
from pipeline.stores.heads import Key
from pipeline.stores.points import Points
from pipeline.stores.store import Store

_PAGE = 1000


class Tombstones:
    """The tombstones beside one physical collection. `name` is the collection that holds them.

    A tombstone is set before anything of its document is deleted, and removed after a version that is not older has
    been written: a crash in between leaves one too many, never one too few.
    """

    def __init__(self, store: Store, collection_name: str) -> None:
        self.name = f"{collection_name}__deleted"
        self._store = store
        self._made = False  # collection and indexes, as far as this object knows
        self._found = False

    def exist(self) -> bool:
        """Whether any document was ever deleted with a sequence; asked until it is so."""
        self._found = self._found or self._store.collection_exists(self.name)
        return self._found

    def find(self, documents: Sequence[Key]) -> dict[Key, int]:
        """The sequences at which these documents were deleted, in one request; {} for all others."""
        if not documents or not self.exist():
            return {}
        keys = {point_id(*key, 0): key for key in documents}
        found = self._store.retrieve(self.name, list(keys), with_payload=["sequence"])
        return {keys[str(record.id)]: (record.payload or {})["sequence"] for record in found}

    def scan(self) -> Iterator[dict[Key, int]]:
        """All of them, a page at a time: the sequences at which documents were deleted."""
        offset: str | None = None
        while self.exist():
            records, offset = self._store.scroll(self.name, limit=_PAGE, offset=offset)
            payloads = [record.payload or {} for record in records]
            yield {(one["namespace"], one["document_id"]): one["sequence"] for one in payloads}
            if offset is None:
                return

    def set(self, sequences: Mapping[Key, int]) -> None:
        """Note that these documents were deleted at these sequences."""
        if not sequences:
            return
        if not self._made:
            make_beside(self._store, self.name, {"namespace", "document_id"})
            self._made = True
        payloads = [
            {"namespace": namespace, "document_id": document_id, "sequence": sequence}
            for (namespace, document_id), sequence in sequences.items()
        ]
        ids = [point_id(*key, 0) for key in sequences]
        self._store.upsert(self.name, Points(ids, {"": np.ones((len(ids), 1), np.float32)}, payloads))

    def remove(self, documents: Iterable[Key]) -> None:
        """Forget that these documents were deleted."""
        ids = [point_id(*key, 0) for key in documents]
        for start in range(0, len(ids), _PAGE):
            self._store.delete(self.name, ids[start : start + _PAGE])
