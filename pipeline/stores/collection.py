"""Collections by alias: `NAME` always stands for `NAME__<id>`, so that an upgrade can swap it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from qdrant_client import models

from pipeline.config import QuantizationConfig, StoreConfig
from pipeline.errors import CollectionMismatch, StoreError, UsageError
from pipeline.stores.profiles import CHUNK_INDEX, DOCUMENT_ID, NAMESPACE, profile_named
from pipeline.stores.store import Store

OUR_INDEXES = {
    DOCUMENT_ID: models.PayloadSchemaType.KEYWORD,
    NAMESPACE: models.PayloadSchemaType.KEYWORD,
    CHUNK_INDEX: models.PayloadSchemaType.INTEGER,
}
"""What the write protocol and deletes filter on; a server in strict mode refuses filters without an index."""

Bits = TypeVar("Bits")

_DISTANCES = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclid": models.Distance.EUCLID,
}


def resolve(store: Store, alias: str) -> str | None:
    """The physical collection behind an alias, or None; CollectionMismatch if a collection has that name."""
    for known in store.get_aliases().aliases:
        if known.alias_name == alias:
            return known.collection_name
    if store.collection_exists(alias):
        raise CollectionMismatch(
            f"{alias!r} is a collection that headwater did not make, not an alias",
            f"The alias {alias!r} for a collection {alias}__<id>",
            "Choose another --collection, or rename or delete that collection",
        )
    return None


def create(store: Store, alias: str, config: StoreConfig, dims: int, metadata: dict[str, Any]) -> str:
    """Make an empty collection with its payload indexes, and last the alias; returns its physical name.

    A crash in between leaves an empty collection that no alias names and nobody reads.
    """
    physical = f"{alias}__{uuid.uuid4().hex[:12]}"
    vector = models.VectorParams(
        size=dims, distance=_DISTANCES[config.distance], on_disk=config.on_disk_vectors
    )
    store.create_collection(
        physical,
        {config.vector_name: vector} if config.vector_name else vector,
        sparse_vectors_config=_sparse(config),
        hnsw_config=_hnsw(config),
        quantization_config=_quantization(config.quantization),
        on_disk_payload=config.on_disk_payload,
        metadata=metadata,
    )
    # Before any point: an index added later costs a pass over all points, and HNSW misses its filter links.
    profile = profile_named(config.profile)
    wanted = {
        profile.path(key): models.PayloadSchemaType(kind) for key, kind in config.payload_indexes.items()
    }
    for key, kind in {**OUR_INDEXES, **profile.indexes, **wanted}.items():
        store.create_payload_index(physical, key, kind)
    store.update_collection_aliases([_create_alias(alias, physical)])
    return physical


def versions(store: Store, alias: str) -> list[str]:
    """The physical collections made for an alias, the one behind it and those that are kept."""
    ours = re.compile(re.escape(alias) + "__[0-9a-f]{12}")
    return sorted(one.name for one in store.get_collections().collections if ours.fullmatch(one.name))


def make_beside(store: Store, name: str, indexes: set[str], metadata: dict[str, Any] | None = None) -> None:
    """Make a small collection of our own, with keyword indexes, unless it is there; safe to repeat and to race for."""
    if not store.collection_exists(name):
        try:
            store.create_collection(
                name, models.VectorParams(size=1, distance=models.Distance.DOT), metadata=metadata
            )
        except StoreError:
            if not store.collection_exists(name):  # else another lane was quicker
                raise
    for key in sorted(indexes):
        store.create_payload_index(name, key, models.PayloadSchemaType.KEYWORD)


def read_metadata(store: Store, physical: str) -> dict[str, Any]:
    """The collection's own metadata, {} where there is none."""
    return dict(store.get_collection(physical).config.metadata or {})


def check_vectors(store: Store, physical: str, config: StoreConfig, dims: int) -> None:
    """Raise CollectionMismatch unless the collection has our vector name, size and distance."""
    vectors = store.get_collection(physical).config.params.vectors
    if vectors is None or isinstance(vectors, models.VectorParams):
        vectors = {"": vectors} if vectors else {}
    found = vectors.get(config.vector_name)
    if found is None:
        names = ", ".join(_quoted(name) for name in sorted(vectors)) or "no vector"
        raise CollectionMismatch(
            f"collection {physical!r} has {names}",
            f"{_quoted(config.vector_name)}, as store.vector_name says",
            "Set store.vector_name to one it has, or choose another --collection",
        )
    distance = _DISTANCES[config.distance]
    if (found.size, found.distance) != (dims, distance):
        raise CollectionMismatch(
            f"collection {physical!r} holds {found.size}-dimensional vectors under {found.distance.value}",
            f"This encoder and configuration make {dims}-dimensional vectors under {distance.value}",
            "Choose another --collection, or the encoder and store.distance it was made with",
        )


def _quoted(name: str) -> str:
    return f"the vector {name!r}" if name else "the unnamed vector"


def _create_alias(alias: str, physical: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=physical, alias_name=alias)
    )


def _sparse(config: StoreConfig) -> dict[str, models.SparseVectorParams] | None:
    if not config.sparse_vector:
        return None
    return {config.sparse_vector: models.SparseVectorParams(modifier=models.Modifier.IDF)}


def _hnsw(config: StoreConfig) -> models.HnswConfigDiff | None:
    values = config.hnsw.model_dump(exclude_none=True)
    return models.HnswConfigDiff(**values) if values else None


def _quantization(config: QuantizationConfig) -> models.QuantizationConfig | None:
    match config.kind:
        case "none":
            return None
        case "scalar":
            return models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(
                    type=models.ScalarType.INT8, quantile=config.quantile, always_ram=config.always_ram
                )
            )
        case "product":
            return models.ProductQuantization(
                product=models.ProductQuantizationConfig(
                    compression=models.CompressionRatio(config.compression), always_ram=config.always_ram
                )
            )
        case "binary":
            return models.BinaryQuantization(
                binary=models.BinaryQuantizationConfig(
                    encoding=_of_bits(config, _BINARY_BITS), always_ram=config.always_ram
                )
            )
        case "turbo":
            return models.TurboQuantization(
                turbo=models.TurboQuantQuantizationConfig(
                    bits=_of_bits(config, _TURBO_BITS), always_ram=config.always_ram
                )
            )


_BINARY_BITS = {
    1: models.BinaryQuantizationEncoding.ONE_BIT,
    1.5: models.BinaryQuantizationEncoding.ONE_AND_HALF_BITS,
    2: models.BinaryQuantizationEncoding.TWO_BITS,
}
_TURBO_BITS = {
    1: models.TurboQuantBitSize.BITS1,
    1.5: models.TurboQuantBitSize.BITS1_5,
    2: models.TurboQuantBitSize.BITS2,
    4: models.TurboQuantBitSize.BITS4,
    8: models.TurboQuantBitSize.BITS8,
}


def _of_bits(config: QuantizationConfig, known: Mapping[float, Bits]) -> Bits | None:
    if config.bits is None:
        return None
    if config.bits not in known:
        raise UsageError(
            f"store.quantization.bits = {config.bits} for kind {config.kind!r}",
            f"One of {', '.join(str(bits) for bits in known)}",
            "deploy/config.toml documents every key",
        )
    return known[config.bits]
