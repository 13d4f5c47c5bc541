"""A server that speaks Qdrant's protocol, gRPC and REST, over the edge store, with planted faults.

    python tests/qdrant_server.py --dir DIR [--api-key KEY] [--rest-port 0] [--grpc-port 0]

listens on loopback and prints its ports in JSON. It knows what `pipeline.stores.server` asks, and what the RAG
clients ask to read. `POST /faults` plants one:
`{"kind": "status", "status": 429, "retry_after": "0.1", "on": "upsert"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc
import numpy as np
from pydantic import TypeAdapter, ValidationError
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import (
    CollectionsServicer,
    add_CollectionsServicer_to_server,
)
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server

from pipeline.errors import HeadwaterError
from pipeline.stores.edge import EdgeStore
from pipeline.stores.points import Points

GRPC_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
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


@dataclass
class Fault:
    """What happens to the next `times` calls of the kind `on` instead of an answer."""

    kind: str  # "status", "hang", "drop", "garbage", or "answer": carried out, but answered with `answer`
    times: int = 1
    on: str = ""  # "": every call
    status: int = 503
    message: str = "planted"
    retry_after: str | None = None
    seconds: float = 0.0
    answer: str = "acknowledged"
    above_points: int = -1  # only upserts of more points than this


@dataclass
class Qdrant:
    """The calls, in qdrant-client's own models, whichever protocol they came by."""

    store: EdgeStore
    api_key: str = ""
    faults: list[Fault] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, call: str, points: int = 0) -> Fault | None:
        """Note the call; the fault that hits it, if one is planted."""
        with self.lock:
            self.calls.append(call if call != "upsert" else f"upsert {points}")
            for fault in self.faults:
                if fault.times and fault.on in ("", call) and points > fault.above_points:
                    fault.times -= 1
                    return fault
        return None

    def upsert(self, name: str, found: list[models.PointStruct], where: models.Filter | None = None) -> None:
        by_vector: dict[str, list[models.PointStruct]] = {}
        for point in found:
            named = point.vector if isinstance(point.vector, dict) else {"": point.vector}
            by_vector.setdefault(next(iter(named)), []).append(point)
        for vector_name, some in by_vector.items():
            rows = [one.vector[vector_name] if vector_name else one.vector for one in some]
            if len({len(row) for row in rows}) > 1:
                raise ValueError("vectors of several sizes")
            vectors = np.array(rows, dtype=np.float32)
            self.store.upsert(
                name,
                Points(
                    [str(one.id) for one in some], vectors, [one.payload or {} for one in some], vector_name
                ),
                where,
            )

    def set_payload(self, name: str, change: models.SetPayload) -> None:
        self.store.set_payload(name, change.payload, [str(id) for id in change.points], change.key)

    def update(self, name: str, operations: list[models.UpdateOperation]) -> None:
        for operation in operations:
            change = operation.overwrite_payload
            self.store.overwrite_payloads(
                name, [str(id) for id in change.points], [change.payload] * len(change.points)
            )

    def delete(self, name: str, selector: models.PointsSelector) -> None:
        what = (
            selector.filter
            if isinstance(selector, models.FilterSelector)
            else [str(id) for id in selector.points]
        )
        self.store.delete(name, what)


def status_of(error: Exception) -> int:
    """The status a Qdrant gives for an error of the store."""
    return 404 if isinstance(error, HeadwaterError) and error.got.startswith("no collection") else 400


# --- gRPC


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
            try:
                return body(self, request, fault.answer if fault and fault.kind == "answer" else "completed")
            except (HeadwaterError, ValueError, KeyError, ValidationError) as error:
                context.abort(GRPC_CODES[status_of(error)], str(error))

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


# --- REST


def parse(kind, body):
    return TypeAdapter(kind).validate_python(body)


def rest_points(body) -> list[models.PointStruct]:
    if "points" in body:
        return parse(list[models.PointStruct], body["points"])
    batch = body["batch"]
    named = batch["vectors"] if isinstance(batch["vectors"], dict) else None
    rows = (
        [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
        if named
        else batch["vectors"]
    )
    return [
        models.PointStruct(id=id, vector=row, payload=payload)
        for id, row, payload in zip(batch["ids"], rows, batch["payloads"], strict=True)
    ]


def rest_selector(body) -> models.PointsSelector:
    return parse(models.FilterSelector if "filter" in body else models.PointIdsList, body)


class Rest(BaseHTTPRequestHandler):
    """The REST API. Each route answers (the fault's name for the call, a function that makes the result)."""

    qdrant: Qdrant
    protocol_version = "HTTP/1.1"

    def handle_call(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        url = urlsplit(self.path)
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        if path == [""]:
            return self.answer(
                200, {"title": "qdrant - vector search engine", "version": version("qdrant-client")}
            )
        if path == ["faults"]:
            with self.qdrant.lock:
                self.qdrant.faults = [Fault(**body)] if body else []
            return self.answer(200, {"calls": self.qdrant.calls})
        if self.qdrant.api_key and self.headers.get("api-key") != self.qdrant.api_key:
            return self.answer(401, "Must provide an API key")
        name, make = self.route(self.command, path, body)
        points = len(rest_points(body)) if name == "upsert" else 0
        fault = self.qdrant.fault(name, points)
        if fault and fault.kind != "answer" and self.play(fault):
            return None
        try:
            if body and body.get("update_filter") and "ordering=strong" not in url.query:
                raise ValueError("an update filter wants strong ordering")
            result = make()
        except (HeadwaterError, ValueError, KeyError, ValidationError) as error:
            return self.answer(status_of(error), {"status": {"error": str(error)}, "time": 0.0})
        if name in ("upsert", "delete", "index", "set_payload", "batch"):
            waited = "wait=true" in url.query
            status = fault.answer if fault else ("completed" if waited else "acknowledged")
            result = {"operation_id": 1, "status": status}
            if name == "batch":
                result = [result] * len(body["operations"])
        return self.answer(200, {"result": result, "status": "ok", "time": 0.0})

    def play(self, fault: Fault) -> bool:
        """Let the fault happen; True if that was the answer."""
        if fault.kind == "hang":
            time.sleep(fault.seconds)
            return False
        if fault.kind == "drop":
            self.close_connection = True
            self.connection.close()
            return True
        if fault.kind == "garbage":
            self.answer(200, "<html>a proxy</html>")
            return True
        headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
        self.answer(fault.status, {"status": {"error": fault.message}, "time": 0.0}, headers)
        return True

    def route(self, method, path, body):
        store = self.qdrant.store

        def dump(model):
            return model.model_dump(mode="json", by_alias=True)

        match method, path:
            case "GET", ["collections"]:
                return "list", lambda: dump(store.get_collections())
            case "GET", ["aliases"]:
                return "list_aliases", lambda: dump(store.get_aliases())
            case "POST", ["collections", "aliases"]:
                changes = parse(list[models.AliasOperations], body["actions"])
                return "aliases", lambda: store.update_collection_aliases(changes)
            case "GET", ["collections", name, "exists"]:
                return "exists", lambda: {"exists": store.collection_exists(name)}
            case _, ["collections", name]:
                return self.route_collection(method, name, body)
            case "PUT", ["collections", name, "index"]:
                kind = models.PayloadSchemaType(body["field_schema"])
                return "index", lambda: store.create_payload_index(name, body["field_name"], kind)
            case "PUT", ["collections", name, "points"]:
                where = parse(models.Filter | None, body.get("update_filter"))
                return "upsert", lambda: self.qdrant.upsert(name, rest_points(body), where)
            case "POST", ["collections", name, "points", *rest]:
                return self.route_points(name, rest, body)
        raise ValueError(f"no route {method} {path}")

    def route_collection(self, method, name, body):
        store = self.qdrant.store
        match method:
            case "GET":
                return "get", lambda: store.get_collection(name).model_dump(mode="json", by_alias=True)
            case "DELETE":
                return "delete_collection", lambda: store.delete_collection(name)
            case "PUT":
                return "create", lambda: self.create(name, parse(models.CreateCollection, body))
            case "PATCH":
                return "update", lambda: store.update_collection(name, body["metadata"])
        raise ValueError(f"no method {method} for a collection")

    def route_points(self, name, rest, body):
        store = self.qdrant.store
        select = parse(models.WithPayloadInterface | None, body.get("with_payload"))
        where = parse(models.Filter | None, body.get("filter"))
        vectors = bool(body.get("with_vector"))
        match rest:
            case []:
                return "retrieve", lambda: [
                    one.model_dump(mode="json") for one in store.retrieve(name, body["ids"], select, vectors)
                ]
            case ["delete"]:
                return "delete", lambda: self.qdrant.delete(name, rest_selector(body))
            case ["payload"]:
                return "set_payload", lambda: self.qdrant.set_payload(name, parse(models.SetPayload, body))
            case ["batch"]:
                operations = parse(list[models.UpdateOperation], body["operations"])
                return "batch", lambda: self.qdrant.update(name, operations)
            case ["count"]:
                return "count", lambda: {"count": store.count(name, where).count}
            case ["scroll"]:
                return "scroll", lambda: self.scroll(name, where, body, select, vectors)
            case ["query"]:
                query = parse(models.QueryRequest, body)
                return "query", lambda: store.query_batch_points(name, [query])[0].model_dump(mode="json")
            case ["query", "batch"]:
                queries = parse(list[models.QueryRequest], body["searches"])
                return "query", lambda: [
                    one.model_dump(mode="json") for one in store.query_batch_points(name, queries)
                ]
        raise ValueError(f"no route for points {rest}")

    def create(self, name, config: models.CreateCollection):
        return self.qdrant.store.create_collection(
            name,
            config.vectors,
            config.sparse_vectors,
            config.hnsw_config,
            config.quantization_config,
            config.on_disk_payload,
            config.metadata,
        )

    def scroll(self, name, where, body, select, vectors):
        found, following = self.qdrant.store.scroll(
            name, where, body["limit"], body.get("offset"), select, vectors
        )
        return {"points": [one.model_dump(mode="json") for one in found], "next_page_offset": following}

    def answer(self, status, value, headers=None):
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        for key, content in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, content)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = handle_call

    def log_message(self, *args):
        pass


# --- the process, and the handle that tests hold


def serve(folder: Path, api_key: str, rest_port: int, grpc_port: int) -> None:
    """Listen until SIGTERM."""
    qdrant = Qdrant(EdgeStore.open(folder), api_key)
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 64 << 20)])
    add_PointsServicer_to_server(Points_(qdrant), server)
    add_CollectionsServicer_to_server(Collections(qdrant), server)
    grpc_port = server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    server.start()
    rest = ThreadingHTTPServer(("127.0.0.1", rest_port), type("Handler", (Rest,), {"qdrant": qdrant}))
    rest.daemon_threads = True
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    sys.stdout.write(json.dumps({"rest": rest.server_port, "grpc": grpc_port}) + "\n")
    sys.stdout.flush()
    stopped.wait()
    rest.shutdown()
    server.stop(0.2).wait()
    qdrant.store.close()


class Server:
    """A running server process."""

    def __init__(self, folder: Path, api_key: str = "", rest_port: int = 0, grpc_port: int = 0) -> None:
        self.folder, self.api_key = folder, api_key
        command = [sys.executable, __file__, "--dir", str(folder), "--rest-port", str(rest_port)]
        self.process = subprocess.Popen(
            [*command, "--grpc-port", str(grpc_port)],
            stdout=subprocess.PIPE,
            env={**os.environ, "HEADWATER_TEST_API_KEY": api_key},
        )
        ports = json.loads(self.process.stdout.readline())
        self.rest_port, self.grpc_port = ports["rest"], ports["grpc"]

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def plant(self, kind: str = "", **fault) -> None:
        """Replace the planted fault; none for no kind."""
        self._control({"kind": kind, **fault} if kind else {})

    def calls(self) -> list[str]:
        """The calls so far, with the number of points of each upsert; forgets the planted fault."""
        return self._control({})["calls"]

    def kill(self) -> None:
        """End it at once, as a power cut would end a machine."""
        self.process.kill()
        self.process.wait()

    def again(self) -> Server:
        """A new server over the same folder on the same ports."""
        return Server(self.folder, self.api_key, self.rest_port, self.grpc_port)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()

    def _control(self, fault: dict) -> dict:
        request = urllib.request.Request(f"{self.rest_url}/faults", json.dumps(fault).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def running(folder: Path, api_key: str = ""):
    """A server for the length of a `with` block."""
    server = Server(folder, api_key)
    try:
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--api-key", default=os.environ.get("HEADWATER_TEST_API_KEY", ""))
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    options = parser.parse_args()
    serve(options.dir, options.api_key, options.rest_port, options.grpc_port)
