"""Collections by alias: `NAME` always stands for `NAME__<id>`, so that an upgrade can swap it.

While there is another version, `NAME@next` stands for the one that is being built, and `NAME@previous` for the one that
is kept to go back to.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from qdrant_client import models

from pipeline.codes import CodesSpec
from pipeline.config import QuantizationConfig, StoreConfig
from pipeline.errors import CollectionMismatch, StoreError, UsageError
from pipeline.stores.profiles import CHUNK_INDEX, DOCUMENT_ID, ENCODER_VERSION, NAMESPACE, profile_named
from pipeline.stores.store import Store

OUR_INDEXES = {
    DOCUMENT_ID: models.PayloadSchemaType.KEYWORD,
    NAMESPACE: models.PayloadSchemaType.KEYWORD,
    CHUNK_INDEX: models.PayloadSchemaType.INTEGER,
}
"""What the write protocol and deletes filter on; a server in strict mode refuses filters without an index."""

CODES, FULL = "codes", "full"
"""The names of vectors where there are codes: their planes, and what they were made from."""

NEXT, PREVIOUS = "@next", "@previous"

Bits = TypeVar("Bits")

_DISTANCES = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclid": models.Distance.EUCLID,
}


def resolve(store: Store, alias: str) -> str | None:
    """The physical collection behind an alias, or None; CollectionMismatch if a collection has that name."""
    found = _behind(store, alias)
    if found is None and store.collection_exists(alias):
        found = _behind(store, alias)  # the alias may have been made in between
        if found is None:
            raise CollectionMismatch(
                f"{alias!r} is a collection that headwater did not make, not an alias",
                f"The alias {alias!r} for a collection {alias}__<id>",
                "Choose another --collection, or rename or delete that collection",
            )
    return found


def _behind(store: Store, alias: str) -> str | None:
    known = store.get_aliases().aliases
    return next((one.collection_name for one in known if one.alias_name == alias), None)


def name_of(alias: str) -> str:
    """The name that all versions of a collection share: `docs` for `docs@next` and `docs@previous`."""
    return alias.removesuffix(NEXT).removesuffix(PREVIOUS)


def vector_widths(
    config: StoreConfig, dims: int, codes: CodesSpec | None, aspects: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The vectors of a point by name with their widths, in the order of an encoder's columns.

    `aspects`: the widths of the further ones. Raises UsageError for settings that codes leave no place for.
    """
    if codes is None:
        return {config.vector_name: dims, **(aspects or {})}
    if config.vector_name == CODES or config.quantization.kind != "none":
        raise UsageError(
            f"store.vector_name = {config.vector_name!r} and store.quantization.kind = {config.quantization.kind!r} "
            "with codes",
            f"Another name than {CODES!r}, and no quantization: the codes are the small copy in memory",
            "Remove those settings, or encoder.codes",
        )
    full = full_name(config, codes)
    return {CODES: codes.width} | ({full: dims} if full else {})


def full_name(config: StoreConfig, codes: CodesSpec | None) -> str:
    """The name of the vectors themselves, beside codes "" where they are not kept."""
    if codes is None:
        return config.vector_name
    return (config.vector_name or FULL) if config.keep_vectors else ""


def create(
    store: Store,
    alias: str,
    config: StoreConfig,
    dims: int,
    metadata: dict[str, Any],
    codes: CodesSpec | None = None,
    like: str | None = None,
    aspects: Mapping[str, int] | None = None,
) -> str:
    """Make an empty collection with its payload indexes, and last the alias; returns its physical name.

    `like`: another version, whose payload indexes it gets, too, and one by encoder version. `aspects`: the widths of
    its further vectors.
    A crash in between leaves an empty collection that no alias names and nobody reads.
    """
    vectors = _vectors(config, dims, codes, aspects)
    physical = f"{name_of(alias)}__{uuid.uuid4().hex[:12]}"
    store.create_collection(
        physical,
        vectors[""] if [*vectors] == [""] else vectors,
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
    if like:
        wanted |= {key: info.data_type for key, info in store.get_collection(like).payload_schema.items()}
        wanted[ENCODER_VERSION] = models.PayloadSchemaType.KEYWORD
    for key, kind in {**OUR_INDEXES, **profile.indexes, **wanted}.items():
        store.create_payload_index(physical, key, kind)
    point_aliases(store, {alias: physical})
    return physical


def point_aliases(store: Store, targets: Mapping[str, str | None]) -> None:
    """Let each alias stand for its collection, or (None) go: all of them at one moment, so no crash leaves half."""
    known = {one.alias_name for one in store.get_aliases().aliases}
    gone = [_delete_alias(alias) for alias in targets if alias in known]
    store.update_collection_aliases(
        [*gone, *(_create_alias(alias, physical) for alias, physical in targets.items() if physical)]
    )


def versions(store: Store, alias: str) -> list[str]:
    """The physical collections made for an alias: the one behind it, those being built, those that are kept."""
    ours = re.compile(re.escape(name_of(alias)) + "__[0-9a-f]{12}")
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


def check_vectors(
    store: Store,
    physical: str,
    config: StoreConfig,
    dims: int,
    codes: CodesSpec | None = None,
    aspects: Mapping[str, int] | None = None,
) -> None:
    """Raise CollectionMismatch unless the collection has our vectors, by name, size and distance."""
    held = store.get_collection(physical).config.params.vectors
    if held is None or isinstance(held, models.VectorParams):
        held = {"": held} if held else {}
    for name, wanted in _vectors(config, dims, codes, aspects).items():
        found = held.get(name)
        if found is None:
            names = ", ".join(_quoted(name) for name in sorted(held)) or "no vector"
            raise CollectionMismatch(
                f"collection {physical!r} has {names}",
                f"{_quoted(name)}, as store.vector_name says",
                "Set store.vector_name to one it has, or choose another --collection",
            )
        if (found.size, found.distance) != (wanted.size, wanted.distance):
            raise CollectionMismatch(
                f"collection {physical!r} holds {found.size}-dimensional vectors under {found.distance.value}",
                f"This encoder and configuration make {wanted.size}-dimensional vectors under {wanted.distance.value}",
                "Choose another --collection, or the encoder and store.distance it was made with",
            )


def _vectors(
    config: StoreConfig, dims: int, codes: CodesSpec | None, aspects: Mapping[str, int] | None
) -> dict[str, models.VectorParams]:
    """The settings of a point's vectors by name.

    Of codes a bit a coordinate is in memory, in which queries are floats of 8 bits; the planes themselves, which the
    best are ranked by again, are on disk, and what they were made from is there without a graph.
    """
    widths = vector_widths(config, dims, codes, aspects)
    distance = _DISTANCES[config.distance]
    if codes is None:
        return {
            name: models.VectorParams(size=width, distance=distance, on_disk=config.on_disk_vectors)
            for name, width in widths.items()
        }
    on_disk = config.on_disk_vectors is not False
    bit = models.BinaryQuantizationConfig(
        encoding=models.BinaryQuantizationEncoding.ONE_BIT,
        query_encoding=models.BinaryQuantizationQueryEncoding.SCALAR8BITS,
        always_ram=True,
    )
    planes = models.VectorParams(
        size=widths.pop(CODES),
        distance=models.Distance.DOT,
        on_disk=on_disk,
        quantization_config=models.BinaryQuantization(binary=bit),
    )
    full = {
        name: models.VectorParams(
            size=width,
            distance=distance,
            on_disk=on_disk,
            datatype=models.Datatype.FLOAT16,
            hnsw_config=models.HnswConfigDiff(m=0),
        )
        for name, width in widths.items()
    }
    return {CODES: planes, **full}


def _quoted(name: str) -> str:
    return f"the vector {name!r}" if name else "the unnamed vector"


def _create_alias(alias: str, physical: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=physical, alias_name=alias)
    )


def _delete_alias(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


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
