"""The memory store: qdrant-client's own model of a server, in this process and gone with it. For tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.models import QueryResponse

from pipeline.errors import HeadwaterError, StoreError
from pipeline.stores.points import Points
from pipeline.stores.store import VectorsConfig


class MemoryStore:
    """Collections in memory, one caller at a time: qdrant-client's local mode is not thread-safe.

    Nothing survives the process; `close` keeps the points, so that a store reached by name can be opened
    again.
    """

    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")
        self._lock = threading.Lock()
        self._indexes: dict[str, dict[str, models.PayloadIndexInfo]] = {}  # local mode keeps none

    def __repr__(self) -> str:
        return "MemoryStore()"

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
            return self._client.create_collection(
                collection_name,
                vectors_config=vectors_config,
                sparse_vectors_config=sparse_vectors_config,
                metadata=metadata,
            )

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
        with self._call():
            self._client.get_collection(collection_name)
            indexes = self._indexes.setdefault(self._resolve(collection_name), {})
            indexes[field_name] = models.PayloadIndexInfo(data_type=field_schema, points=0)

    def upsert(
        self, collection_name: str, points: Points, update_filter: models.Filter | None = None
    ) -> None:
        if not len(points):
            return
        vectors = points.vectors.tolist()
        batch = models.Batch(
            ids=list(points.ids),
            vectors={points.vector_name: vectors} if points.vector_name else vectors,
            payloads=list(points.payloads),
        )
        with self._call():
            self._client.upsert(collection_name, batch, update_filter=update_filter)

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        with self._call():
            return self._client.retrieve(
                collection_name, list(ids), with_payload=_keys(with_payload), with_vectors=with_vectors
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
                with_payload=_keys(with_payload),
                with_vectors=with_vectors,
            )
        return found, None if following is None else str(following)

    def flush(self) -> None:
        """Do nothing: there is no disk."""

    def optimize(self, collection_name: str) -> None:
        """Do nothing: there is no index."""

    def close(self) -> None:
        """Do nothing: the store lives as long as whoever holds it."""

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
                raise StoreError(f"the memory store refused: {error}") from error


def _keys(with_payload: bool | Sequence[str]) -> bool | list[str]:
    return with_payload if isinstance(with_payload, bool) else list(with_payload)


_BY_NAME: dict[str, MemoryStore] = {}
_BY_NAME_LOCK = threading.Lock()


def memory_store(name: str) -> MemoryStore:
    """The memory store of this name in this process; a fresh one for the empty name."""
    if not name:
        return MemoryStore()
    with _BY_NAME_LOCK:
        return _BY_NAME.setdefault(name, MemoryStore())
