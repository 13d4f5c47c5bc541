"""The lease: one run at a time works on a collection, whichever machine it is on.

A lease is a point in a collection of its own, replaced only by who names the state it is in now (compare and swap
by `update_filter`), so of two runs that reach for it at once one gets it. It never compares clocks: a holder is
taken for dead when its lease has not moved for as long as it promised, by the watch of who looks on, or when its
process is known to be gone.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from qdrant_client import models

from pipeline import logs
from pipeline.errors import CollectionHeld, LeaseLost, StoreError, TransientError
from pipeline.owner import Owner
from pipeline.pause import pause
from pipeline.stores.collection import make_beside, name_of
from pipeline.stores.permission import asking, may_write
from pipeline.stores.points import Points
from pipeline.stores.store import Store

LEASES = "headwater_leases"

_BEATS = 5  # a lease moves so many times in the time after which it would be free, or more often:
_BEAT_S = 3.0  # so that who looks on sees soon that a holder lives, however long that one may stall
_STAMP = "stamp"
_WRITES = (
    "upsert",
    "delete",
    "set_payload",
    "overwrite_payloads",
    "delete_collection",
    "update_collection_aliases",
)

log = logs.logger(__name__)


@dataclass(frozen=True)
class Record:
    """What a lease's point says. `epoch` grows with every holder, `beat` with every sign of life of one."""

    collection: str
    epoch: int
    beat: int
    holder: Owner | None  # None: released
    token: str  # one process may hold leases in several threads
    run: str
    since: str
    lease_s: float

    @property
    def stamp(self) -> str:
        """The state by which it is swapped: no two states of a lease have the same.

        The token tells apart what was counted anew from 1, after somebody deleted the leases.
        """
        return f"{self.epoch}.{self.beat}.{self.token}"

    def payload(self) -> dict[str, Any]:
        """The record as a point's payload."""
        holder = dict(self.holder.as_dict()) if self.holder else None
        return {**vars(self), "holder": holder, _STAMP: self.stamp}

    @classmethod
    def read(cls, payload: dict[str, Any]) -> Record:
        """The record that `payload` wrote; StoreError for anything else."""
        values: dict[str, Any] = {name: payload.get(name) for name in cls.__dataclass_fields__}
        record = cls(**{**values, "holder": Owner.read(values["holder"])})
        if payload.keys() != record.payload().keys() or payload[_STAMP] != record.stamp:
            raise StoreError(
                f"a lease in collection {LEASES!r} is not of our form",
                "Leases as this version of headwater writes them",
                f"Delete collection {LEASES!r} when no run is at work; it is made anew",
            )
        return record


class Lease:
    """A held lease; `run` may be set later, and is what others are told."""

    def __init__(self, store: Store, record: Record) -> None:
        self.run = record.run
        self._lost: LeaseLost | None = None
        self._store = store
        self._record = record

    @property
    def epoch(self) -> int:
        """Greater than that of every earlier holder, until somebody deletes the leases."""
        return self._record.epoch

    @property
    def token(self) -> str:
        """What tells this holder from all others."""
        return self._record.token

    @classmethod
    def take(cls, store: Store, collection: str, run: str, lease_s: float, stop: threading.Event) -> Lease:
        """Take the lease, waiting as long as it takes to see whether its holder lives, or until `stop` is set.

        Raises CollectionHeld where another run works on the collection, as far as was seen. After a crash the lease
        stays; the next taker finds the process gone, or waits for `lease_s` seconds without a sign of life.
        """
        make_beside(store, LEASES, {_STAMP})
        while True:
            found = _read(store, collection)
            if found and found.holder and not found.holder.gone() and _lives(store, found, stop):
                raise CollectionHeld(
                    f"run {found.run or 'without a name'} works on collection {collection!r} since {found.since}: "
                    f"{found.holder}",
                    "One run at a time",
                    "Nothing was done here; run again when it has ended",
                )
            mine = Record(
                collection,
                (found.epoch if found else 0) + 1,
                0,
                Owner.here(),
                uuid.uuid4().hex,
                run,
                datetime.now(UTC).isoformat(timespec="seconds"),
                lease_s,
            )
            if _swap(store, found, mine):
                return cls(store, mine)

    def beat(self) -> None:
        """Give a sign of life; raise LeaseLost where another run has taken over."""
        following = replace(self._record, beat=self._record.beat + 1, run=self.run)
        try:
            swapped = _swap(self._store, self._record, following)
        except StoreError:  # somebody may have deleted the leases
            make_beside(self._store, LEASES, {_STAMP})
            swapped = _swap(self._store, self._record, following)
        if not swapped:
            found = _read(self._store, self._record.collection)
            self._lost = _lost(self._record.collection, found, self._record.lease_s)
        self.check()
        self._record = following

    def check(self) -> None:
        """Raise LeaseLost if it was found out that another run has taken over."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Let the next run in at once; a lease already lost stays with its new holder."""
        _swap(self._store, self._record, replace(self._record, beat=self._record.beat + 1, holder=None))


class Guarded:
    """A store that is written only while a run holds its lease: for lanes, which outlive a paused driver.

    What was checked less than a third of `lease_s` ago is taken for true, so a writer that stalls for longer asks
    again before it writes, or tries again to: LeaseLost. A request that was under way when the writer stalled may
    still arrive.
    """

    def __init__(self, store: Store, collection: str, token: str, lease_s: float) -> None:
        self._store = store
        self._collection = collection
        self._token = token
        self._lease_s = lease_s
        self._checked = time.monotonic()

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401 - as the method it stands for
        if method.startswith("_"):
            raise AttributeError(method)
        found = getattr(self._store, method)
        if method not in _WRITES:
            return found

        def write(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the method it stands for
            with asking(self._check):
                may_write()
                return found(*arguments, **keywords)

        return write

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._checked < self._lease_s / 3:
            return
        found = _read(self._store, self._collection)
        if found is not None and found.token != self._token:
            raise _lost(self._collection, found, self._lease_s)
        self._checked = now


def guarded(store: Store, collection: str, token: str, lease_s: float) -> Store:
    """The store, guarded by the lease of this token; as it is where the run holds none."""
    return cast(Store, Guarded(store, collection, token, lease_s)) if token else store


@contextlib.contextmanager
def hold_lease(
    store: Store, collection: str, run: str, lease_s: float, stop: threading.Event
) -> Iterator[Lease | None]:
    """Hold a collection's lease, giving signs of life from a thread; set `stop` if another run takes over.

    `lease_s` 0 holds none. Once `stop` is set it no longer waits for a lease that another run may hold.
    """
    if not lease_s:
        yield None
        return
    lease = Lease.take(store, collection, run, lease_s, stop)
    over = threading.Event()

    def live() -> None:
        while not over.wait(_beat_s(lease_s)):
            try:
                lease.beat()
            except LeaseLost:
                stop.set()
                return
            except (TransientError, StoreError) as error:  # the next beat tells who has the lease
                log.warning("lease_not_renewed", collection=collection, error=str(error))

    heart = threading.Thread(target=live, name="lease", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        over.set()
        heart.join()
        with contextlib.suppress(TransientError, StoreError):  # then it ends by itself, in lease_s seconds
            lease.release()


def filling(alias: str) -> str:
    """What is leased while something is written into a version that does not serve: what `forget` waits for.

    Who fills such a version asks what was forgotten with this lease, and then writes.
    """
    return f"{name_of(alias)}@filling"


def outlast(
    store: Store, collection: str, run: str, lease_s: float, wait_s: float, stop: threading.Event
) -> None:
    """Return when whoever held a lease as this was called holds it no more; who took it later is not waited for.

    A holder that gives no sign of life has it taken away, so that it writes nothing any more. Raises CollectionHeld
    where one still has it after `wait_s` seconds. `lease_s` 0: there are no leases.
    """
    first = _read(store, collection) if lease_s else None
    until = time.monotonic() + wait_s
    while first and (now := _read(store, collection)) and now.holder and now.token == first.token:
        try:
            with hold_lease(store, collection, run, lease_s, stop):
                return
        except CollectionHeld:
            if time.monotonic() > until or stop.is_set():
                raise


def look_s(lease_s: float) -> float:
    """How long who waits to see whether a holder lives lets pass between two looks, in seconds."""
    return _beat_s(lease_s) / 2


def _lost(collection: str, found: Record | None, lease_s: float) -> LeaseLost:
    by = found.holder if found else None
    return LeaseLost(
        f"collection {collection!r} was taken over by {by or 'nobody we know'}: this run gave no sign of life for "
        f"{lease_s:g} s",
        "One run at a time",
        "Run again when the other has ended; raise run.lease_s if this machine stalls so long",
    )


def _beat_s(lease_s: float) -> float:
    """Seconds between two signs of life."""
    return min(lease_s / _BEATS, _BEAT_S)


def _lives(store: Store, seen: Record, stop: threading.Event) -> bool:
    """Whether a lease moves within the time its holder promised; True if `stop` is set before that is known."""
    began = time.monotonic()
    beat_s, told = _beat_s(seen.lease_s), False
    while (waited := time.monotonic() - began) < seen.lease_s:
        pause(look_s(seen.lease_s), stop)
        if stop.is_set():
            return True
        if waited > 2 * beat_s and not told:
            told = True
            log.warning(
                "lease_silent", collection=seen.collection, holder=str(seen.holder), wait_s=seen.lease_s
            )
        now = _read(store, seen.collection)
        if now is None or now.holder is None:
            return False
        if now.stamp != seen.stamp:
            return True
        if seen.holder is not None and seen.holder.gone():
            return False
    return False


def _swap(store: Store, before: Record | None, after: Record) -> bool:
    """Replace a lease if it is still as it was seen; whether it now is as we want it.

    Safe to repeat, also after an answer that was lost: only the state itself says who won.
    """
    point = Points([_point(after.collection)], {"": np.ones((1, 1), dtype=np.float32)}, [after.payload()])
    stamp = before.stamp if before else ""  # a missing point is inserted whatever the filter
    unchanged = models.Filter(must=[models.FieldCondition(key=_STAMP, match=models.MatchValue(value=stamp))])
    store.upsert(LEASES, point, update_filter=unchanged)
    found = _read(store, after.collection)
    return found is not None and (found.stamp, found.token) == (after.stamp, after.token)


def _read(store: Store, collection: str) -> Record | None:
    found = store.retrieve(LEASES, [_point(collection)])
    return Record.read(dict(found[0].payload or {})) if found else None


def _point(collection: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"headwater-lease:{collection}"))
