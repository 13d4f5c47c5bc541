"""What a collection is like, said as settings; and what lies in it that is not ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from pipeline.config import HnswConfig, QuantizationConfig
from pipeline.stores.scan import count_stored
from pipeline.stores.store import Store


def settings_like(store: Store, physical: str, vector_name: str) -> dict[str, Any]:
    """The keys of [store] by which a collection is made like this one: graph, quantization, disk, the sparse vector."""
    config = store.get_collection(physical).config
    hnsw, vector = config.hnsw_config, _vectors(store, physical).get(vector_name)
    return {
        "hnsw": HnswConfig(m=hnsw.m, ef_construct=hnsw.ef_construct, on_disk=hnsw.on_disk),
        "quantization": _quantization(config.quantization_config),
        "on_disk_vectors": vector.on_disk if vector else None,
        "on_disk_payload": config.params.on_disk_payload,
        "sparse_vector": next(iter(config.params.sparse_vectors or {}), ""),
    }


@dataclass(frozen=True)
class Foreign:
    """What other programs have put, or may have, into a collection: `points`, and vectors of our points, by name."""

    points: int = 0
    vectors: tuple[str, ...] = ()
    sparse_vectors: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.points or self.vectors or self.sparse_vectors)


def read_foreign(store: Store, physical: str, ours: set[str]) -> Foreign:
    """What is not ours; `ours`: the names of our vectors. Slots for vectors count also where no point fills them."""
    params = store.get_collection(physical).config.params
    return Foreign(
        store.count(physical).count - count_stored(store, physical).points,
        tuple(sorted(_vectors(store, physical).keys() - ours)),
        tuple(sorted(params.sparse_vectors or {})),
    )


def _vectors(store: Store, physical: str) -> dict[str, models.VectorParams]:
    held = store.get_collection(physical).config.params.vectors
    return {"": held} if isinstance(held, models.VectorParams) else dict(held or {})


def _quantization(found: models.QuantizationConfig | None) -> QuantizationConfig:
    match found:
        case models.ScalarQuantization(scalar=scalar):
            return QuantizationConfig(kind="scalar", quantile=scalar.quantile, always_ram=scalar.always_ram)
        case models.ProductQuantization(product=product):
            compression: Any = product.compression.value
            return QuantizationConfig(kind="product", compression=compression, always_ram=product.always_ram)
        case models.BinaryQuantization(binary=binary):
            bits = _BITS.get(binary.encoding.value) if binary.encoding else None
            return QuantizationConfig(kind="binary", bits=bits, always_ram=binary.always_ram)
        case models.TurboQuantization(turbo=turbo):
            bits = _BITS.get(turbo.bits.value) if turbo.bits else None
            return QuantizationConfig(kind="turbo", bits=bits, always_ram=turbo.always_ram)
    return QuantizationConfig()


_BITS = {
    "one_bit": 1.0,
    "one_and_half_bits": 1.5,
    "two_bits": 2.0,
    "bits1": 1.0,
    "bits1_5": 1.5,
    "bits2": 2.0,
    "bits4": 4.0,
    "bits8": 8.0,
}
