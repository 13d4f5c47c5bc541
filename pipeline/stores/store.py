"""What every store does: a small subset of QdrantClient's methods, with qdrant_client's own models.

A collection is named by its name or by an alias, everywhere but in `delete_collection`, as on a Qdrant
server. Errors are ours (pipeline.errors), whatever the engine raised. Stores may be used from several threads
at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qdrant_client import models
from qdrant_client.http.models import QueryResponse

from pipeline.stores.points import Points

VectorsConfig = models.VectorParams | Mapping[str, models.VectorParams]
"""One unnamed vector, or vectors by name."""


class Store(Protocol):
    """A place for collections of points."""

    def get_collections(self) -> models.CollectionsResponse:
        """The collections, without aliases."""
        ...

    def collection_exists(self, collection_name: str) -> bool:
        """Whether a collection, or an alias of one, has this name."""
        ...

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
        """Make an empty collection; StoreError where the name is taken.

        A crash leaves either no collection or the whole of it.
        """
        ...

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        """Settings, metadata and counts of a collection; StoreError where there is none."""
        ...

    def delete_collection(self, collection_name: str) -> bool:
        """Delete a collection by its own name, and its aliases; False where there is none."""
        ...

    def update_collection(self, collection_name: str, metadata: dict[str, Any]) -> bool:
        """Merge these keys into the collection's metadata; other keys stay.

        Applied as a whole, also through a crash.
        """
        ...

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        """All aliases and the collections they stand for."""
        ...

    def update_collection_aliases(self, change_aliases_operations: Sequence[models.AliasOperations]) -> bool:
        """Apply all the changes at once, or none."""
        ...

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: models.PayloadSchemaType
    ) -> None:
        """Index a payload key; safe to repeat."""
        ...

    def upsert(
        self, collection_name: str, points: Points, update_filter: models.Filter | None = None
    ) -> None:
        """Insert the points, replacing those of the same id; with `update_filter` only where it matches them.

        Returns only when they are applied and survive the death of this process; `flush` makes them survive
        power loss. After an error any part of them may have been written; the same call again is safe.

        The filter is asked of the point as it is stored: a stored point that it does not match stays as it is, and
        that is no error; a point that is not stored is inserted whatever the filter says, as Qdrant does. Comparing
        and writing are one step: of two writers one comes after the other, also on a server with replicas.
        """
        ...

    def too_large(self, collection_name: str, points: Points) -> list[str]:
        """The ids of points each of which alone is more than the store takes, as far as it knows without asking."""
        ...

    def set_payload(
        self, collection_name: str, payload: dict[str, Any], points: Sequence[str], key: str | None = None
    ) -> None:
        """Set these keys in the payloads of points that exist, under `key` if given; other keys stay.

        Returns only when applied; the same call again is safe.
        """
        ...

    def overwrite_payloads(
        self, collection_name: str, ids: Sequence[str], payloads: Sequence[dict[str, Any]]
    ) -> None:
        """Give points that exist a new payload each, whole; vectors stay.

        Returns only when applied. After an error any part may have been; the same call again is safe.
        """
        ...

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        """The points of these ids, in any order; missing ones are left out."""
        ...

    def delete(self, collection_name: str, points_selector: Sequence[str] | models.Filter) -> None:
        """Delete points by id or by filter; returns only when applied. Missing ids are no error."""
        ...

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest]
    ) -> list[QueryResponse]:
        """One response a request, in order; a request's query is a vector."""
        ...

    def count(self, collection_name: str, count_filter: models.Filter | None = None) -> models.CountResult:
        """How many points there are, or match; exact."""
        ...

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: str | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> tuple[list[models.Record], str | None]:
        """A page of points in the order of their ids, and the next page's offset (None: no more)."""
        ...

    def flush(self) -> None:
        """Return when everything upserted or deleted so far survives power loss."""
        ...

    def optimize(self, collection_name: str) -> None:
        """Build the indexes that are due; a server does so by itself."""
        ...

    def close(self) -> None:
        """Let go of the store; safe to repeat."""
        ...


def payload_keys(with_payload: bool | Sequence[str]) -> bool | list[str]:
    """Which payload is wanted, as qdrant-client takes it: all, nothing, or these keys."""
    return with_payload if isinstance(with_payload, bool) else list(with_payload)
