"""Where a store holds anything of a document or of a tenant, and its removal from there."""

from __future__ import annotations

from qdrant_client import models

from pipeline.stores.collection import resolve, versions
from pipeline.stores.profiles import OURS
from pipeline.stores.store import Store
from pipeline.stores.suppressions import Subject
from pipeline.stores.tombstones import Tombstones

_PAGE = 1000


def holders(store: Store, alias: str) -> dict[str, str]:
    """The collections that may hold something, each with what it holds: "points" or "tombstones".

    They are all versions of the collection, the live one and those that are kept, and what lies beside them.
    """
    physical = {*versions(store, alias), *filter(None, [resolve(store, alias)])}
    found = dict.fromkeys(sorted(physical), "points")
    for name in sorted(physical):
        tombstones = Tombstones(store, name)
        if tombstones.exist():
            found[tombstones.name] = "tombstones"
    return found


def count_held(store: Store, holder: str, kind: str, subject: Subject) -> int:
    """How many points of a holder are about this document or tenant; exact."""
    return store.count(holder, _about(kind, subject)).count


def remove_held(store: Store, holder: str, kind: str, subject: Subject) -> None:
    """Remove the points of a holder that are about this document or tenant; safe to repeat after a crash.

    By their ids: a store keeps what it was asked in its log, and a filter would name the subject there.
    """
    while True:
        found, _ = store.scroll(holder, _about(kind, subject), limit=_PAGE, with_payload=False)
        if not found:
            return
        store.delete(holder, [str(record.id) for record in found])


def _about(kind: str, subject: Subject) -> models.Filter:
    prefix = f"{OURS}." if kind == "points" else ""
    named = zip(("namespace", "document_id"), subject, strict=True)
    return models.Filter(
        must=[
            models.FieldCondition(key=f"{prefix}{name}", match=models.MatchValue(value=value))
            for name, value in named
            if value is not None
        ]
    )
