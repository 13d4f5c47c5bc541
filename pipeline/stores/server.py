"""The server store: Qdrant over gRPC or REST, with retries of our own."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar
from urllib.parse import SplitResult

from qdrant_client import QdrantClient, models
from qdrant_client.conversions.conversion import GrpcToRest
from qdrant_client.http.models import QueryResponse
from tenacity import RetryCallState, Retrying, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from pipeline import logs, metrics
from pipeline.config import StoreConfig
from pipeline.errors import (
    HeadwaterError,
    PointTooLarge,
    StoreOverloaded,
    StoreUnavailable,
    TransientError,
)
from pipeline.stores.pace import Pace
from pipeline.stores.permission import may_write
from pipeline.stores.points import Points
from pipeline.stores.server_client import server_client
from pipeline.stores.server_errors import BatchTooLarge, server_error
from pipeline.stores.server_points import grpc_request, json_bytes, ordering, rest_points
from pipeline.stores.store import VectorsConfig, payload_keys

MAX_REQUEST_BYTES = 16 << 20
"""A server takes 32 MiB over REST; half of it leaves room for what an estimate misses."""

_LONGEST_PAUSE_S = 300.0
_JITTER_S = 0.5  # so that those who were refused together do not come back together
_BACKOFF = wait_exponential_jitter(multiplier=0.2, max=10.0, jitter=_JITTER_S)
_TOLD = frozenset(2**n for n in range(1, 31))

Answer = TypeVar("Answer")

log = logs.logger(__name__)


class ServerStore:
    """Collections of a Qdrant server.

    Every call is tried again `retries` times after errors that may pass (see server_errors.py), with growing
    pauses, or longer ones if the server asks for them: about half a minute by default, so that a restart is waited
    for. `upsert` and `delete` return when the server says `completed`: applied, and in its log on disk. What a server
    will not take in one request is sent in halves.
    """

    def __init__(self, client: QdrantClient, url: str, config: StoreConfig, over_grpc: bool) -> None:
        self._client = client
        self._url = url
        self._batch_points = config.batch_points
        self._retries = config.retries
        self._timeout_s = config.timeout_s
        self._over_grpc = over_grpc
        self._pace = Pace(config.requests)
        self._senders = ThreadPoolExecutor(config.requests, thread_name_prefix="send")

    @classmethod
    def open(cls, place: SplitResult, config: StoreConfig) -> ServerStore:
        """A client for `place`; the server is first spoken to by the first call."""
        over_grpc = place.scheme in ("grpc", "grpcs") or config.prefer_grpc
        return cls(server_client(place, config, over_grpc), place.geturl(), config, over_grpc)

    def __repr__(self) -> str:
        return f"ServerStore({self._url!r}, {'gRPC' if self._over_grpc else 'REST'})"

    def get_collections(self) -> models.CollectionsResponse:
        return self._call("list collections", self._client.get_collections)

    def collection_exists(self, collection_name: str) -> bool:
        return self._call("look for a collection", lambda: self._client.collection_exists(collection_name))

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
        attempts = itertools.count()

        def create() -> bool:
            if next(attempts) and self._client.collection_exists(collection_name):
                return True  # an attempt whose answer was lost has made it
            return self._client.create_collection(
                collection_name,
                vectors_config=vectors_config,
                sparse_vectors_config=sparse_vectors_config,
                hnsw_config=hnsw_config,
                quantization_config=quantization_config,
                on_disk_payload=on_disk_payload,
                metadata=metadata,
            )

        return self._call(f"create collection {collection_name!r}", create)

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        return self._call(
            f"read the state of {collection_name!r}", lambda: self._client.get_collection(collection_name)
        )

    def delete_collection(self, collection_name: str) -> bool:
        def delete() -> bool:
            return bool(self._client.delete_collection(collection_name))

        return self._call(f"delete collection {collection_name!r}", delete)

    def update_collection(self, collection_name: str, metadata: dict[str, Any]) -> bool:
        return self._call(
            f"update the metadata of {collection_name!r}",
            lambda: self._client.update_collection(collection_name, metadata=metadata),
        )

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        return self._call("list aliases", self._client.get_aliases)

    def update_collection_aliases(self, change_aliases_operations: Sequence[models.AliasOperations]) -> bool:
        return self._call(
            "change aliases", lambda: self._client.update_collection_aliases(change_aliases_operations)
        )

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: models.PayloadSchemaType
    ) -> None:
        self._update(
            f"index {field_name!r} in {collection_name!r}",
            lambda: self._client.create_payload_index(collection_name, field_name, field_schema, wait=True),
        )

    def upsert(
        self, collection_name: str, points: Points, update_filter: models.Filter | None = None
    ) -> None:
        self._send_in_pieces(
            f"upsert into {collection_name!r}",
            points.ids,
            lambda start, stop: self._send(collection_name, points.slice(start, stop), update_filter),
        )

    def too_large(self, collection_name: str, points: Points) -> list[str]:
        found = []
        for row, id in enumerate(points.ids):
            point = points.slice(row, row + 1)
            nbytes = json_bytes(point)
            # As messages, numbers may take more than as digits.
            if self._over_grpc and nbytes > MAX_REQUEST_BYTES // 8:
                nbytes = grpc_request(collection_name, point, None).ByteSize()
            if nbytes > MAX_REQUEST_BYTES:
                found.append(id)
        return found

    def set_payload(
        self, collection_name: str, payload: dict[str, Any], points: Sequence[str], key: str | None = None
    ) -> None:
        if points:
            self._update(
                f"set the payload of {len(points)} points of {collection_name!r}",
                lambda: self._client.set_payload(collection_name, payload, list(points), key=key, wait=True),
            )

    def overwrite_payloads(
        self, collection_name: str, ids: Sequence[str], payloads: Sequence[dict[str, Any]]
    ) -> None:
        self._send_in_pieces(
            f"overwrite payloads in {collection_name!r}",
            ids,
            lambda start, stop: self._overwrite(collection_name, ids[start:stop], payloads[start:stop]),
        )

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        if not ids:
            return []
        return self._call(
            f"retrieve {len(ids)} points of {collection_name!r}",
            lambda: self._client.retrieve(
                collection_name, list(ids), with_payload=payload_keys(with_payload), with_vectors=with_vectors
            ),
        )

    def delete(self, collection_name: str, points_selector: Sequence[str] | models.Filter) -> None:
        if isinstance(points_selector, models.Filter):
            selector: models.PointsSelector = models.FilterSelector(filter=points_selector)
        elif points_selector:
            selector = models.PointIdsList(points=list(points_selector))
        else:
            return
        self._update(
            f"delete points of {collection_name!r}",
            lambda: self._client.delete(collection_name, selector, wait=True),
        )

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest]
    ) -> list[QueryResponse]:
        return self._call(
            f"query {collection_name!r}",
            lambda: self._client.query_batch_points(collection_name, list(requests)),
        )

    def count(self, collection_name: str, count_filter: models.Filter | None = None) -> models.CountResult:
        return self._call(
            f"count the points of {collection_name!r}",
            lambda: self._client.count(collection_name, count_filter=count_filter, exact=True),
        )

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: str | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> tuple[list[models.Record], str | None]:
        found, following = self._call(
            f"scroll through {collection_name!r}",
            lambda: self._client.scroll(
                collection_name,
                scroll_filter=scroll_filter,
                limit=limit,
                offset=offset,
                with_payload=payload_keys(with_payload),
                with_vectors=with_vectors,
            ),
        )
        return found, None if following is None else str(following)

    def flush(self) -> None:
        """Do nothing: a server has what it acknowledged in its log."""

    def optimize(self, collection_name: str) -> None:
        """Do nothing: a server builds its indexes by itself."""

    def close(self) -> None:
        self._senders.shutdown(cancel_futures=True)
        self._client.close()

    def _send_in_pieces(
        self, what: str, ids: Sequence[str], send: Callable[[int, int], models.UpdateResult]
    ) -> None:
        """Send what belongs to these ids by `send(start, stop)`, several batches at once.

        A batch that is too much for one request goes in halves. Returns, or raises the first error, when nothing is
        under way any more.
        """

        def part(start: int, stop: int) -> None:
            one = stop - start == 1
            try:
                self._update(f"{what} ({stop - start} points)", lambda: send(start, stop), splittable=not one)
            except (BatchTooLarge, StoreOverloaded) as error:
                if one and isinstance(error, BatchTooLarge):
                    advice = "Make the document's metadata smaller, or cut words of megabytes in its text"
                    raise PointTooLarge(error.got, error.need, advice, ids[start]) from error
                if one or (isinstance(error, StoreOverloaded) and error.retry_after_s > 0):
                    raise
                middle = (start + stop) // 2
                part(start, middle)
                part(middle, stop)

        starts = range(0, len(ids), self._batch_points)
        stops = [min(start + self._batch_points, len(ids)) for start in starts]
        if len(starts) == 1:
            part(starts[0], stops[0])
            return
        sent = [
            self._senders.submit(copy_context().run, part, start, stop)
            for start, stop in zip(starts, stops, strict=True)
        ]
        failed = [error for error in (future.exception() for future in sent) if error is not None]
        if failed:
            raise failed[0]

    def _overwrite(
        self, collection_name: str, ids: Sequence[str], payloads: Sequence[dict[str, Any]]
    ) -> models.UpdateResult:
        self._check_size(ids, sum(len(json.dumps(payload)) for payload in payloads))
        operations = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(payload=payload, points=[id])
            )
            for id, payload in zip(ids, payloads, strict=True)
        ]
        results = self._client.batch_update_points(collection_name, operations, wait=True)
        return next((one for one in results if one.status != models.UpdateStatus.COMPLETED), results[-1])

    def _send(self, collection_name: str, points: Points, where: models.Filter | None) -> models.UpdateResult:
        if not self._over_grpc:
            self._check_size(points.ids, json_bytes(points))
            return self._client.upsert(
                collection_name,
                rest_points(points),
                wait=True,
                ordering=ordering(where),
                update_filter=where,
            )
        request = grpc_request(collection_name, points, where)
        self._check_size(points.ids, request.ByteSize())
        answer = self._client.grpc_points.Upsert(request, timeout=self._timeout_s)
        return GrpcToRest.convert_update_result(answer.result)

    def _check_size(self, ids: Sequence[str], nbytes: int) -> None:
        if nbytes > MAX_REQUEST_BYTES:
            raise BatchTooLarge(
                f"{len(ids)} points of {nbytes} bytes for {self._url}, the first {ids[0]}",
                f"At most {MAX_REQUEST_BYTES} bytes in a request",
            )

    def _update(self, doing: str, send: Callable[[], models.UpdateResult], splittable: bool = False) -> None:
        """Call until the server says that the update is applied."""

        def applied() -> None:
            with self._pace.turn() as sent_after:
                may_write()
                try:
                    status = send().status
                except Exception as error:
                    ours = server_error(error, doing, self._url)
                    if isinstance(ours, StoreOverloaded):
                        self._pace.refused(sent_after, min(ours.retry_after_s, _LONGEST_PAUSE_S))
                    raise
            if status != models.UpdateStatus.COMPLETED:
                raise StoreUnavailable(
                    f"cannot {doing}: {self._url} answered {status.value!r}",
                    "An update that is applied, not only taken note of",
                    "Raise store.timeout_s if the server is busy",
                )

        self._call(doing, applied, splittable)

    def _call(self, doing: str, call: Callable[[], Answer], splittable: bool = False) -> Answer:
        """Call, turn foreign errors into ours, and try the transient ones again."""

        def once() -> Answer:
            try:
                return call()
            except Exception as error:
                ours = server_error(error, doing, self._url)
                if ours is error:
                    raise
                raise ours from error

        def enough(state: RetryCallState) -> bool:
            # A server names no pause where a batch can never fit its budget: once more, then in halves.
            error = state.outcome.exception() if state.outcome else None
            hopeless = splittable and isinstance(error, StoreOverloaded) and not error.retry_after_s
            return state.attempt_number > (1 if hopeless else self._retries)

        retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=enough,
            wait=_pause,
            before_sleep=_tell,
            reraise=True,
        )
        return retrying(once)


def _tell(state: RetryCallState) -> None:
    """Say that a call waits: after its second attempt, the fourth, the eighth …; the first bothers nobody yet."""
    error = state.outcome.exception() if state.outcome else None
    metrics.record(metrics.RETRIES, 1, type(error).__name__)
    if isinstance(error, HeadwaterError) and state.attempt_number in _TOLD and state.next_action:
        log.warning(
            "retrying",
            cause=type(error).__name__,
            error=f"{error.got}; trying again",
            attempts=state.attempt_number,
            waited_s=round(state.seconds_since_start or 0.0, 1),
            again_in_s=round(state.next_action.sleep, 1),
        )


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: ever more, with jitter, and never less than what the server asked for."""
    error = state.outcome.exception() if state.outcome else None
    asked = min(error.retry_after_s, _LONGEST_PAUSE_S) if isinstance(error, StoreOverloaded) else 0.0
    return max(_BACKOFF(state), asked + random.uniform(0, _JITTER_S) if asked else 0.0)
