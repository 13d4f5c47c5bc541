"""From a URL to an open store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pipeline import logs
from pipeline.config import StoreConfig
from pipeline.errors import CollectionMismatch, UsageError
from pipeline.stores import collection
from pipeline.stores.edge import EdgeStore
from pipeline.stores.edge_folder import CATALOGUE as EDGE_CATALOGUE
from pipeline.stores.folder_lock import Claim, Purpose, Seat
from pipeline.stores.local import CATALOGUE as LOCAL_CATALOGUE
from pipeline.stores.local import LocalStore, memory_store
from pipeline.stores.server import ServerStore
from pipeline.stores.store import Store

FORMS = "edge:DIR, local:DIR, http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT, grpcs://HOST:PORT or memory:NAME"

_CATALOGUES = {
    "edge": EDGE_CATALOGUE,
    "local": LOCAL_CATALOGUE,
}  # stores in a folder, and what shows that it is one


def open_store(config: StoreConfig, purpose: Purpose | None = None, seat: Seat | None = None) -> Store:
    """Open the store that `config.url` names.

    Raises UsageError for a URL of no known form, StoreHeld for a folder that another process holds; it is told
    the `purpose` that this one gave, and makes way if it sits in this one's `seat`. Servers are first spoken to by
    the first call.
    """
    scheme, _, place = config.url.partition(":")
    if folder := folder_of(config.url):
        _check_kind(scheme, folder)
        claim = Claim(purpose, config.collection, seat)
        if scheme == "edge":
            return EdgeStore.open(folder, config.batch_points, claim)
        return LocalStore.open(folder, claim)
    match scheme:
        case "memory":
            return memory_store(place)
        case "http" | "https" | "grpc" | "grpcs":
            return ServerStore.open(_split(config.url), config)
    raise _bad(config.url, "is no store we know")


def open_collection(config: StoreConfig, purpose: Purpose) -> tuple[Store, str]:
    """Open the store, and find the physical collection behind the alias, which must be there.

    Makes no store where there is none. Raises CollectionMismatch, with the store closed again, where there is no such
    collection; else what `open_store` raises.
    """
    missing = CollectionMismatch(
        f"no collection {config.collection!r} in {logs.redacted(config.url)}",
        "An ingested collection",
        "Run headwater ingest first, or check --store and --collection",
    )
    if not store_exists(config):
        raise missing
    store = open_store(config, purpose)
    try:
        physical = collection.resolve(store, config.collection)
        if physical is None:
            raise missing
    except BaseException:
        store.close()
        raise
    return store, physical


def folder_of(url: str) -> Path | None:
    """The folder of a store in one, which one process at a time can hold; None for all others, and for a bad URL."""
    scheme, _, place = url.partition(":")
    return Path(place).expanduser() if scheme in _CATALOGUES and place else None


def store_exists(config: StoreConfig) -> bool:
    """False for a folder that holds no store yet, which `open_store` would make; True for all else."""
    folder = folder_of(config.url)
    return folder is None or (folder / _CATALOGUES[config.url.partition(":")[0]]).exists()


def _check_kind(scheme: str, folder: Path) -> None:
    """Raise UsageError where a folder holds a store of another kind."""
    for other, catalogue in _CATALOGUES.items():
        if other != scheme and (folder / catalogue).exists() and not (folder / _CATALOGUES[scheme]).exists():
            raise UsageError(
                f"{folder} holds the store {other}:{folder}, not {scheme}:",
                "One kind of store in a folder",
                f"Say --store {other}:{folder}, or choose another folder",
            )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad(url, "has no valid host and port") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"store {_shown(url)!r} holds a user name or password",
            "A URL without them; Qdrant knows API keys",
            "Set HEADWATER_STORE__API_KEY, or store.api_key_file in the configuration",
        )
    if not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise _bad(url, "has no valid host and port")
    if parts.scheme.startswith("grpc") and parts.path.strip("/"):
        raise _bad(url, "has a path, which gRPC does not")
    return parts


def _bad(url: str, what: str) -> UsageError:
    return UsageError(
        f"store {_shown(url)!r} {what}" if url else "no store is set",
        f"One of {FORMS}",
        "Set it with --store, or store.url in the configuration",
    )


def _shown(url: str) -> str:
    """The URL without what may be a secret."""
    return re.sub(r"//.*@", "//…@", re.sub(r"[?#].*", "?…", url, flags=re.S), flags=re.S)
