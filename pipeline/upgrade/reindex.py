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
from pipeline.stores import NEXT, Foreign, Store
from pipeline.summary import Summary
from pipeline.upgrade.candidate import WHY, Target, Way, aim, open_candidate
from pipeline.upgrade.difference import Mirrored, Sides
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.mirror import mirror, mirror_tombstones
from pipeline.upgrade.turns import Turn, turns_beside, turns_within
from pipeline.upgrade.vectors import Maker
from pipeline.upgrade.versions import Version, Versions, count_points, leased, not_carried, opened

_PASSES = 4  # over a collection that others go on changing; what differs then is left for the next run


@dataclass(frozen=True)
class Reindexed:
    """What a run did for the version `physical`, whose `points` are told by the encoder version of their vectors.

    `complete`: it held all that the serving version did when that was read last, embedded or mapped. `not_carried`:
    what other programs have put there, and no run of ours brings over.
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
    not_carried: Foreign = field(default_factory=Foreign)

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
            "not_carried": vars(self.not_carried),
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
        way, target = aim(store, versions, settings, source, bridge)
        if way is Way.NOTHING:
            return _told(store, versions.name, way, versions.serving, Mirrored(), True, limits)
        # That of the candidate excludes other builds and swaps, also where none is built; live runs do not need it.
        with leased(store, settings, versions.name + NEXT, "reindex", stop) as guarded:
            versions.confirm(store)
            if way is Way.IN_PLACE:
                within = turns_within(guarded, settings, versions.name, "reindex", stop)
                return _in_place(_Passes(guarded, within, stop, observe), versions, settings, limits)
            candidate = open_candidate(guarded, versions, way, target)
            turn = turns_beside(guarded, settings, versions.name, "reindex", stop)
            if way is not Way.SOURCE:
                passes = _Passes(guarded, turn, stop, observe)
                return _fill(passes, versions, candidate, way, target, limits)
            mirror_tombstones(guarded, _sides(versions, candidate, frozenset()), turn)
    summary = ingest(source, target.settings, executor(), stop, observe)
    with opened(settings) as (store, _):
        points, lost = count_points(store, candidate), not_carried(store, versions.serving, candidate)
    complete, version = summary.exit_code == 0, target.spec.version
    done = Reindexed(versions.name, way, candidate.physical, version, points, complete, ingested=summary)
    return replace(done, not_carried=lost)


@dataclass(frozen=True)
class _Passes:
    """Passes of the mirror over a store; what they write, they write in turns."""

    store: Store
    turn: Turn
    stop: threading.Event
    observe: Observer

    def run(self, sides: Sides, maker: Maker, limits: Limits) -> Mirrored:
        """Passes until one finds nothing that it can do, or enough are done; frees the maker."""
        total = Mirrored()
        try:
            for _ in range(_PASSES):
                done = mirror(self.store, sides, maker, limits, self.stop, self.observe, self.turn)
                total = done.after(total)
                if not done.changed or self.stop.is_set() or limits.reached:
                    break
        finally:
            maker.close()
        return total


def _fill(
    passes: _Passes, versions: Versions, candidate: Version, way: Way, target: Target, limits: Limits
) -> Reindexed:
    """Map or copy all documents first, in a family; then embed those that are not, as far as the limits go."""
    done, complete = Mirrored(), False
    sides = _sides(versions, candidate, candidate.contract.encoder_versions)
    if way is Way.FAMILY:
        done = passes.run(sides, target.carrier(versions.serving), Limits(hours=limits.hours))
        complete = done.equal
    if not passes.stop.is_set():
        maker = candidate.embedder(target.settings.encoder, target.settings.run.window_tokens)
        embedded = replace(sides, accept=frozenset({candidate.contract.encoder_version}))
        done = passes.run(embedded, maker, limits).after(done)
        complete = complete or done.equal
    candidate = _without_family(passes.store, candidate)
    told = _told(passes.store, versions.name, way, candidate, done, complete, limits)
    return replace(told, not_carried=not_carried(passes.store, versions.serving, candidate))


def _in_place(passes: _Passes, versions: Versions, settings: Settings, limits: Limits) -> Reindexed:
    """Embed what was mapped, over itself; others write between two turns, and what they have changed stays so."""
    serving = versions.serving
    sides = _sides(versions, serving, frozenset({serving.contract.encoder_version}))
    maker = serving.embedder(settings.encoder, settings.run.window_tokens)
    done = passes.run(sides, maker, limits)
    serving = _without_family(passes.store, serving)
    return _told(passes.store, versions.name, Way.IN_PLACE, serving, done, True, limits)


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
