"""A Qdrant server that others may use too, for the store's contract: QDRANT_URL names it, QDRANT_API_KEY opens it."""

from __future__ import annotations

import os
import uuid

import pytest
from pydantic import SecretStr
from qdrant_client import models

from pipeline.config import StoreConfig
from pipeline.stores import Store, open_store


class Apart:
    """A store of which one sees only what was made through this, under names of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = f"headwater-test-{uuid.uuid4().hex[:8]}-"

    def __getattr__(self, method):
        call = getattr(self._store, method)
        return lambda collection_name, *more, **named: call(self._prefix + collection_name, *more, **named)

    def get_collections(self):
        found = self._store.get_collections().collections
        mine = [one.name for one in found if one.name.startswith(self._prefix)]
        names = [models.CollectionDescription(name=name.removeprefix(self._prefix)) for name in mine]
        return models.CollectionsResponse(collections=names)

    def get_aliases(self):
        found = self._store.get_aliases().aliases
        mine = [one for one in found if one.alias_name.startswith(self._prefix)]
        names = [
            models.AliasDescription(
                alias_name=one.alias_name.removeprefix(self._prefix),
                collection_name=one.collection_name.removeprefix(self._prefix),
            )
            for one in mine
        ]
        return models.CollectionsAliasesResponse(aliases=names)

    def update_collection_aliases(self, change_aliases_operations):
        changes = []
        for change in change_aliases_operations:
            change = change.model_copy(deep=True)
            for names in vars(change).values():
                for key in vars(names):
                    setattr(names, key, self._prefix + getattr(names, key))
            changes.append(change)
        return self._store.update_collection_aliases(changes)

    def flush(self):
        self._store.flush()

    def close(self):
        for left in self.get_collections().collections:
            self._store.delete_collection(self._prefix + left.name)
        self._store.close()


def open_real(**settings) -> Apart:
    """The server that QDRANT_URL names; skips the test where it names none."""
    url = os.environ.get("QDRANT_URL")
    if not url:
        pytest.skip("QDRANT_URL names no server")
    key = SecretStr(os.environ.get("QDRANT_API_KEY", ""))
    over_grpc = url.startswith("grpc")
    return Apart(open_store(StoreConfig(url=url, prefer_grpc=over_grpc, api_key=key, **settings)))
