"""Qdrant's REST API, as far as Headwater and the RAG clients ask, over an edge store."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter, ValidationError
from qdrant_client import models
from qdrant_faults import Fault, Qdrant, linger, status_of

from pipeline.errors import HeadwaterError


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


def first_half(body):
    half = len(rest_points(body)) // 2
    if "points" in body:
        return {**body, "points": body["points"][:half]}
    batch = body["batch"]
    vectors = batch["vectors"]
    cut = (
        {name: rows[:half] for name, rows in vectors.items()} if isinstance(vectors, dict) else vectors[:half]
    )
    return {
        **body,
        "batch": {"ids": batch["ids"][:half], "vectors": cut, "payloads": batch["payloads"][:half]},
    }


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
            if self.command == "POST":
                with self.qdrant.lock:
                    self.qdrant.faults = [Fault(**body)] if body else []
            return self.answer(200, {"calls": self.qdrant.calls})
        if self.qdrant.api_key and self.headers.get("api-key") != self.qdrant.api_key:
            return self.answer(401, "Must provide an API key")
        name, make = self.route(self.command, path, body)
        points = len(rest_points(body)) if name == "upsert" else 0
        fault = self.qdrant.fault(name, points)
        if fault and not fault.after and self.play(fault):
            return None
        if fault and fault.kind == "partial":
            _, make = self.route(self.command, path, first_half(body))
        try:
            if body and body.get("update_filter") and "ordering=strong" not in url.query:
                raise ValueError("an update filter wants strong ordering")
            result = make()
        except (HeadwaterError, ValueError, KeyError, ValidationError) as error:
            return self.answer(status_of(error), {"status": {"error": str(error)}, "time": 0.0})
        linger(fault)
        if fault and fault.kind in ("lost", "partial"):
            return self.play(fault)
        if name in ("upsert", "delete", "index", "set_payload", "batch"):
            waited = "wait=true" in url.query
            status = (
                fault.answer
                if fault and fault.kind == "answer"
                else ("completed" if waited else "acknowledged")
            )
            result = {"operation_id": 1, "status": status}
            if name == "batch":
                result = [result] * len(body["operations"])
        return self.answer(200, {"result": result, "status": "ok", "time": 0.0})

    def play(self, fault: Fault) -> bool:
        """Let the fault happen; True if that was the answer."""
        if fault.kind == "hang":
            time.sleep(fault.seconds)
            return False
        if fault.kind in ("drop", "lost"):
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
