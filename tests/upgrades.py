"""Collections of tiny encoders that are upgraded, and what an ingest of the same source would hold."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import documents
import numpy as np
import points
import runs

from pipeline.config import EncoderConfig, Settings
from pipeline.local import LocalExecutor
from pipeline.stores import Tombstones, collection, open_store
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.promotion import promote, retire, rollback
from pipeline.upgrade.reindex import Reindexed, reindex

SEQUENCED = {"source__sequence": "at", "source__operation": "op"}


def pair(old: Path, new: Path, cache: Path, url: str, folder: Path, **more: Any) -> tuple[Settings, Settings]:
    """Settings of two encoders for one collection; rows have a sequence `at` and an operation `op`."""
    state = {"run__state": str(folder / "state"), "versions__wait_s": 0, **SEQUENCED, **more}
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
    """A row with other values."""
    return {**row, **values}


class Says:
    """A gate that always says the same."""

    why = "it is worse"

    def __init__(self, outcome="pass"):
        self.outcome = outcome

    def __call__(self, store):
        return self

    def as_dict(self):
        return {"verdict": self.outcome}


def how(settings):
    return EncoderConfig(cache=settings.encoder.cache, provider="cpu")


def promoted(settings, gate=None):
    return promote(settings, how(settings), gate or Says(), threading.Event())


def rolled_back(settings):
    return rollback(settings, how(settings), threading.Event())


def aliases(settings):
    store = open_store(settings.store)
    found = {one.alias_name: one.collection_name for one in store.get_aliases().aliases}
    store.close()
    return found


def retire_now(settings: Settings) -> None:
    """Delete the version that was replaced."""
    retire(settings, threading.Event(), now=True)


def assert_same_named(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Same ids, equal payloads, named vectors within what half precision leaves."""
    assert left.keys() == right.keys()
    for id, (payload, vectors) in left.items():
        assert payload == right[id][0]
        for name, vector in vectors.items():
            np.testing.assert_allclose(vector, right[id][1][name], atol=1e-3)
