"""`headwater reindex`: builds a version of a collection for another encoder, while the one that serves goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.ingest import Executor, ingest
from pipeline.schemas import Observer, Progress
from pipeline.stores import NEXT, Store
from pipeline.summary import Summary
from pipeline.upgrade.candidate import WHY, Target, Way, aim, open_candidate
from pipeline.upgrade.difference import Mirrored, Sides
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.mirror import mirror, mirror_tombstones, remove_forgotten
from pipeline.upgrade.vectors import Maker
from pipeline.upgrade.versions import Version, Versions, count_points, leased, opened

_PASSES = 4  # over a collection that others go on changing; what differs then is left for the next run


@dataclass(frozen=True)
class Reindexed:
    """What a run did for the version `physical`, whose `points` are told by the encoder version of their vectors.

    `complete`: it held all that the serving version did when that was read last, embedded or mapped.
    """

    collection: str
    way: Way
    physical: str
    encoder_version: str
    points: dict[str, int]
    complete: bool = True
    done: Mirrored = field(default_factory=Mirrored)
    ingested: Summary | None = None
    limit_reached: bool = False

    @property
    def exit_code(self) -> int:
        """0 done, or as far as the limits go; 3 with documents that were rejected; 130 interrupted; or the ingest's."""
        if self.ingested:
            return self.ingested.exit_code
        return 130 if self.done.stopped else 3 if self.done.rejected else 0

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "collection": self.collection,
            "way": str(self.way),
            "why": WHY[self.way],
            "physical": self.physical,
            "encoder_version": self.encoder_version,
            "points": self.points,
            "complete": self.complete,
            **self.done.as_dict(),
            "limit_reached": self.limit_reached,
            "ingested": self.ingested.as_dict() if self.ingested else None,
            "exit_code": self.exit_code,
        }


def reindex(
    settings: Settings,
    limits: Limits,
    executor: Callable[[], Executor],
    stop: threading.Event,
    observe: Observer = lambda _: None,
    source: str = "",
    bridge: Path | None = None,
) -> Reindexed:
    """Bring the collection's candidate, or in a family the collection itself, to the encoder of the settings.

    Safe to repeat: after a crash at any moment the same again goes on, and ends as if nothing had happened. Raises
    UpgradeRefused where the candidate is another encoder's or chunks cannot stay, CollectionHeld where another run is
    at work on it.
    """
    if source and limits.some:
        raise UsageError(
            "--from with --max-tokens or --window", "A source is read as a whole", "Leave them out"
        )
    with opened(settings) as (store, versions):
        observe(Progress("preparing the encoder"))
        way, target = aim(versions, settings, source, bridge)
        if way in (Way.NOTHING, Way.IN_PLACE):
            return _in_place(store, versions, way, settings, limits, stop, observe)
        with leased(store, settings, versions.name + NEXT, "reindex", stop) as guarded:
            versions.confirm(store)
            candidate = open_candidate(guarded, versions, way, target)
            if way is not Way.SOURCE:
                return _fill(guarded, versions, candidate, way, target, limits, stop, observe)
            mirror_tombstones(guarded, versions.serving.physical, candidate.physical)
    summary = ingest(source, target.settings, executor(), stop, observe)
    with opened(settings) as (store, _), leased(store, settings, candidate.alias, "reindex", stop) as guarded:
        remove_forgotten(guarded, versions.name, candidate.physical)
        points = count_points(store, candidate)
    complete = summary.exit_code == 0
    return Reindexed(
        versions.name, way, candidate.physical, target.spec.version, points, complete, ingested=summary
    )


def _fill(
    store: Store,
    versions: Versions,
    candidate: Version,
    way: Way,
    target: Target,
    limits: Limits,
    stop: threading.Event,
    observe: Observer,
) -> Reindexed:
    """Map all documents first, where there is a bridge; then embed those that are not, as far as the limits go."""
    done, complete = Mirrored(), False
    sides = _sides(versions, candidate, candidate.contract.encoder_versions)
    if target.bridge:
        done = _passes(
            store, sides, target.mapper(versions.serving), Limits(hours=limits.hours), stop, observe
        )
        complete = done.equal
    if not stop.is_set():
        maker = candidate.embedder(target.settings.encoder, target.settings.run.window_tokens)
        embedded = replace(sides, accept=frozenset({candidate.contract.encoder_version}))
        try:
            done = _passes(store, embedded, maker, limits, stop, observe).after(done)
        finally:
            maker.close()
        complete = complete or done.equal
    candidate = _without_family(store, candidate)
    return _told(store, versions.name, way, candidate, done, complete, limits)


def _in_place(
    store: Store,
    versions: Versions,
    way: Way,
    settings: Settings,
    limits: Limits,
    stop: threading.Event,
    observe: Observer,
) -> Reindexed:
    """Embed what was mapped, over itself, with the lease of the collection: nobody else writes it meanwhile."""
    serving, done = versions.serving, Mirrored()
    if way is Way.IN_PLACE:
        sides = _sides(versions, serving, frozenset({serving.contract.encoder_version}))
        maker = serving.embedder(settings.encoder, settings.run.window_tokens)
        try:
            with leased(store, settings, versions.name, "reindex", stop) as guarded:
                versions.confirm(store)
                done = _passes(guarded, sides, maker, limits, stop, observe)
                serving = _without_family(guarded, serving)
        finally:
            maker.close()
    return _told(store, versions.name, way, serving, done, True, limits)


def _passes(
    store: Store, sides: Sides, maker: Maker, limits: Limits, stop: threading.Event, observe: Observer
) -> Mirrored:
    """Passes until one finds nothing that it can do, or enough are done."""
    total = Mirrored()
    for _ in range(_PASSES):
        done = mirror(store, sides, maker, limits, stop, observe)
        total = done.after(total)
        if not done.changed or stop.is_set() or limits.reached:
            break
    return total


def _sides(versions: Versions, target: Version, accept: frozenset[str]) -> Sides:
    return Sides(versions.name, versions.serving.physical, target.physical, target.widths, accept)


def _without_family(store: Store, version: Version) -> Version:
    """Take versions of which no point is left out of the contract."""
    left = count_points(store, version)
    compatible = {one: bridge for one, bridge in version.contract.compatible.items() if one in left}
    return version.write(store, replace(version.contract, compatible=compatible))


def _told(
    store: Store, name: str, way: Way, version: Version, done: Mirrored, complete: bool, limits: Limits
) -> Reindexed:
    return Reindexed(
        name,
        way,
        version.physical,
        version.contract.encoder_version,
        count_points(store, version),
        complete,
        done,
        limit_reached=limits.reached,
    )
