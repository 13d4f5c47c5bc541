"""Forgetting: everything of a document or a tenant goes, wherever it was put, and stays gone.

First the suppression is written, which later runs obey, and what is being written into a version beside the live one
is waited for. Then points and tombstones go from every version of the collection, the live one and those that are kept,
and then what the state folder says of it. Every place is counted before and after. What source files, snapshots and
backups hold, and what an engine's files hold until it has compacted them, is out of reach.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import logs
from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.job import check_target
from pipeline.stores import (
    Purpose,
    Store,
    Subject,
    Suppressions,
    count_held,
    filling,
    hold_lease,
    holders,
    name_of,
    open_store,
    outlast,
    remove_held,
    store_exists,
)
from pipeline.sync import count_traces, remove_traces, trace_files

log = logs.logger(__name__)


@dataclass(frozen=True)
class Place:
    """A collection or file that held something, or could have; `kind` says what: points, tombstones or traces."""

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Forgotten:
    """What was there and what is left, place by place; and whether later runs are told."""

    collection: str
    suppressed: bool
    places: tuple[Place, ...]

    @property
    def left(self) -> int:
        """What is still there, over all places: 0, or something went wrong."""
        return sum(place.after for place in self.places)

    def as_dict(self) -> dict[str, Any]:
        """The proof as JSON values."""
        return {**asdict(self), "left": self.left}


def forget(settings: Settings, subject: Subject, state: Path) -> Forgotten:
    """Forget a document (namespace, id) or a tenant (namespace, None), and prove it; `state` is the state folder.

    Safe to repeat. After a crash at any moment nothing that is gone comes back, and the same again ends right. Raises
    CollectionHeld where a run is at work on the collection, or an ingest on another version of it, UsageError where
    there is no such collection.
    """
    alias = settings.store.collection
    with _held(settings) as store:
        suppressions = Suppressions(store, alias)
        suppressions.add(subject)
        store.flush()
        run = settings.run  # who writes into another version from here on has seen the suppression
        outlast(store, filling(alias), "forget", run.lease_s, settings.versions.wait_s, threading.Event())
        kinds = holders(store, alias)
        files = [file for name in kinds for file in trace_files(state / name)]
        in_store = {name: count_held(store, name, kind, subject) for name, kind in kinds.items()}
        in_files = {file: count_traces(file, *subject) for file in files}
        for name, kind in kinds.items():
            remove_held(store, name, kind, subject)
        store.flush()
        for file in files:
            remove_traces(file, *subject)
        found = [
            *(
                Place(name, kind, in_store[name], count_held(store, name, kind, subject))
                for name, kind in kinds.items()
            ),
            *(Place(str(file), "traces", in_files[file], count_traces(file, *subject)) for file in files),
        ]
        done = Forgotten(alias, suppressions.has(subject), tuple(found))
    log.info("forgotten", places=len(done.places), left=done.left)
    return done


def lift(settings: Settings, subject: Subject) -> bool:
    """Let a document or a tenant be indexed again; False where it was not suppressed. Safe to repeat."""
    with _held(settings) as store:
        lifted = Suppressions(store, settings.store.collection).lift(subject)
        store.flush()
    return lifted


@contextmanager
def _held(settings: Settings) -> Iterator[Store]:
    """The store, with the lease of the collection; LeaseLost at the end if it was lost meanwhile."""
    check_target(settings)
    alias = settings.store.collection
    missing = UsageError(
        f"there is no collection {alias!r} in {logs.redacted(settings.store.url)}",
        "A collection that headwater made",
        "Check --store and --collection",
    )
    if not store_exists(settings.store):
        raise missing
    store = open_store(settings.store, Purpose.FORGET)
    try:
        if not holders(store, alias):
            raise missing
        lease_s = (
            settings.run.lease_s
        )  # of the version that serves, whichever is named: live runs write that one
        with hold_lease(store, name_of(alias), "forget", lease_s, threading.Event()) as lease:
            yield store
            if lease:
                lease.check()
    finally:
        store.close()
