"""Qdrant's gRPC services, as far as Headwater and the RAG clients ask, over an edge store."""

from __future__ import annotations

import time

import grpc
from pydantic import ValidationError
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer
from qdrant_faults import Qdrant, linger, status_of

from pipeline.errors import HeadwaterError

GRPC_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.INTERNAL,
}
GRPC_STATUS = {
    "completed": pb.UpdateStatus.Completed,
    "acknowledged": pb.UpdateStatus.Acknowledged,
    "wait_timeout": pb.UpdateStatus.WaitTimeout,
}


def call(name: str):
    """A gRPC method: key and faults first, then the body, its errors as statuses."""

    def wrap(body):
        def method(self, request, context):
            qdrant: Qdrant = self.qdrant
            if qdrant.api_key and dict(context.invocation_metadata()).get("api-key") != qdrant.api_key:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key")
            fault = qdrant.fault(name, len(request.points) if name == "upsert" else 0)
            if fault and fault.kind == "hang":
                time.sleep(fault.seconds)
            elif fault and fault.kind in ("drop", "garbage"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            elif fault and fault.kind == "status":
                if fault.retry_after is not None:
                    context.set_trailing_metadata((("retry-after", fault.retry_after),))
                context.abort(GRPC_CODES[fault.status], fault.message)
            elif fault and fault.kind == "partial":
                del request.points[len(request.points) // 2 :]
            try:
                answer = body(
                    self, request, fault.answer if fault and fault.kind == "answer" else "completed"
                )
            except (HeadwaterError, ValueError, KeyError, ValidationError) as error:
                context.abort(GRPC_CODES[status_of(error)], str(error))
            linger(fault)
            if fault and fault.kind == "lost":
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if fault and fault.kind == "partial":
                context.abort(GRPC_CODES[fault.status], fault.message)
            return answer

        return method

    return wrap


def done(answer: str) -> pb.PointsOperationResponse:
    return pb.PointsOperationResponse(
        result=pb.UpdateResult(operation_id=1, status=GRPC_STATUS[answer]), time=0.0
    )


def optional(message, name: str, convert):
    return convert(getattr(message, name)) if message.HasField(name) else None


def record(found: models.Record) -> pb.RetrievedPoint:
    return RestToGrpc.convert_record(found.model_copy(update={"payload": found.payload or {}}))


class Points_(PointsServicer):
    """The gRPC service of points."""

    def __init__(self, qdrant: Qdrant):
        self.qdrant = qdrant

    @call("upsert")
    def Upsert(self, request, answer):
        where = optional(request, "update_filter", GrpcToRest.convert_filter)
        strong = request.HasField("ordering") and request.ordering.type == pb.WriteOrderingType.Strong
        if where and not strong:
            raise ValueError("an update filter wants strong ordering")
        self.qdrant.upsert(
            request.collection_name, [GrpcToRest.convert_point_struct(p) for p in request.points], where
        )
        return done(answer if request.wait else "acknowledged")

    @call("set_payload")
    def SetPayload(self, request, answer):
        selector = GrpcToRest.convert_points_selector(request.points_selector)
        change = models.SetPayload(
            payload=GrpcToRest.convert_payload(request.payload),
            points=selector.points,
            key=request.key if request.HasField("key") else None,
        )
        self.qdrant.set_payload(request.collection_name, change)
        return done(answer if request.wait else "acknowledged")

    @call("batch")
    def UpdateBatch(self, request, answer):
        operations = [GrpcToRest.convert_points_update_operation(one) for one in request.operations]
        self.qdrant.update(request.collection_name, operations)
        result = done(answer if request.wait else "acknowledged").result
        return pb.UpdateBatchResponse(result=[result] * len(operations), time=0.0)

    @call("delete")
    def Delete(self, request, answer):
        self.qdrant.delete(request.collection_name, GrpcToRest.convert_points_selector(request.points))
        return done(answer if request.wait else "acknowledged")

    @call("retrieve")
    def Get(self, request, answer):
        found = self.qdrant.store.retrieve(
            request.collection_name,
            [str(GrpcToRest.convert_point_id(id)) for id in request.ids],
            GrpcToRest.convert_with_payload_selector(request.with_payload),
            request.with_vectors.enable,
        )
        return pb.GetResponse(result=[record(one) for one in found])

    @call("index")
    def CreateFieldIndex(self, request, answer):
        kind = pb.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
        self.qdrant.store.create_payload_index(
            request.collection_name, request.field_name, models.PayloadSchemaType(kind)
        )
        return done(answer if request.wait else "acknowledged")

    @call("scroll")
    def Scroll(self, request, answer):
        found, following = self.qdrant.store.scroll(
            request.collection_name,
            optional(request, "filter", GrpcToRest.convert_filter),
            request.limit,
            optional(request, "offset", lambda id: str(GrpcToRest.convert_point_id(id))),
            GrpcToRest.convert_with_payload_selector(request.with_payload),
            request.with_vectors.enable,
        )
        return pb.ScrollResponse(
            result=[record(one) for one in found],
            next_page_offset=None if following is None else RestToGrpc.convert_extended_point_id(following),
        )

    @call("count")
    def Count(self, request, answer):
        where = optional(request, "filter", GrpcToRest.convert_filter)
        count = self.qdrant.store.count(request.collection_name, where).count
        return pb.CountResponse(result=pb.CountResult(count=count))

    @call("query")
    def QueryBatch(self, request, answer):
        queries = [GrpcToRest.convert_query_points(one) for one in request.query_points]
        found = self.qdrant.store.query_batch_points(request.collection_name, queries)
        return pb.QueryBatchResponse(
            result=[
                pb.BatchResult(result=[RestToGrpc.convert_scored_point(point) for point in one.points])
                for one in found
            ]
        )


class Collections(CollectionsServicer):
    """The gRPC service of collections and aliases."""

    def __init__(self, qdrant: Qdrant):
        self.qdrant = qdrant

    @call("list")
    def List(self, request, answer):
        names = [
            pb.CollectionDescription(name=one.name) for one in self.qdrant.store.get_collections().collections
        ]
        return pb.ListCollectionsResponse(collections=names)

    @call("exists")
    def CollectionExists(self, request, answer):
        exists = self.qdrant.store.collection_exists(request.collection_name)
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    @call("get")
    def Get(self, request, answer):
        info = self.qdrant.store.get_collection(request.collection_name)
        return pb.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    @call("create")
    def Create(self, request, answer):
        made = self.qdrant.store.create_collection(
            request.collection_name,
            GrpcToRest.convert_vectors_config(request.vectors_config),
            optional(request, "sparse_vectors_config", GrpcToRest.convert_sparse_vector_config),
            optional(request, "hnsw_config", GrpcToRest.convert_hnsw_config_diff),
            optional(request, "quantization_config", GrpcToRest.convert_quantization_config),
            optional(request, "on_disk_payload", bool),
            GrpcToRest.convert_payload(request.metadata) if request.metadata else None,
        )
        return pb.CollectionOperationResponse(result=made)

    @call("update")
    def Update(self, request, answer):
        metadata = GrpcToRest.convert_payload(request.metadata)
        return pb.CollectionOperationResponse(
            result=self.qdrant.store.update_collection(request.collection_name, metadata)
        )

    @call("delete_collection")
    def Delete(self, request, answer):
        return pb.CollectionOperationResponse(
            result=self.qdrant.store.delete_collection(request.collection_name)
        )

    @call("aliases")
    def UpdateAliases(self, request, answer):
        changes = [GrpcToRest.convert_alias_operations(one) for one in request.actions]
        return pb.CollectionOperationResponse(result=self.qdrant.store.update_collection_aliases(changes))

    @call("list_aliases")
    def ListAliases(self, request, answer):
        found = self.qdrant.store.get_aliases().aliases
        return pb.ListAliasesResponse(aliases=[RestToGrpc.convert_alias_description(one) for one in found])
