"""The local store: qdrant-client's own model of a server, over a folder that other programs can open, or in memory.

LangChain, LlamaIndex and Haystack open the same folder as `QdrantClient(path=…)`. In memory it is for tests.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.models import QueryResponse

from pipeline import logs
from pipeline.errors import HeadwaterError, StoreError, StoreFull
from pipeline.stores.folder_lock import Claim, FolderLock, Purpose, held_by_another
from pipeline.stores.points import Points
from pipeline.stores.server_points import rest_points
from pipeline.stores.store import VectorsConfig, payload_keys

CATALOGUE = "meta.json"
"""Where qdrant-client keeps the collections, their metadata and the aliases."""

log = logs.logger(__name__)


class LocalStore:
    """Collections in a folder or in memory, one caller at a time: qdrant-client's local mode is not thread-safe.

    In a folder, what `upsert` and `delete` did survives SIGKILL, point by point; after `flush` it survives power loss
    too. In memory nothing survives the process; `close` keeps the points there, so that a store reached by name can
    be opened again. Every search compares all vectors, and all of them are in memory.
    """

    def __init__(
        self, client: QdrantClient, folder: Path | None = None, held: FolderLock | None = None
    ) -> None:
        self._client = client
        self._folder = folder
        self._held = held
        self._lock = threading.Lock()
        self._indexes: dict[str, dict[str, models.PayloadIndexInfo]] = {}  # local mode keeps none
        self._relax()

    @classmethod
    def open(cls, folder: Path, claim: Claim = Claim()) -> LocalStore:
        """Lock the folder and read all of it into memory; raises StoreHeld where another program holds it.

        A run that would fill it is told what it is not made for.
        """
        held = FolderLock.take(folder, claim)
        try:
            store = cls(_client(folder), folder, held)
        except BaseException:
            held.release()
            raise
        if claim.purpose is Purpose.INGEST:
            log.warning(
                "local_store_opened",
                folder=str(folder),
                limits="one process at a time and up to about 20,000 points, which every search compares all",
                instead="edge:DIR or a server",
            )
        return store

    @classmethod
    def in_memory(cls) -> LocalStore:
        """An empty store that is gone with its process."""
        return cls(QdrantClient(":memory:"))

    def __repr__(self) -> str:
        return f"LocalStore({str(self._folder or ':memory:')!r})"

    def get_collections(self) -> models.CollectionsResponse:
        with self._call():
            return self._client.get_collections()

    def collection_exists(self, collection_name: str) -> bool:
        with self._call():
            return self._client.collection_exists(collection_name)

    def create_collection(
        self,
        collection_name: str,
        vectors_config: VectorsConfig,
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        quantization_config: models.QuantizationConfig | None = None,
        on_disk_payload: bool | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Make an empty collection; settings of indexes and disks are taken and mean nothing here."""
        with self._call():
            made = self._client.create_collection(
                collection_name,
                vectors_config=vectors_config,
                sparse_vectors_config=sparse_vectors_config,
                metadata=metadata,
            )
            self._relax()
            return made

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        with self._call():
            info = self._client.get_collection(collection_name)
            info.payload_schema = dict(self._indexes.get(self._resolve(collection_name), {}))
            return info

    def delete_collection(self, collection_name: str) -> bool:
        with self._call():
            known = {one.name for one in self._client.get_collections().collections}
            self._indexes.pop(collection_name, None)
            self._client.delete_collection(collection_name)
            return collection_name in known

    def update_collection(self, collection_name: str, metadata: dict[str, Any]) -> bool:
        with self._call():
            return self._client.update_collection(collection_name, metadata=metadata)

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        with self._call():
            return self._client.get_aliases()

    def update_collection_aliases(self, change_aliases_operations: Sequence[models.AliasOperations]) -> bool:
        with self._call():
            return self._client.update_collection_aliases(change_aliases_operations)

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: models.PayloadSchemaType
    ) -> None:
        """Take note of an index until the store is closed; there is nothing that would use one."""
        with self._call():
            self._client.get_collection(collection_name)
            indexes = self._indexes.setdefault(self._resolve(collection_name), {})
            indexes[field_name] = models.PayloadIndexInfo(data_type=field_schema, points=0)

    def upsert(
        self, collection_name: str, points: Points, update_filter: models.Filter | None = None
    ) -> None:
        if not len(points):
            return
        with self._call():
            self._client.upsert(collection_name, rest_points(points), update_filter=update_filter)

    def too_large(self, collection_name: str, points: Points) -> list[str]:
        """None: there are no requests."""
        return []

    def set_payload(
        self, collection_name: str, payload: dict[str, Any], points: Sequence[str], key: str | None = None
    ) -> None:
        if points:
            with self._call():
                self._client.set_payload(collection_name, payload, list(points), key=key)

    def overwrite_payloads(
        self, collection_name: str, ids: Sequence[str], payloads: Sequence[dict[str, Any]]
    ) -> None:
        with self._call():
            for id, payload in zip(ids, payloads, strict=True):
                self._client.overwrite_payload(collection_name, payload, [id])

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        with self._call():
            return self._client.retrieve(
                collection_name, list(ids), with_payload=payload_keys(with_payload), with_vectors=with_vectors
            )

    def delete(self, collection_name: str, points_selector: Sequence[str] | models.Filter) -> None:
        if isinstance(points_selector, models.Filter):
            selector: models.PointsSelector = models.FilterSelector(filter=points_selector)
        elif points_selector:
            selector = models.PointIdsList(points=list(points_selector))
        else:
            return
        with self._call():
            self._client.delete(collection_name, selector)

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest]
    ) -> list[QueryResponse]:
        with self._call():
            return self._client.query_batch_points(collection_name, requests)

    def count(self, collection_name: str, count_filter: models.Filter | None = None) -> models.CountResult:
        with self._call():
            return self._client.count(collection_name, count_filter=count_filter)

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: str | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> tuple[list[models.Record], str | None]:
        with self._call():
            found, following = self._client.scroll(
                collection_name,
                scroll_filter=scroll_filter,
                limit=limit,
                offset=offset,
                with_payload=payload_keys(with_payload),
                with_vectors=with_vectors,
            )
        return found, None if following is None else str(following)

    def flush(self) -> None:
        with self._call():
            for connection in _databases(self._client):
                connection.execute("PRAGMA wal_checkpoint(FULL)")
            if self._folder:
                for path in (self._folder / CATALOGUE, self._folder):
                    _sync(path)

    def optimize(self, collection_name: str) -> None:
        """Do nothing: there is no index."""

    def close(self) -> None:
        """Let go of the folder, flushed; nothing in memory, where the store lives as long as whoever holds it."""
        if self._held is None or not self._held.held:
            return
        try:
            self.flush()
            with self._call():
                self._client.close()
        finally:
            self._held.release()

    def _relax(self) -> None:
        """Let SQLite sync the disk in `flush` and no longer after every point, which made them 20 to 100 a second.

        With a write-ahead log each point is still there after SIGKILL, and power loss costs the last points only.
        """
        for connection in _databases(self._client):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

    def _resolve(self, collection_name: str) -> str:
        aliases = {one.alias_name: one.collection_name for one in self._client.get_aliases().aliases}
        return aliases.get(collection_name, collection_name)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Let one caller in at a time, and turn the client's errors into ours."""
        with self._lock:
            try:
                yield
            except HeadwaterError:
                raise
            except Exception as error:
                if "disk is full" in str(error) or getattr(error, "errno", None) == 28:
                    raise StoreFull(
                        f"{self} has no room: {error}", "", "Free some space and run again"
                    ) from error
                raise StoreError(f"{self} refused: {error}") from error


def memory_store(name: str) -> LocalStore:
    """The memory store of this name in this process; a fresh one for the empty name."""
    if not name:
        return LocalStore.in_memory()
    with _BY_NAME_LOCK:
        if name not in _BY_NAME:
            _BY_NAME[name] = LocalStore.in_memory()
        return _BY_NAME[name]


_BY_NAME: dict[str, LocalStore] = {}
_BY_NAME_LOCK = threading.Lock()


def _client(folder: Path) -> QdrantClient:
    try:
        # Every call is made under our lock, so that threads may share SQLite's connections.
        return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    except RuntimeError as error:
        if "already accessed" in str(error):  # it locks the folder too, and says no more
            raise held_by_another(folder) from None
        raise
    except (ValueError, KeyError, TypeError, OSError, sqlite3.Error) as error:
        raise StoreError(
            f"the local store {folder} cannot be read: {error}",
            "A folder that qdrant-client wrote",
            "Restore it from a backup, or choose another folder",
        ) from error


def _databases(client: QdrantClient) -> list[sqlite3.Connection]:
    """The database of each collection in a folder, which qdrant-client keeps to itself.

    Should a version of it keep them elsewhere, none are found: then every point is synced, slower and no less safe.
    """
    collections = getattr(client._client, "collections", {}).values()
    found = [getattr(getattr(kept, "storage", None), "storage", None) for kept in collections]
    return [connection for connection in found if isinstance(connection, sqlite3.Connection)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
