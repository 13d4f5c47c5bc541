"""Suppressions: what was forgotten and must not come back, without saying what it was.

They are points without a payload of a collection beside all versions of the documents' own. A point's id is a keyed
hash of the namespace, or of namespace and document id; the key is drawn when the first is made and lies with them. So
they hold nothing to read, but who has the store and guesses an id can see whether it was forgotten.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from collections.abc import Sequence

import numpy as np

from pipeline.stores.collection import make_beside, name_of, read_metadata
from pipeline.stores.heads import Key
from pipeline.stores.points import Points
from pipeline.stores.store import Store

_KEY = "headwater_key"

Subject = tuple[str, str | None]
"""What is forgotten: a document (namespace, document id), or with None a whole namespace: a tenant."""


class Suppressions:
    """The suppressions of all versions of a collection. `name` is the collection that holds them.

    Only a run that holds the collection's lease changes them, so a run looks once whether there are any.
    """

    def __init__(self, store: Store, alias: str) -> None:
        self.name = f"{name_of(alias)}__forgotten"
        self._store = store
        self._key: bytes | None = None
        self._looked = False

    def find(self, documents: Sequence[Key]) -> set[Key]:
        """Those of these documents that were forgotten, by themselves or with their tenant; at most one request."""
        if not documents or not self._exist():
            return set()
        subjects: set[Subject] = {*documents, *((namespace, None) for namespace, _ in documents)}
        ids = {self._id(subject): subject for subject in subjects}
        found = {ids[str(one.id)] for one in self._store.retrieve(self.name, list(ids), with_payload=False)}
        return {key for key in documents if key in found or (key[0], None) in found}

    def add(self, subject: Subject) -> None:
        """Suppress a document or a tenant from now on. After a crash it is suppressed or it is not; safe to repeat."""
        if not self._exist():
            make_beside(self._store, self.name, set(), {_KEY: secrets.token_hex(32)})
            self._looked = False
        self._exist()
        point = Points([self._id(subject)], {"": np.ones((1, 1), np.float32)}, [{}])
        self._store.upsert(self.name, point)

    def lift(self, subject: Subject) -> bool:
        """Let a document or a tenant be indexed again; False where it was not suppressed."""
        if not self.has(subject):
            return False
        self._store.delete(self.name, [self._id(subject)])
        return True

    def has(self, subject: Subject) -> bool:
        """Whether exactly this document, or exactly this tenant as a whole, is suppressed."""
        return self._exist() and bool(
            self._store.retrieve(self.name, [self._id(subject)], with_payload=False)
        )

    def _exist(self) -> bool:
        if not self._looked:
            if self._store.collection_exists(self.name):
                self._key = bytes.fromhex(read_metadata(self._store, self.name)[_KEY])
            self._looked = True
        return self._key is not None

    def _id(self, subject: Subject) -> str:
        assert self._key is not None
        text = json.dumps(subject, ensure_ascii=True, separators=(",", ":"))
        return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16, key=self._key).digest()))
