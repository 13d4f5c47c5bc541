"""Everything a store holds, in a form that compares."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.config import StoreConfig
from pipeline.stores import Store, collection, open_store


def contents(store: Store, alias: str) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """Point id -> (payload, vector) of the collection behind an alias."""
    physical = collection.resolve(store, alias)
    assert physical is not None, f"no collection {alias!r}"
    found: dict[str, tuple[dict[str, Any], list[float]]] = {}
    offset = None
    while True:
        records, offset = store.scroll(physical, limit=500, offset=offset, with_vectors=True)
        for record in records:
            found[str(record.id)] = (record.payload, record.vector)
        if offset is None:
            return found


def contents_of(url: str, alias: str) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """The same of a store by URL, opened and closed."""
    store = open_store(StoreConfig(url=url, collection=alias))
    try:
        return contents(store, alias)
    finally:
        store.close()


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Same ids, equal payloads, vectors within 1e-5."""
    assert left.keys() == right.keys()
    for id, (payload, vector) in left.items():
        assert payload == right[id][0]
        np.testing.assert_allclose(vector, right[id][1], atol=1e-5)


def differing(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """The ids of points that one side lacks, or that are not the same on both."""
    same = [
        id
        for id in left.keys() & right.keys()
        if left[id][0] == right[id][0] and np.allclose(left[id][1], right[id][1], atol=1e-5)
    ]
    return sorted((left.keys() | right.keys()) - set(same))
