"""Qdrant's own quantization of float vectors, ranked by its engine: what codes are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray

_BATCH = 256
_NO_GRAPH = engine.HnswIndexConfig(0, 100, 10_000, on_disk=False)  # every vector is compared


@dataclass(frozen=True, eq=False)
class Quantization:
    """One of the engine's settings; `bits` a dimension, without what it keeps beside a vector (4 to 8 bytes)."""

    bits: float
    config: engine.QuantizationConfigType


_BINARY = engine.BinaryQuantizationConfig(
    always_ram=True,
    encoding=engine.BinaryQuantizationEncoding.OneBit,
    # Queries of eight bits: the best that the engine can do with the same bytes.
    query_encoding=engine.BinaryQuantizationQueryEncoding.Scalar8Bits,
)


def _turbo(bits: engine.TurboQuantBitSize) -> engine.QuantizationConfigType:
    return engine.TurboQuantQuantizationConfig(always_ram=True, bits=bits)


QUANTIZATIONS: Mapping[str, Quantization] = {
    "Qdrant binary 1 bit": Quantization(1, _BINARY),
    "Qdrant TurboQuant 1 bit": Quantization(1, _turbo(engine.TurboQuantBitSize.Bits1)),
    "Qdrant TurboQuant 1.5 bit": Quantization(1.5, _turbo(engine.TurboQuantBitSize.Bits1_5)),
    "Qdrant TurboQuant 2 bit": Quantization(2, _turbo(engine.TurboQuantBitSize.Bits2)),
    "Qdrant TurboQuant 4 bit": Quantization(4, _turbo(engine.TurboQuantBitSize.Bits4)),
}
"""By name, as `headwater codes eval` lists them.

Left out is what this engine (0.9.0) was seen not to do: binary of 1.5 and 2 bits ranks exactly as that of 1 bit, and
scalar int8 exactly as floats, so their rows would say something of other sizes than they name.
"""


def rank_quantized(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], quantization: Quantization, k: int
) -> NDArray[np.int64]:
    """The k vectors nearest each query by cosine, int64[queries, k], best first, by the compressed vectors alone.

    The vectors are written to a temporary folder, which is removed.
    """
    width = vectors.shape[1]
    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        folder = Path(scratch, "shard")
        folder.mkdir()
        parameters = engine.EdgeVectorParams(
            size=width, distance=engine.Distance.Cosine, hnsw_config=_NO_GRAPH
        )
        config = engine.EdgeConfig(vectors={"": parameters}, quantization_config=quantization.config)
        shard = engine.EdgeShard.create(str(folder), config)
        try:
            for at in range(0, len(vectors), _BATCH):
                rows = enumerate(vectors[at : at + _BATCH].tolist(), at)
                points = [engine.Point(number, {"": row}, {}) for number, row in rows]
                shard.update(engine.UpdateOperation.upsert_points(points))
            shard.flush()
            shard.optimize()  # compresses them
            return np.array([_nearest(shard, query, k) for query in queries.tolist()], np.int64).reshape(
                len(queries), -1
            )
        finally:
            shard.close()


def _nearest(shard: engine.EdgeShard, query: list[float], k: int) -> list[int]:
    request = engine.QueryRequest(
        limit=k,
        query=engine.Query.Nearest(query),
        params=engine.SearchParams(
            quantization=engine.QuantizationSearchParams(ignore=False, rescore=False, oversampling=None)
        ),
    )
    return [int(str(found.id)) for found in shard.query(request)]
