"""The graph and the codes in memory of a store that does not build them by itself."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import Settings
from pipeline.job import check_target
from pipeline.stores import Purpose, open_collection


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
    store, physical = open_collection(settings.store, Purpose.OPTIMIZE)
    with closing(store):
        before = store.get_collection(physical)
        store.optimize(physical)
        store.flush()
        after = store.get_collection(physical)
    return Optimized(
        after.points_count or 0, before.indexed_vectors_count or 0, after.indexed_vectors_count or 0
    )
