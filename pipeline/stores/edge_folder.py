"""The folder of an edge store: which collections and aliases it has.

DIR/.collections.json   collections, their settings and metadata, aliases
DIR/<collection>/       the engine's shard
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from qdrant_client import models

from pipeline.errors import StoreError

CATALOGUE = ".collections.json"


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
