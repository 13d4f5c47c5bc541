"""An Arrow Flight endpoint: clients put record batches, and are told when the store has them for good.

    put ► thread that reads it ► inbox ► round ► acknowledgement, in the put's app_metadata

Many puts share a round. What a client was told is stored; what it was not told it sends again, which changes nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pyarrow as pa

from pipeline import logs
from pipeline.config import Settings, WatchConfig
from pipeline.errors import (
    HeadwaterError,
    SourceError,
    StoreUnauthorized,
    StoreUnavailable,
    UsageError,
)
from pipeline.ingest import Executor
from pipeline.schemas import Counts, Rejected, SplitAck
from pipeline.sources import check_columns, normal
from pipeline.streams.rounds import Arrival, Inbox, Indexer, Sender
from pipeline.streams.session import session
from pipeline.streams.wire import SERVICE, Frames, put_result
from pipeline.summary import Summary

SCHEMES = ("grpc", "grpc+tcp", "grpc+tls")
PUTS = 32  # at once
TOLD = 100  # rejected documents in one acknowledgement
_DRAIN_S = 86400.0  # as long as it takes: the next signal ends it
_LEAVING_S = 10.0  # for clients to fetch the last acknowledgements
_LONGEST_MESSAGE = 2000  # of an error: gRPC sends it as a header

log = logs.logger(__name__)


def watch_flight(uri: str, settings: Settings, executor: Executor, stop: threading.Event) -> Summary:
    """Index what Flight clients put, until `stop` is set; then finish and acknowledge what was taken.

    A crash loses nothing that was acknowledged. While the store is out nothing is acknowledged, and little is taken.
    Raises as `watch` does, and UsageError where the endpoint is not to be had or not safe.
    """
    place = Place.parse(uri, settings.watch)
    with session(place.uri, settings, executor, stop) as held, tempfile.TemporaryDirectory() as scratch:
        held.begin(uuid.uuid4().hex[:12])
        endpoint = Endpoint(place, settings)
        indexer = Indexer(held, settings, Path(scratch), threading.Event())  # a stop lets rounds be finished
        undone = False
        try:
            while not (undone or stop.is_set()):
                undone = _round(endpoint, indexer, endpoint.inbox.gather(settings.watch.max_latency_s, stop))
            endpoint.drain()
            while not undone and (arrivals := endpoint.inbox.gather(0, stop)):
                undone = _round(endpoint, indexer, arrivals)
        finally:
            endpoint.close()
        return held.end(interrupted=undone)


def _round(endpoint: Endpoint, indexer: Indexer, arrivals: list[Arrival]) -> bool:
    """Index and acknowledge; True where the round was given up."""
    if not arrivals:
        return False
    acks = indexer.index(arrivals)
    endpoint.acknowledge(arrivals, acks)
    return not acks


@dataclass(frozen=True)
class Place:
    """Where to listen: the URI that clients connect to, `address` as gRPC writes it, credentials for TLS or None."""

    uri: str
    address: str
    credentials: Any

    @classmethod
    def parse(cls, uri: str, config: WatchConfig) -> Place:
        """Raise UsageError unless it is HOST:PORT, with a token where others than this machine can reach it."""
        place = normal(uri)
        parts = urlsplit(place)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in SCHEMES or not parts.hostname or port is None or parts.path.strip("/"):
            raise UsageError(
                f"{place} is no place to listen at",
                "A host and a port",
                "headwater watch grpc://127.0.0.1:8815 …",
            )
        if not config.token.get_secret_value() and not _is_loopback(parts.hostname):
            raise UsageError(
                f"{place} can be reached from other machines, and watch.token is not set",
                "A token, without which nobody may put",
                "Set HEADWATER_WATCH__TOKEN, or listen on 127.0.0.1",
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(place, f"{host}:{port}", _credentials(parts.scheme, place, config))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _credentials(scheme: str, place: str, config: WatchConfig) -> Any:  # noqa: ANN401 - gRPC is untyped
    """The credentials for TLS, None without; UsageError where the scheme says otherwise than the settings."""
    files = (config.tls_key, config.tls_cert)
    if scheme != "grpc+tls":
        if any(files):
            raise UsageError(
                f"{place} is without TLS, and watch.tls_cert or watch.tls_key is set",
                "Both or neither",
                f"Listen on grpc+tls://{place.partition('://')[2]}",
            )
        return None
    try:
        key, chain = (Path(file).expanduser().read_bytes() for file in files)
    except OSError as error:
        raise UsageError(
            f"{place} is with TLS, and its certificate or key cannot be read: {error}",
            "PEM files",
            "Set watch.tls_cert and watch.tls_key",
        ) from None
    return grpc.ssl_server_credentials([(key, chain)])


class Put:
    """One client's stream of batches: what it is still to be told, and what ended it.

    Acknowledgements that wait for a client that does not fetch them become one.
    """

    def __init__(self) -> None:
        self.sender = Sender("-")
        self._taken = 0
        self._done = 0
        self._told = 0
        self._counts = Counts()
        self._rejected: list[Rejected] = []
        self._over = self._cut = False
        self._error: HeadwaterError | None = None
        self._changed = threading.Condition()

    def take(self) -> None:
        """Do not end before another batch is done."""
        with self._changed:
            self._taken += 1

    def acknowledge(self, batches: int, ack: SplitAck) -> None:
        """Tell the client that so many more batches are done, and what became of their rows."""
        with self._changed:
            self._done += batches
            self._counts += ack.counts
            self._rejected = [*self._rejected, *ack.rejected][:TOLD]
            self._changed.notify_all()

    def end(self, error: HeadwaterError | None = None) -> None:
        """End it when what was taken is done; what ended it first counts."""
        with self._changed:
            if not self._over:
                self._over, self._error = True, error
            self._changed.notify_all()

    def cut(self, error: HeadwaterError) -> None:
        """End it now, whatever was taken."""
        with self._changed:
            self._over = self._cut = True
            self._error = self._error or error
            self._changed.notify_all()

    def acknowledgements(self) -> Iterator[bytes]:
        """Each as it comes; at the end raises what ended the put."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news)
                if self._told == self._done:
                    break
                said = self._say()
            yield said
        if self._error:
            raise self._error

    def _has_news(self) -> bool:
        return self._told < self._done or (self._over and (self._cut or self._done >= self._taken))

    def _say(self) -> bytes:
        names = ("row", "document_id", "reason", "message")
        said = {
            "batches": self._done,
            "rows": self.sender.rows,
            "counts": self._counts.as_dict(),
            "rejected": [{name: getattr(one, name) for name in names} for one in self._rejected],
        }
        self._told, self._counts, self._rejected = self._done, Counts(), []
        return json.dumps(said, ensure_ascii=False).encode()


class Endpoint:
    """Listens from its making on, until it is closed."""

    def __init__(self, place: Place, settings: Settings) -> None:
        self.inbox = Inbox()
        self._uri = place.uri
        self._settings = settings
        self._puts: dict[Sender, Put] = {}
        self._lock = threading.Lock()
        self._server = _serve(place, settings.watch, self._put)

    def acknowledge(self, arrivals: list[Arrival], acks: Mapping[Sender, SplitAck]) -> None:
        """Tell each client of a round what became of its batches; nothing where the round was given up."""
        for sender, ack in acks.items():
            with self._lock:
                put = self._puts.get(sender)
            if put is None:  # its client has gone
                continue
            if ack.error is not None or not ack.complete:
                put.cut(SourceError(ack.error or "a round that was ended early", "", "Send it again"))
            else:
                put.acknowledge(sum(arrival.sender is sender for arrival in arrivals), ack)

    def drain(self) -> None:
        """Take nothing more; what was taken is still to be acknowledged."""
        self._server.stop(_DRAIN_S)
        self.inbox.close()

    def close(self) -> None:
        """End every put: what it was not told is to be sent again."""
        self.inbox.close()
        stopped = self._server.stop(_LEAVING_S)
        with self._lock:
            puts = list(self._puts.values())
        for put in puts:
            put.cut(_stopping())
        stopped.wait()

    def _put(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:  # noqa: ANN401 - gRPC is untyped
        """Answer one DoPut."""
        put = Put()
        try:
            self._authorize(context)
            with self._lock:
                self._puts[put.sender] = put
            threading.Thread(target=self._read, args=(put, messages), name="put", daemon=True).start()
            for said in put.acknowledgements():
                yield put_result(said)
        except HeadwaterError as error:
            context.abort(_code(error), str(error)[:_LONGEST_MESSAGE])
        finally:
            with self._lock:
                self._puts.pop(put.sender, None)

    def _authorize(self, context: Any) -> None:  # noqa: ANN401 - gRPC is untyped
        token = self._settings.watch.token.get_secret_value().strip()
        if not token:
            return
        given = str(dict(context.invocation_metadata()).get("authorization", ""))
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise StoreUnauthorized(
                "a put without the token of this endpoint" if not given else "a put with another token",
                "The header 'authorization: Bearer TOKEN'",
                "Send it with each call",
            )

    def _read(self, put: Put, messages: Iterator[bytes]) -> None:
        """Take a put's batches into the inbox until its end, or what is wrong with it."""
        try:
            frames = Frames(messages)
            with pa.ipc.open_stream(frames) as batches:
                put.sender.name = "/".join([self._uri, *frames.path])[:500]
                check_columns(batches.schema, self._settings.source, "the put")
                for batch in batches:
                    self._check(batch)
                    if not self.inbox.offer(put.sender, batch):
                        raise _stopping()
                    put.take()
                if frames.read(1):
                    raise ValueError("data behind the end of the stream")
        except HeadwaterError as error:
            put.end(error)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            put.end(
                UsageError(f"the put is not to be read: {reason}", "Arrow record batches", "Send it again")
            )
        except grpc.RpcError:  # its client has gone, or has been told by gRPC that a message is too large
            put.end()
        else:
            put.end()

    def _check(self, batch: pa.RecordBatch) -> None:
        """Refuse what is too large once it is decompressed, and what would make us read beyond its memory."""
        limit = self._settings.watch.max_message_bytes
        if batch.nbytes > limit:
            raise UsageError(
                f"a batch of {batch.nbytes} bytes",
                f"At most {limit} (watch.max_message_bytes)",
                "Send smaller batches",
            )
        for column in batch.columns:
            plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
            (column.view(plain) if plain else column).validate(full=True)  # of texts, rows are rejected alone


def _serve(place: Place, config: WatchConfig, put: Any) -> Any:  # noqa: ANN401 - gRPC is untyped
    server = grpc.server(
        ThreadPoolExecutor(PUTS, thread_name_prefix="flight"),
        maximum_concurrent_rpcs=PUTS,
        options=[
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.so_reuseport", 0),  # else two processes listen on one port
            ("grpc.keepalive_time_ms", 60_000),  # a client that vanished is noticed
        ],
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {"DoPut": grpc.stream_stream_rpc_method_handler(put)})]
    )
    try:
        if place.credentials:
            port = server.add_secure_port(place.address, place.credentials)
        else:
            port = server.add_insecure_port(place.address)
    except RuntimeError:
        raise UsageError(
            f"{place.uri} cannot be listened at",
            "An address of this machine with a free port",
            "Choose another",
        ) from None
    server.start()
    log.info("flight_listening", uri=place.uri, port=port)
    if (
        config.token.get_secret_value()
        and not place.credentials
        and not _is_loopback(urlsplit(place.uri).hostname or "")
    ):
        log.warning("flight_in_clear", uri=place.uri)
    return server


def _stopping() -> StoreUnavailable:
    return StoreUnavailable(
        "the endpoint is stopping",
        "What was acknowledged is stored",
        "Send the rest again when it is back",
    )


def _code(error: HeadwaterError) -> Any:  # noqa: ANN401 - gRPC is untyped
    """How gRPC names it, and so which Flight error the client raises."""
    match error:
        case UsageError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case StoreUnauthorized():
            return grpc.StatusCode.UNAUTHENTICATED
        case StoreUnavailable():
            return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL
