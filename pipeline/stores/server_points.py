"""Points as a server takes them: gRPC messages, or models for REST."""

from __future__ import annotations

import json

from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc

from pipeline.stores.points import Points

_JSON_BYTES_PER_FLOAT = 22


def grpc_request(collection_name: str, points: Points, where: models.Filter | None) -> grpc.UpsertPoints:
    """An upsert of the points, with a filter on what it may replace."""
    strong = ordering(where)
    return grpc.UpsertPoints(
        collection_name=collection_name,
        wait=True,
        points=_grpc_points(points),
        ordering=RestToGrpc.convert_write_ordering(strong) if strong else None,
        update_filter=RestToGrpc.convert_filter(where) if where else None,
    )


def ordering(where: models.Filter | None) -> models.WriteOrdering | None:
    """A comparison is only worth something where replicas see updates in one order."""
    return models.WriteOrdering.STRONG if where else None


def _grpc_points(points: Points) -> list[grpc.PointStruct]:
    """The points as messages; 1.3 times the rate of going through qdrant-client's models."""
    made = []
    for id, row, payload in zip(points.ids, points.vector_rows(), points.payloads, strict=True):
        vectors = {name: grpc.Vector(dense=grpc.DenseVector(data=values)) for name, values in row.items()}
        made.append(
            grpc.PointStruct(
                id=grpc.PointId(uuid=id),
                vectors=grpc.Vectors(vector=vectors[""])
                if [*vectors] == [""]
                else grpc.Vectors(vectors=grpc.NamedVectors(vectors=vectors)),
                payload=RestToGrpc.convert_payload(payload),
            )
        )
    return made


def rest_points(points: Points) -> models.Batch:
    """The points as REST takes them."""
    vectors = {name: rows.tolist() for name, rows in points.vectors.items()}
    return models.Batch(
        ids=list(points.ids),
        vectors=vectors[""] if [*vectors] == [""] else vectors,
        payloads=list(points.payloads),
    )


def json_bytes(points: Points) -> int:
    """How many bytes the points take as JSON, about."""
    texts = sum(len(json.dumps(payload)) for payload in points.payloads)
    return texts + points.vector_bytes // 4 * _JSON_BYTES_PER_FLOAT
