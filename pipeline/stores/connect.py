"""From a URL to an open store."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import StoreConfig
from pipeline.errors import UsageError
from pipeline.stores.edge import EdgeStore
from pipeline.stores.edge_folder import CATALOGUE
from pipeline.stores.memory import memory_store
from pipeline.stores.store import Store

FORMS = "edge:DIR, http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT, grpcs://HOST:PORT or memory:NAME"


def open_store(config: StoreConfig) -> Store:
    """Open the store that `config.url` names.

    Raises UsageError for a URL of no known form, StoreError for an edge folder that another process holds.
    Servers are first spoken to by the first call.
    """
    scheme, _, place = config.url.partition(":")
    if scheme == "edge" and place:
        return EdgeStore.open(Path(place).expanduser(), config.batch_points)
    if scheme == "memory":
        return memory_store(place)
    raise UsageError(
        f"store {config.url!r} is no store we know" if config.url else "no store is set",
        f"One of {FORMS}",
        "Set it with --store, or store.url in the configuration",
    )


def store_exists(config: StoreConfig) -> bool:
    """False for an edge folder that holds no store yet, which `open_store` would make; True for all else."""
    scheme, _, place = config.url.partition(":")
    return scheme != "edge" or (Path(place).expanduser() / CATALOGUE).exists()
