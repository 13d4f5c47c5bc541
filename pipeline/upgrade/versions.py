"""The versions of a collection, by its aliases: which one serves, which is being built, which is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from pipeline import logs
from pipeline.config import EncoderConfig, Settings
from pipeline.encoders import Encoder, load_encoder
from pipeline.errors import CollectionHeld, CollectionMismatch, UpgradeRefused, UsageError
from pipeline.job import check_target
from pipeline.stores import (
    NEXT,
    PREVIOUS,
    Foreign,
    Purpose,
    Store,
    Tombstones,
    collection,
    count_stored,
    count_version,
    guarded,
    hold_lease,
    name_of,
    open_store,
    profile_named,
    read_foreign,
    store_exists,
)
from pipeline.upgrade.vectors import Embedder
from pipeline.versions import Contract

_LOOK_AGAIN_S = 0.05  # runs that follow one another leave little room

RECORD = "headwater_upgrade"
"""The key, in a collection's metadata, of the record of its upgrade: when, why and by which verdict."""


@dataclass(frozen=True)
class Version:
    """A physical collection behind an alias, and its contract."""

    alias: str
    physical: str
    contract: Contract

    @classmethod
    def read(cls, store: Store, alias: str) -> Self | None:
        """The version that an alias stands for, if there is one."""
        physical = collection.resolve(store, alias)
        if physical is None:
            return None
        return cls(alias, physical, Contract.read(collection.read_metadata(store, physical), alias))

    @property
    def widths(self) -> dict[str, int]:
        """The vectors of a point by name with their widths, in the order of an encoder's columns."""
        contract = self.contract
        if contract.codes is None:
            return {contract.vector_name: contract.dims}
        kept = {contract.vector_name: contract.dims} if contract.codes.keep_vectors else {}
        return {contract.codes.vector_name: contract.codes.spec.width, **kept}

    @property
    def vector_bytes(self) -> int:
        """What a point's vectors take: floats of 4 bytes each, and of 2 for those that codes were made from."""
        halves = {self.contract.vector_name} if self.contract.codes else set()
        return sum(width * (2 if name in halves else 4) for name, width in self.widths.items())

    def embedder(self, how: EncoderConfig, window_tokens: int) -> Embedder:
        """Embeds by the contract's encoder, run as `how` says; CollectionMismatch where another one is found."""
        contract = self.contract

        def load() -> Encoder:
            config, keep = contract.encoder_config(how), True
            if contract.codes:
                config = config.model_copy(update={"codes": how.codes or contract.codes.folder})
                keep = contract.codes.keep_vectors
            encoder = load_encoder(config, keep)
            contract.check_encoder(encoder.spec.version, encoder.spec.source, self.alias)
            return encoder

        return Embedder(contract.encoder_version, load, profile_named(contract.profile), window_tokens)

    def write(self, store: Store, contract: Contract) -> Version:
        """Change what the contract says; applied as a whole, also through a crash."""
        if contract != self.contract:
            store.update_collection(self.physical, metadata=contract.metadata())
        return replace(self, contract=contract)


@dataclass(frozen=True)
class Versions:
    """All of a collection called `name`."""

    name: str
    serving: Version
    next: Version | None
    previous: Version | None

    @classmethod
    def read(cls, store: Store, name: str) -> Self:
        """What the aliases say now; raises CollectionMismatch where nothing serves."""
        serving = Version.read(store, name)
        if serving is None:
            raise _missing(name, "the store")
        return cls(name, serving, Version.read(store, name + NEXT), Version.read(store, name + PREVIOUS))

    def confirm(self, store: Store) -> None:
        """Raise UpgradeRefused where they are others now than these, which were read before a lease was taken."""
        if Versions.read(store, self.name) != self:
            raise UpgradeRefused(
                f"the versions of {self.name!r} have changed since this command began",
                "The versions that it began with",
                "See headwater versions list, and run again",
            )


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Store, Versions]]:
    """The store, and the versions of its collection as they are at first; makes no store where there is none."""
    check_target(settings)
    name = settings.store.collection
    if name != name_of(name):
        raise UsageError(
            f"--collection {name}", "The collection itself; its versions follow", f"Say {name_of(name)}"
        )
    if not store_exists(settings.store):
        raise _missing(name, logs.redacted(settings.store.url))
    with ExitStack() as stack:
        store = open_store(settings.store, Purpose.UPGRADE)
        stack.callback(store.close)
        yield store, Versions.read(store, name)


@contextmanager
def leased(
    store: Store, settings: Settings, alias: str, command: str, stop: threading.Event, wait_s: float = 0.0
) -> Iterator[Store]:
    """The store, guarded by the lease of an alias; a lease that is lost sets `stop`, and raises LeaseLost at the end.

    Raises CollectionHeld where another run works on it, and goes on doing so for `wait_s` seconds.
    """
    lease_s, until = settings.run.lease_s, time.monotonic() + wait_s
    with ExitStack() as stack:
        while True:
            try:
                lease = stack.enter_context(
                    hold_lease(store, alias, settings.run.id or command, lease_s, stop)
                )
                break
            except CollectionHeld:
                if time.monotonic() > until or stop.wait(_LOOK_AGAIN_S):
                    raise
        yield guarded(store, alias, lease.token, lease_s) if lease else store
        if lease:
            lease.check()


def not_carried(store: Store, serving: Version, target: Version) -> Foreign:
    """What other programs have put into the version that serves, and the one to follow it will not have."""
    ours = {*serving.widths, *target.widths}
    return read_foreign(store, serving.physical, ours)


def count_points(store: Store, version: Version) -> dict[str, int]:
    """How many points there are, by the encoder version that made their vectors; two counts, or one more a version."""
    contract = version.contract
    mapped = {one: count_version(store, version.physical, one) for one in sorted(contract.compatible)}
    own = count_stored(store, version.physical).points - sum(mapped.values())
    return {contract.encoder_version: own} | {one: count for one, count in mapped.items() if count}


def unused(store: Store, name: str) -> list[str]:
    """The versions that no alias names, of ours or of others."""
    named = {one.collection_name for one in store.get_aliases().aliases}
    return [physical for physical in collection.versions(store, name) if physical not in named]


def drop(store: Store, physical: str) -> None:
    """Delete a version with its tombstones and aliases; safe to repeat after a crash, which leaves its points."""
    for name in (Tombstones(store, physical).name, physical):
        if store.collection_exists(name):
            store.delete_collection(name)


def read_record(store: Store, physical: str) -> dict[str, Any]:
    """What is on record of a version's upgrade; {} where nothing is."""
    return dict(collection.read_metadata(store, physical).get(RECORD, {}))


def record(store: Store, physical: str, values: Mapping[str, Any]) -> None:
    """Add to what is on record. It is commentary: which version serves, the aliases alone say."""
    store.update_collection(physical, metadata={RECORD: read_record(store, physical) | dict(values)})


def moment() -> str:
    """The time now, as records say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _missing(name: str, where: str) -> CollectionMismatch:
    return CollectionMismatch(
        f"no collection {name!r} in {where}",
        "An ingested collection",
        "Run headwater ingest first, or check --store and --collection",
    )
