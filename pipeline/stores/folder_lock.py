"""Who holds a store's folder: one process at a time, and it says what for."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from pipeline.errors import StoreHeld, UsageError

LOCK = ".headwater.lock"  # not ".lock": in a folder of its own, qdrant-client locks a file of that name

_HOLDER_BYTES = 1 << 16


class FolderLock:
    """The right to use a folder, for one process at a time; it ends with the process, however that dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        """Whether the folder is still ours."""
        return self._descriptor is not None

    @classmethod
    def take(cls, folder: Path, purpose: str) -> FolderLock:
        """Make the folder if need be and lock it; StoreHeld says who has it, and the purpose they gave."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"the store {folder} cannot be opened: {error.strerror}",
                "A folder that can be written",
                "Check the path in --store and its permissions",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = held_by_another(folder, *_holder(descriptor))
            os.close(descriptor)
            raise held from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go; safe to repeat."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


def held_by_another(folder: Path, who: str = "another process", purpose: str = "") -> StoreHeld:
    """The error for a folder that `who` has open, for `purpose` if that is known."""
    return StoreHeld(
        f"the store {folder} is held by {who}{f' ({purpose})' if purpose else ''}",
        "One process at a time can open a store in a folder",
        "Wait for it to end or stop it; for several processes use a Qdrant server",
        purpose,
    )


def _holder(descriptor: int) -> tuple[str, str]:
    """Who holds the lock and what for, as they wrote it; they may not have come to it yet."""
    try:
        holder = json.loads(os.pread(descriptor, _HOLDER_BYTES, 0))
        return f"process {holder['pid']} on {holder['host']}", str(holder["purpose"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process", ""
