"""The folder of an edge store: who holds it, and which collections and aliases it has.

DIR/.lock               held while a process has the store open
DIR/.collections.json   collections, their settings and metadata, aliases
DIR/<collection>/       the engine's shard
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from qdrant_client import models

from pipeline.errors import StoreError, UsageError

CATALOGUE = ".collections.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Catalogue:
    """The collections of a folder, their settings and metadata, and the aliases."""

    collections: dict[str, models.CreateCollection] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str | None:
        """The collection of this name or alias."""
        return name if name in self.collections else self.aliases.get(name)

    @classmethod
    def read(cls, folder: Path) -> Catalogue:
        """Read the folder's catalogue; an empty one where the folder has none yet."""
        file = folder / CATALOGUE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                {
                    name: models.CreateCollection.model_validate(config)
                    for name, config in values["collections"].items()
                },
                dict(values["aliases"]),
            )
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise StoreError(
                f"{file} is damaged: {error}",
                "The catalogue that headwater wrote",
                "Restore it from a backup",
            ) from error

    def write(self, folder: Path) -> None:
        """Replace the folder's catalogue; a crash, or power loss, leaves the old or the new one."""
        values = {
            "collections": {
                name: config.model_dump(mode="json", exclude_none=True)
                for name, config in self.collections.items()
            },
            "aliases": self.aliases,
        }
        fresh = folder / f"{CATALOGUE}.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(values, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / CATALOGUE)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the rename itself
        finally:
            os.close(descriptor)


class FolderLock:
    """The right to use a folder, for one process at a time; it ends with the process, however that dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        """Whether the folder is still ours."""
        return self._descriptor is not None

    @classmethod
    def take(cls, folder: Path) -> FolderLock:
        """Make the folder if need be and lock it; StoreError says who holds it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"the edge store {folder} cannot be opened: {error.strerror}",
                "A folder that can be written",
                "Check the path in --store edge:DIR and its permissions",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise StoreError(
                f"the edge store {folder} is held by {holder or 'another process'}",
                "One process at a time can open an edge store",
                "Wait for it to end or stop it; for several processes use a Qdrant server",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go; safe to repeat."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
