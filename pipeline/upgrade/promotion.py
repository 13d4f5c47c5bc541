"""`headwater promote`, `rollback` and `retire`: which version serves is what the aliases say, changed in one request.

So no crash leaves half a swap: the version before serves, or the one after. What is on record beside that is
commentary, and filled in by the next command where a crash has left it out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pipeline import logs
from pipeline.config import EncoderConfig, Settings
from pipeline.errors import UpgradeRefused
from pipeline.schemas import Observer, Progress
from pipeline.stores import NEXT, PREVIOUS, Foreign, Store, collection, count_stored
from pipeline.upgrade.completeness import count_differing
from pipeline.upgrade.difference import Mirrored, Sides
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.mirror import mirror, mirror_tombstones
from pipeline.upgrade.turns import turns_beside
from pipeline.upgrade.versions import (
    Version,
    Versions,
    drop,
    leased,
    moment,
    not_carried,
    opened,
    read_record,
    record,
    unused,
)

log = logs.logger(__name__)


class Verdict(Protocol):
    """What a gate says of a candidate."""

    @property
    def outcome(self) -> str:
        """Pass, hold or fail; nothing but "pass" lets it serve."""

    @property
    def why(self) -> str:
        """What speaks against it."""

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""


Judge = Callable[[Store], Verdict]


@dataclass(frozen=True)
class Swapped:
    """Which physical collection serves now, and which did before; `caught_up` documents were changed meanwhile.

    `not_carried`: what other programs have put into the one before.
    """

    collection: str
    serving: str
    before: str
    caught_up: int
    not_carried: Foreign
    verdict: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def promote(
    settings: Settings,
    how: EncoderConfig,
    judge: Judge,
    stop: threading.Event,
    observe: Observer = lambda _: None,
) -> Swapped:
    """Let the candidate serve, if it holds what the serving version holds and the gate lets it pass.

    What changed meanwhile is brought over, last while no run can be at work. After a crash at any moment one version
    serves, whole; the same again ends right. Raises UpgradeRefused, with everything as it was, CollectionHeld where a
    run is at work.
    """
    with opened(settings) as (store, versions):
        versions = settle(store, versions)
        candidate = _candidate(versions)
        name = versions.name
        with leased(store, settings, name + NEXT, "promote", stop) as guarded:
            versions.confirm(store)
            side = _Side(guarded, versions, candidate, settings, how)
            caught_up = side.catch_up(stop, observe)
            observe(Progress("judging the candidate"))
            verdict = judge(store)
            if verdict.outcome != "pass":
                raise _not_passed(name, verdict, settings.gate.tolerance)
            observe(Progress("waiting for runs that are at work"))
            with leased(store, settings, name, "promote", stop, settings.versions.wait_s) as alone:
                versions.confirm(store)
                caught_up += side.catch_up(stop, observe, last=True)
                record(store, candidate.physical, {"verdict": verdict.outcome})
                record(store, versions.serving.physical, {"replaced": moment(), "by": candidate.physical})
                _swap(alone, name, serving=candidate, kept=versions.serving, kept_as=PREVIOUS, gone=NEXT)
                record(store, candidate.physical, {"promoted": moment()})
        lost = not_carried(store, versions.serving, candidate)
    return Swapped(name, candidate.physical, versions.serving.physical, caught_up, lost, verdict.as_dict())


def rollback(
    settings: Settings, how: EncoderConfig, stop: threading.Event, observe: Observer = lambda _: None
) -> Swapped:
    """Let the version that was replaced serve again, with all that changed since; the other becomes the candidate.

    Crashes and errors are as with `promote`.
    """
    with opened(settings) as (store, versions):
        versions = settle(store, versions)
        name, previous = versions.name, versions.previous
        if previous is None:
            raise _nothing_kept(name)
        if versions.next is not None:
            raise UpgradeRefused(
                f"{name}{NEXT} is being built, and the version that serves would take its place",
                "There can be one candidate only",
                "Throw it away first: headwater retire --next",
            )
        with (
            leased(store, settings, name + NEXT, "rollback", stop),
            leased(store, settings, name + PREVIOUS, "rollback", stop) as guarded,
        ):
            versions.confirm(store)
            previous = _open_for(guarded, previous, versions.serving)
            versions = replace(versions, previous=previous)
            side = _Side(guarded, versions, previous, settings, how)
            caught_up = side.catch_up(stop, observe)
            observe(Progress("waiting for runs that are at work"))
            with leased(store, settings, name, "rollback", stop, settings.versions.wait_s) as alone:
                versions.confirm(store)
                caught_up += side.catch_up(stop, observe, last=True)
                record(store, previous.physical, {"rolled_back": moment()})
                _swap(alone, name, serving=previous, kept=versions.serving, kept_as=NEXT, gone=PREVIOUS)
        lost = not_carried(store, versions.serving, previous)
    return Swapped(name, previous.physical, versions.serving.physical, caught_up, lost)


def retire(settings: Settings, stop: threading.Event, now: bool = False, candidate: bool = False) -> str:
    """Delete the version that was replaced, or with `candidate` the one being built; its physical name.

    Safe to repeat after a crash. Raises UpgradeRefused where there is none, or before its time unless `now`.
    """
    with opened(settings) as (store, versions):
        versions = settle(store, versions)
        alias = versions.name + (NEXT if candidate else PREVIOUS)
        gone = versions.next if candidate else versions.previous
        if gone is None:
            raise _nothing_kept(versions.name) if not candidate else _nothing_built(versions.name)
        if not (candidate or now):
            _check_window(store, gone, settings.versions.keep_s)
        with leased(store, settings, alias, "retire", stop) as guarded:
            versions.confirm(store)
            drop(guarded, gone.physical)
    log.info("version_retired", collection=versions.name, physical=gone.physical)
    return gone.physical


def retire_unused(settings: Settings, stop: threading.Event) -> list[str]:
    """Delete the versions that no alias names, of commands that died before they were whole; their physical names.

    Safe to repeat after a crash. Raises CollectionHeld while one is being made.
    """
    with (
        opened(settings) as (store, versions),
        leased(store, settings, versions.name + NEXT, "retire", stop) as guarded,
    ):
        gone = unused(store, versions.name)
        for physical in gone:
            drop(guarded, physical)
    log.info("versions_retired", collection=versions.name, physical=gone)
    return gone


def settle(store: Store, versions: Versions) -> Versions:
    """Fill in what a crash has left out of the record; the versions themselves need nothing."""
    if versions.previous:
        kept = read_record(store, versions.previous.physical)
        replaced = kept.get("replaced") or moment()
        if "replaced" not in kept:
            record(store, versions.previous.physical, {"replaced": replaced, "by": versions.serving.physical})
        if read_record(store, versions.serving.physical).get("promoted", "") < replaced:
            record(store, versions.serving.physical, {"promoted": replaced})
    return versions


@dataclass(frozen=True)
class _Side:
    """The version that is to serve, brought in step with the one that does. The store is guarded by its lease."""

    store: Store
    versions: Versions
    target: Version
    settings: Settings
    how: EncoderConfig

    def catch_up(self, stop: threading.Event, observe: Observer, last: bool = False) -> int:
        """Bring over what changed, and say how much that was; the `last` time nobody may write what serves.

        Raises UpgradeRefused where the target cannot hold all of it, or the last time does not.
        """
        serving, target = self.versions.serving, self.target
        if not serving.contract.chunker_versions & target.contract.chunker_versions:
            turn = turns_beside(self.store, self.settings, self.versions.name, "promote", stop)
            changed = mirror_tombstones(self.store, self._sides, turn)
            self._check_same(count_differing(self.store, serving.physical, target.physical))
            _check_not_stopped(stop)
            return changed
        done = self._mirror(stop, observe)
        _check_not_stopped(stop)
        if done.rejected or (last and done.left):
            raise self._unequal(done)
        held = [count_stored(self.store, one.physical).documents for one in (serving, target)]
        if last:
            self._check_same(abs(held[0] - held[1]))
        return done.changed

    @property
    def _sides(self) -> Sides:
        accept, name = self.target.contract.encoder_versions, self.versions.name
        source, target = self.versions.serving.physical, self.target.physical
        return Sides(name, source, target, self.target.widths, accept)

    def _mirror(self, stop: threading.Event, observe: Observer) -> Mirrored:
        turn = turns_beside(self.store, self.settings, self.versions.name, "promote", stop)
        maker = self.target.embedder(self.how, self.settings.run.window_tokens)
        try:
            return mirror(self.store, self._sides, maker, Limits(), stop, observe, turn)
        finally:
            maker.close()

    def _check_same(self, differing: int) -> None:
        if differing:
            raise UpgradeRefused(
                f"{differing} documents differ between {self.target.alias} and {self.versions.name}",
                "Both must hold the same documents",
                f"Bring them over from their source: headwater reindex --from, or headwater ingest --collection "
                f"{self.target.alias} with the encoder of that version",
            )

    def _unequal(self, done: Mirrored) -> UpgradeRefused:
        if done.rejected:
            first = done.rejected[0]
            return UpgradeRefused(
                f"{len(done.rejected)} documents cannot be copied to {self.target.alias} as they are cut, the first "
                f"{first.document_id!r}: {first.message}",
                "Both must hold the same documents",
                f"Bring them over from their source: headwater reindex --from, or headwater ingest --collection "
                f"{self.target.alias} with the encoder of that version",
            )
        return UpgradeRefused(
            f"{done.left} documents of {self.versions.name} are half-written: a run has died in them",
            "Only whole documents are brought over",
            "Run that ingest again, to its end",
        )


def _check_not_stopped(stop: threading.Event) -> None:
    if stop.is_set():
        raise UpgradeRefused(
            "it was interrupted", "Nothing is swapped before both hold the same", "Run again"
        )


def _open_for(store: Store, target: Version, source: Version) -> Version:
    """Say in the target's contract that chunks may come to it as the source has them, where both share some."""
    ours, theirs = target.contract, source.contract.chunker_versions
    if not ours.chunker_versions & theirs:
        return target
    cut_by = (ours.chunker_versions | theirs) - {ours.chunker_version}
    return target.write(store, replace(ours, also_cut_by=tuple(sorted(cut_by))))


def _swap(store: Store, name: str, *, serving: Version, kept: Version, kept_as: str, gone: str) -> None:
    """One version begins to serve, the one that did is kept, all in one request; not if a stall cost the lease."""
    store.flush()
    targets = {name: serving.physical, name + kept_as: kept.physical, name + gone: None}
    collection.point_aliases(store, targets)
    log.info("version_swapped", collection=name, serving=serving.physical, kept=kept.physical)


def _candidate(versions: Versions) -> Version:
    """The candidate; raises UpgradeRefused where there is none, or where its place is taken."""
    if versions.next is None:
        raise _no_candidate(versions.name)
    if versions.previous is not None:
        raise UpgradeRefused(
            f"{versions.name}{PREVIOUS} is still kept from the upgrade before",
            "Only one version is kept to go back to",
            "Delete it first: headwater retire, with --now where its time is not over",
        )
    return versions.next


def _check_window(store: Store, kept: Version, keep_s: float) -> None:
    until = datetime.fromisoformat(read_record(store, kept.physical)["replaced"]) + timedelta(seconds=keep_s)
    if datetime.now(UTC) < until:
        raise UpgradeRefused(
            f"{kept.alias} is kept until {until.isoformat(timespec='minutes')}, to go back to",
            f"That is {keep_s:g} s after it was replaced (versions.keep_s)",
            "Wait, or say --now",
        )


def _no_candidate(name: str) -> UpgradeRefused:
    return UpgradeRefused(
        f"no version of {name!r} is being built",
        f"There is no {name}{NEXT}",
        "Run headwater reindex --to ENCODER first",
    )


def _nothing_built(name: str) -> UpgradeRefused:
    return UpgradeRefused(
        f"no version of {name!r} is being built",
        f"There is no {name}{NEXT}",
        "There is nothing to throw away",
    )


def _nothing_kept(name: str) -> UpgradeRefused:
    return UpgradeRefused(
        f"no version of {name!r} is kept",
        f"There is no {name}{PREVIOUS}, as nothing was promoted or it has been retired",
        "There is nothing to do",
    )


def _not_passed(name: str, verdict: Verdict, tolerance: float) -> UpgradeRefused:
    away = "choose another encoder or bridge, and throw this candidate away: headwater retire --next"
    held = f"Give it more judged queries, or allow a greater loss: gate.tolerance, which is {tolerance:g} now. Or "
    return UpgradeRefused(
        f"the gate says {verdict.outcome} to {name}{NEXT}: {verdict.why}",
        "Only a candidate that passes may serve; headwater versions gate shows all checks",
        held + away if verdict.outcome == "hold" else away.capitalize(),
    )
