"""Who holds a store's folder: one process at a time, and it says who it is and what for."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pipeline.errors import StoreHeld, UsageError
from pipeline.owner import Owner

LOCK = ".headwater.lock"  # not ".lock": in a folder of its own, qdrant-client locks a file of that name

_RECORD_BYTES = 1 << 16


class Purpose(StrEnum):
    """What a process does with a collection of the store, worded so that the collection's name may follow."""

    INGEST = "ingest into"
    SEARCH = "search in"
    AUDIT = "audit of"
    REPAIR = "repair of"
    PLAN = "plan for"
    FORGET = "forget in"
    CHECK = "doctor for"
    OPTIMIZE = "optimization of"
    UPGRADE = "upgrade of"


@dataclass(frozen=True)
class Seat:
    """The place of a process that holds a folder on behalf of another one, its keeper.

    Whoever comes to the same seat replaces the process that sat there; a seat whose keeper is gone is anybody's.
    """

    id: str
    keeper: Owner


@dataclass(frozen=True)
class Claim:
    """What a process says when it takes a folder; `seat` None: it holds the folder for itself."""

    purpose: Purpose | None = None
    collection: str = ""
    seat: Seat | None = None


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, as they wrote it."""

    owner: Owner
    claim: Claim

    @classmethod
    def read(cls, text: bytes) -> Self | None:
        """The holder that `as_json` wrote; None for anything else: they may not have come to it yet."""
        try:
            values: dict[str, Any] = json.loads(text)
            owner, keeper = Owner.read(values["owner"]), Owner.read(values["keeper"])
            purpose = Purpose(values["purpose"]) if values["purpose"] else None
            seat = Seat(str(values["seat"]), keeper) if keeper else None
            return cls(owner, Claim(purpose, str(values["collection"]), seat)) if owner else None
        except (ValueError, KeyError, TypeError):
            return None

    def as_json(self) -> bytes:
        """The holder as a lock file holds it."""
        seat, purpose = self.claim.seat, self.claim.purpose
        values = {
            "owner": dict(self.owner.as_dict()),
            "purpose": purpose.value if purpose else "",
            "collection": self.claim.collection,
            "seat": seat.id if seat else "",
            "keeper": dict(seat.keeper.as_dict()) if seat else None,
        }
        return json.dumps(values).encode()

    def makes_way_for(self, claim: Claim) -> bool:
        """Whether the process is to be killed for a newcomer: it sits in its seat, or its keeper is gone."""
        seat = self.claim.seat
        if seat is None:
            return False
        return (claim.seat is not None and seat.id == claim.seat.id) or seat.keeper.gone()


class FolderLock:
    """The right to use a folder, for one process at a time; it ends with the process, however that dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        """Whether the folder is still ours."""
        return self._descriptor is not None

    @classmethod
    def take(cls, folder: Path, claim: Claim) -> FolderLock:
        """Make the folder if need be and lock it; StoreHeld says who has it, and what for.

        A holder that must make way (see `Seat`), frozen or cut off as it may be, is killed before the folder is ours,
        so that it never writes again.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"the store {folder} cannot be opened: {error.strerror}",
                "A folder that can be written",
                "Check the path in --store and its permissions",
            ) from None
        while not _locked(descriptor):
            holder = Holder.read(os.pread(descriptor, _RECORD_BYTES, 0))
            if holder is None or not holder.makes_way_for(claim) or not holder.owner.kill():
                os.close(descriptor)
                raise held_by_another(folder, holder)
            time.sleep(0.05)  # what we read may be of the one before, and its follower has not written yet
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, Holder(Owner.here(), claim).as_json(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go; safe to repeat."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


def held_by_another(folder: Path, holder: Holder | None = None) -> StoreHeld:
    """The error for a folder that another process has open; None: nothing is known of it."""
    claim = holder.claim if holder else Claim()
    doing = f" ({claim.purpose} {claim.collection!r})" if claim.purpose else ""
    return StoreHeld(
        f"the store {folder} is held by {holder.owner if holder else 'another process'}{doing}",
        "One process at a time can open a store in a folder",
        "Wait for it to end or stop it; for several processes use a Qdrant server",
        claim.purpose or "",
        claim.collection,
    )


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
