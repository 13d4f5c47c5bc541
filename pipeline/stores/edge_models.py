"""Qdrant's models in the words of the edge engine, and back.

What the engine or this translation does not know raises StoreError; nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from pipeline.errors import StoreError
from pipeline.stores.points import Points

DISTANCES = {
    models.Distance.COSINE: edge.Distance.Cosine,
    models.Distance.DOT: edge.Distance.Dot,
    models.Distance.EUCLID: edge.Distance.Euclid,
    models.Distance.MANHATTAN: edge.Distance.Manhattan,
}
INDEXES = {
    models.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    models.PayloadSchemaType.INTEGER: edge.PayloadSchemaType.Integer,
    models.PayloadSchemaType.FLOAT: edge.PayloadSchemaType.Float,
    models.PayloadSchemaType.GEO: edge.PayloadSchemaType.Geo,
    models.PayloadSchemaType.TEXT: edge.PayloadSchemaType.Text,
    models.PayloadSchemaType.BOOL: edge.PayloadSchemaType.Bool,
    models.PayloadSchemaType.DATETIME: edge.PayloadSchemaType.Datetime,
    models.PayloadSchemaType.UUID: edge.PayloadSchemaType.Uuid,
}
_COMPRESSION = {
    models.CompressionRatio.X4: edge.CompressionRatio.X4,
    models.CompressionRatio.X8: edge.CompressionRatio.X8,
    models.CompressionRatio.X16: edge.CompressionRatio.X16,
    models.CompressionRatio.X32: edge.CompressionRatio.X32,
    models.CompressionRatio.X64: edge.CompressionRatio.X64,
}
_BINARY = {
    models.BinaryQuantizationEncoding.ONE_BIT: edge.BinaryQuantizationEncoding.OneBit,
    models.BinaryQuantizationEncoding.ONE_AND_HALF_BITS: edge.BinaryQuantizationEncoding.OneAndHalfBits,
    models.BinaryQuantizationEncoding.TWO_BITS: edge.BinaryQuantizationEncoding.TwoBits,
}
_QUERIES = {
    models.BinaryQuantizationQueryEncoding.DEFAULT: edge.BinaryQuantizationQueryEncoding.Default,
    models.BinaryQuantizationQueryEncoding.BINARY: edge.BinaryQuantizationQueryEncoding.Binary,
    models.BinaryQuantizationQueryEncoding.SCALAR4BITS: edge.BinaryQuantizationQueryEncoding.Scalar4Bits,
    models.BinaryQuantizationQueryEncoding.SCALAR8BITS: edge.BinaryQuantizationQueryEncoding.Scalar8Bits,
}
_DATATYPES = {
    models.Datatype.FLOAT32: edge.VectorStorageDatatype.Float32,
    models.Datatype.FLOAT16: edge.VectorStorageDatatype.Float16,
    models.Datatype.UINT8: edge.VectorStorageDatatype.Uint8,
}
_TURBO = {
    models.TurboQuantBitSize.BITS1: edge.TurboQuantBitSize.Bits1,
    models.TurboQuantBitSize.BITS1_5: edge.TurboQuantBitSize.Bits1_5,
    models.TurboQuantBitSize.BITS2: edge.TurboQuantBitSize.Bits2,
    models.TurboQuantBitSize.BITS4: edge.TurboQuantBitSize.Bits4,
    models.TurboQuantBitSize.BITS8: edge.TurboQuantBitSize.Bits8,
}
# What Qdrant's own documentation gives as defaults; the engine wants all three when one is set.
_HNSW_M, _HNSW_EF_CONSTRUCT, _HNSW_FULL_SCAN_KB = 16, 100, 10000


def unsupported(what: object) -> StoreError:
    """The error for something a server may know and the edge store does not."""
    return StoreError(
        f"the edge store cannot take {what!r}", "", "Use a Qdrant server for this, or leave it out"
    )


def shard_config(config: models.CreateCollection) -> edge.EdgeConfig:
    """The engine's settings of a new collection."""
    vectors = config.vectors
    if isinstance(vectors, models.VectorParams):
        vectors = {"": vectors}
    sparse = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if slot.modifier else None)
        for name, slot in (config.sparse_vectors or {}).items()
    }
    return edge.EdgeConfig(
        vectors={name: _vector(params) for name, params in (vectors or {}).items()},
        sparse_vectors=sparse or None,
        on_disk_payload=config.on_disk_payload,
        hnsw_config=_hnsw(config.hnsw_config),
        quantization_config=_quantization(config.quantization_config),
    )


def _vector(params: models.VectorParams) -> edge.EdgeVectorParams:
    if params.multivector_config is not None or params.datatype not in (None, *_DATATYPES):
        raise unsupported(params)
    return edge.EdgeVectorParams(
        size=params.size,
        distance=DISTANCES[params.distance],
        on_disk=params.on_disk,
        datatype=_DATATYPES[params.datatype] if params.datatype else None,
        hnsw_config=_hnsw(params.hnsw_config),
        quantization_config=_quantization(params.quantization_config),
    )


def _hnsw(config: models.HnswConfigDiff | None) -> edge.HnswIndexConfig | None:
    if config is None:
        return None
    whole = hnsw_info(config)
    return edge.HnswIndexConfig(whole.m, whole.ef_construct, whole.full_scan_threshold, on_disk=whole.on_disk)


def hnsw_info(config: models.HnswConfigDiff) -> models.HnswConfig:
    """The graph's settings with the defaults filled in."""
    return models.HnswConfig(
        m=_HNSW_M if config.m is None else config.m,
        ef_construct=config.ef_construct or _HNSW_EF_CONSTRUCT,
        full_scan_threshold=config.full_scan_threshold or _HNSW_FULL_SCAN_KB,
        on_disk=config.on_disk,
    )


def _quantization(config: models.QuantizationConfig | None) -> edge.QuantizationConfigType | None:
    match config:
        case None:
            return None
        case models.ScalarQuantization(scalar=scalar):
            return edge.ScalarQuantizationConfig(
                edge.ScalarType.Int8, quantile=scalar.quantile, always_ram=scalar.always_ram
            )
        case models.ProductQuantization(product=product):
            return edge.ProductQuantizationConfig(
                _COMPRESSION[product.compression], always_ram=product.always_ram
            )
        case models.BinaryQuantization(binary=binary):
            encoding = _BINARY[binary.encoding] if binary.encoding else None
            query = _QUERIES[binary.query_encoding] if binary.query_encoding else None
            return edge.BinaryQuantizationConfig(
                always_ram=binary.always_ram, encoding=encoding, query_encoding=query
            )
        case models.TurboQuantization(turbo=turbo):
            bits = _TURBO[turbo.bits] if turbo.bits else None
            return edge.TurboQuantQuantizationConfig(always_ram=turbo.always_ram, bits=bits)
    raise unsupported(config)


def edge_points(points: Points) -> list[edge.Point]:
    """The engine's point objects."""
    return [
        edge.Point(id, cast("edge.Vector", row[""] if [*row] == [""] else row), payload)
        for id, row, payload in zip(points.ids, points.vector_rows(), points.payloads, strict=True)
    ]


def edge_filter(value: models.Filter | None) -> edge.Filter | None:
    """The same, where there may be none."""
    return None if value is None else whole_filter(value)


def whole_filter(value: models.Filter) -> edge.Filter:
    """A filter with all its conditions; an empty list of them asks for nothing, as on a server."""
    minimum = value.min_should
    return edge.Filter(
        must=_conditions(value.must) if value.must else None,
        should=_conditions(value.should) if value.should else None,
        must_not=_conditions(value.must_not) if value.must_not else None,
        min_should=edge.MinShould(_conditions(minimum.conditions), minimum.min_count) if minimum else None,
    )


def _conditions(value: models.Condition | list[models.Condition]) -> list[edge.ConditionType]:
    return [_condition(one) for one in (value if isinstance(value, list) else [value])]


def _condition(value: models.Condition) -> edge.ConditionType:
    match value:
        case models.FieldCondition():
            return _field(value)
        case models.IsEmptyCondition(is_empty=field):
            return edge.IsEmptyCondition(field.key)
        case models.IsNullCondition(is_null=field):
            return edge.IsNullCondition(field.key)
        case models.HasIdCondition(has_id=ids):
            return edge.HasIdCondition({str(id) if isinstance(id, UUID) else id for id in ids})
        case models.NestedCondition(nested=nested):
            return edge.NestedCondition(nested.key, whole_filter(nested.filter))
        case models.Filter():
            return whole_filter(value)
    raise unsupported(value)


def _field(value: models.FieldCondition) -> edge.FieldCondition:
    if value.geo_bounding_box or value.geo_polygon or value.geo_radius:
        raise unsupported(value)
    count = value.values_count
    return edge.FieldCondition(
        value.key,
        match=_match(value.match) if value.match else None,
        range=_range(value.range) if value.range else None,
        values_count=edge.ValuesCount(**count.model_dump()) if count else None,
        is_empty=value.is_empty,
        is_null=value.is_null,
    )


def _match(value: models.Match) -> edge.MatchType:
    match value:
        case models.MatchValue(value=bool(flag)):
            # The binding reads Python's True as the integer 1, which matches no bool; it takes numpy's as it
            # is.
            return edge.MatchValue(cast(bool, np.bool_(flag)))
        case models.MatchValue(value=plain):
            return edge.MatchValue(plain)
        case models.MatchText(text=text):
            return edge.MatchText(text)
        case models.MatchTextAny(text_any=text):
            return edge.MatchTextAny(text)
        case models.MatchPhrase(phrase=phrase):
            return edge.MatchPhrase(phrase)
        case models.MatchAny(any=values):
            return edge.MatchAny(cast(list[str], list(values)))
        case models.MatchExcept(except_=values):
            return edge.MatchExcept(cast(list[str], list(values)))
    raise unsupported(value)


def _range(value: models.RangeInterface) -> edge.RangeType:
    if isinstance(value, models.Range):
        return edge.RangeFloat(gte=value.gte, gt=value.gt, lte=value.lte, lt=value.lt)
    bounds = {name: bound.isoformat() for name, bound in value if bound is not None}
    return edge.RangeDateTime(**bounds)


def edge_query(request: models.QueryRequest) -> edge.QueryRequest:
    """A query by one dense vector, of all points or of those that other such queries find first."""
    return edge.QueryRequest(
        limit=request.limit or 10,
        offset=request.offset,
        query=_nearest(request),
        prefetches=[_prefetch(one) for one in _listed(request.prefetch)],
        filter=edge_filter(request.filter),
        params=_search_params(request.params),
        score_threshold=request.score_threshold,
        with_payload=selector(request.with_payload),
        with_vector=bool(request.with_vector),
    )


def _prefetch(value: models.Prefetch) -> edge.Prefetch:
    return edge.Prefetch(
        limit=value.limit or 10,
        query=_nearest(value),
        prefetches=[_prefetch(one) for one in _listed(value.prefetch)],
        params=_search_params(value.params),
        filter=edge_filter(value.filter),
        score_threshold=value.score_threshold,
    )


def _listed(value: models.Prefetch | list[models.Prefetch] | None) -> list[models.Prefetch]:
    return value if isinstance(value, list) else [value] if value else []


def _nearest(asked: models.QueryRequest | models.Prefetch) -> edge.Query:
    query = asked.query.nearest if isinstance(asked.query, models.NearestQuery) else asked.query
    if not isinstance(query, list) or asked.lookup_from:
        raise unsupported(asked)
    return edge.Query.Nearest(query, using=asked.using or None)


def _search_params(value: models.SearchParams | None) -> edge.SearchParams | None:
    if value is None:
        return None
    quantization = value.quantization
    return edge.SearchParams(
        hnsw_ef=value.hnsw_ef,
        exact=bool(value.exact),
        indexed_only=bool(value.indexed_only),
        quantization=edge.QuantizationSearchParams(
            ignore=bool(quantization.ignore),
            rescore=quantization.rescore,
            oversampling=quantization.oversampling,
        )
        if quantization
        else None,
    )


def selector(with_payload: models.WithPayloadInterface | Sequence[str] | None) -> edge.WithPayloadType:
    """Which payload keys to read: all, none, or these paths."""
    match with_payload:
        case bool() | None:
            return bool(with_payload)
        case models.PayloadSelectorInclude(include=keys):
            return edge.PayloadSelector.Include(list(keys))
        case models.PayloadSelectorExclude(exclude=keys):
            return edge.PayloadSelector.Exclude(list(keys))
        case Sequence() as keys if not isinstance(keys, str):
            return edge.PayloadSelector.Include(list(keys))
    raise unsupported(with_payload)


def record(found: edge.Record) -> models.Record:
    """A point that was read."""
    return models.Record(id=_id(found.id), payload=found.payload, vector=_vectors(found.vector))


def scored(found: edge.ScoredPoint) -> models.ScoredPoint:
    """A point that was found."""
    return models.ScoredPoint(
        id=_id(found.id),
        version=found.version,
        score=found.score,
        payload=found.payload,
        vector=_vectors(found.vector),
    )


def index_info(found: edge.PayloadIndexInfo) -> models.PayloadIndexInfo:
    """A payload index that exists."""
    kind = next(ours for ours, theirs in INDEXES.items() if theirs == found.data_type)
    return models.PayloadIndexInfo(data_type=kind, points=found.points)


def _id(value: edge.PointId) -> int | str:
    return str(value) if isinstance(value, UUID) else int(value)


def _vectors(value: edge.Vector | None) -> models.VectorStructOutput | None:
    if not isinstance(value, Mapping):
        return value
    return {
        name: models.SparseVector(indices=vector.indices, values=vector.values)
        if isinstance(vector, edge.SparseVector)
        else vector
        for name, vector in value.items()
    }
