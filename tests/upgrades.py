"""Collections of tiny encoders that are upgraded, and what an ingest of the same source would hold."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import documents
import points
import runs

from pipeline.config import Settings
from pipeline.local import LocalExecutor
from pipeline.stores import Tombstones, collection, open_store
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.reindex import Reindexed, reindex

SEQUENCED = {"source__sequence": "at", "source__operation": "op"}


def pair(old: Path, new: Path, cache: Path, url: str, folder: Path, **more: Any) -> tuple[Settings, Settings]:
    """Settings of two encoders for one collection; rows have a sequence `at` and an operation `op`."""
    state = {"run__state": str(folder / "state"), **SEQUENCED, **more}
    return runs.settings(old, cache, url, **state), runs.settings(new, cache, url, **state)


def ingest(to: Settings, rows: list[dict[str, Any]], folder: Path) -> None:
    """Index rows from a fresh file."""
    file = folder / f"rows-{len(list(folder.glob('rows-*')))}.parquet"
    assert runs.run(documents.write(file, rows), to).exit_code == 0


def upgrade(to: Settings, **how: Any) -> Reindexed:
    """Reindex the collection to the encoder of the settings."""
    limits = how.pop("limits", None) or Limits()
    return reindex(to, limits, LocalExecutor, how.pop("stop", None) or threading.Event(), **how)


def at(settings: Settings, alias: str) -> Settings:
    """The same for another alias."""
    return settings.model_copy(update={"store": settings.store.model_copy(update={"collection": alias})})


def held(settings: Settings, alias: str = "docs") -> dict[str, Any]:
    """Point id -> (payload, vectors) behind an alias."""
    return points.contents_of(settings.store.url, alias)


def expected(settings: Settings, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What an ingest of these rows alone makes of an empty store."""
    folder.mkdir()
    state = {"run": settings.run.model_copy(update={"state": str(folder / "state")})}
    fresh = settings.model_copy(
        update={"store": settings.store.model_copy(update={"url": f"memory:{folder}"}), **state}
    )
    ingest(fresh, rows, folder)
    return held(fresh)


def tombstones(settings: Settings, alias: str) -> dict[tuple[str, str], int]:
    """The deletions that a version remembers."""
    store = open_store(settings.store)
    try:
        found: dict[tuple[str, str], int] = {}
        for page in Tombstones(store, collection.resolve(store, alias) or "").scan():
            found |= page
        return found
    finally:
        store.close()


def changed(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**row, **values}
