"""The graph and the codes in memory of a store that does not build them by itself."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import Settings
from pipeline.errors import CollectionMismatch
from pipeline.job import check_target
from pipeline.stores import Purpose, collection, open_store, store_exists


@dataclass(frozen=True)
class Optimized:
    """Points that a collection holds, and vectors of them in the graph before and after."""

    points: int
    indexed_before: int
    indexed: int

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return asdict(self)


def optimize(settings: Settings) -> Optimized:
    """Build what searches of a collection go by; the store is held meanwhile, and the points stay as they are.

    A crash leaves the collection as it was, or with its graph; safe to repeat. Raises CollectionMismatch where there
    is no such collection.
    """
    check_target(settings)
    alias = settings.store.collection
    missing = CollectionMismatch(
        f"no collection {alias!r} in {settings.store.url}",
        "An ingested collection",
        "Run headwater ingest first, or check --store and --collection",
    )
    if not store_exists(settings.store):
        raise missing
    with closing(open_store(settings.store, Purpose.OPTIMIZE)) as store:
        physical = collection.resolve(store, alias)
        if physical is None:
            raise missing
        before = store.get_collection(physical)
        store.optimize(physical)
        store.flush()
        after = store.get_collection(physical)
    return Optimized(
        after.points_count or 0, before.indexed_vectors_count or 0, after.indexed_vectors_count or 0
    )
