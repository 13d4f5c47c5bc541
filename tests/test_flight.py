"""The Flight endpoint: what is acknowledged is stored, whatever clients send and whenever the process dies."""

import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import documents
import grpc
import points
import pyarrow as pa
import pyarrow.flight as flight
import pytest
import runs
from cluster import free_port
from waiting import wait_for

from pipeline.config import StoreConfig
from pipeline.errors import HeadwaterError, UsageError
from pipeline.local import LocalExecutor
from pipeline.schemas import Counts, SplitAck
from pipeline.streams import watch
from pipeline.streams.flight import Place, Put
from pipeline.streams.wire import put_result

DEADLINE = 60
ROWS = documents.rows(40)
SCHEMA = pa.Table.from_pylist(ROWS).schema


def batch(rows):
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@contextmanager
def endpoint(to, host="127.0.0.1", scheme="grpc"):
    """An endpoint in a thread: its URI, and the list that gets what `watch` returned."""
    port, stop, ended = free_port(), threading.Event(), []
    uri = f"{scheme}://{host}:{port}"
    thread = threading.Thread(target=lambda: ended.append(watch(uri, to, LocalExecutor(), stop)))
    thread.start()
    try:
        wait_for(lambda: connects(port))
        yield uri, stop, ended
    finally:
        stop.set()
        thread.join(DEADLINE)


def connects(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Client:
    """One put."""

    def __init__(self, uri, schema=SCHEMA, token="", **more):
        self.flight = flight.connect(uri, **more)
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        self.writer, self.reader = self.flight.do_put(
            flight.FlightDescriptor.for_path("orders"), schema, flight.FlightCallOptions(headers=headers)
        )

    def send(self, *batches):
        for one in batches:
            self.writer.write_batch(one)

    def told(self):
        said = self.reader.read()
        return said and json.loads(said.to_pybytes())

    def told_of(self, batches):
        """Acknowledgements until so many batches are done."""
        found = []
        while not found or found[-1]["batches"] < batches:
            found.append(self.told())
            assert found[-1], self.failure()
        return found

    def end(self):
        self.writer.done_writing()
        assert self.reader.read() is None
        self.writer.close()

    def failure(self):
        """The error that ended the put."""
        with suppress(flight.FlightError, pa.ArrowException):
            while self.told():
                pass
        with pytest.raises((flight.FlightError, pa.ArrowException)) as raised:
            self.writer.close()
        return raised.value


@pytest.fixture
def to(qdrant, tiny_model, encoder_cache, tmp_path):
    """Settings of an endpoint over a collection of this test's own."""
    name = f"flight-{tmp_path.name}"
    return runs.settings(
        tiny_model, encoder_cache, qdrant.grpc_url, store__collection=name, run__state=str(tmp_path / "state"),
        watch__max_latency_s=0.1, watch__max_message_bytes=1 << 17,
    )  # fmt: skip


def stored(to):
    return points.contents_of(to.store.url, to.store.collection)


def expected(rows, to, tmp_path):
    """What a run over the rows makes of an empty store."""
    file = documents.write(tmp_path / f"oracle-{time.monotonic_ns()}.parquet", rows)
    oracle = to.model_copy(update={"store": StoreConfig(url=f"edge:{file}-edge", collection="docs")})
    assert runs.run(file, oracle).exit_code in (0, 3)
    return points.contents_of(oracle.store.url, "docs")


def test_what_is_acknowledged_is_stored_and_counted(to, tmp_path):
    again = {**ROWS[2], "text": "what overtakes it."}
    with endpoint(to) as (uri, stop, ended):
        client = Client(uri)
        client.send(batch(ROWS[:10]), batch([]), batch([*ROWS[10:20], {**ROWS[0], "id": None}]))
        told = client.told_of(3)
        assert stored(to).keys() == expected(ROWS[:20], to, tmp_path).keys()
        counts = sum((Counts(**one["counts"]) for one in told), Counts())
        assert (counts.read, counts.indexed, counts.rejected) == (21, 20, 1)
        (rejected,) = [one for each in told for one in each["rejected"]]
        assert (rejected["row"], rejected["document_id"], rejected["reason"]) == (20, None, "null_id")
        client.send(batch([again]))
        assert client.told_of(4)[-1]["rows"] == 22
        client.end()
        stop.set()
        wait_for(lambda: ended)
    (summary,) = ended
    assert (summary.exit_code, summary.counts.read) == (3, 22)
    points.assert_same(expected([*ROWS[:2], again, *ROWS[3:20]], to, tmp_path), stored(to))


def test_bad_puts_are_told_why_and_disturb_nobody(to, tmp_path):
    with endpoint(to) as (uri, _, ended):
        good = Client(uri)
        good.send(batch(ROWS[:5]))
        no_id = pa.record_batch({"name": ["a"], "text": ["a text"]})
        assert "has no column 'id'. Its columns are name, text. Name the columns" in str(refused(uri, no_id))
        wrong = pa.record_batch({"id": ["a"], "text": [1.5]})
        assert "column 'text' of the put has type double" in str(refused(uri, wrong))
        large = pa.record_batch({"id": ["a"], "text": ["x" * (1 << 18)]})
        assert "Received message larger than max" in str(refused(uri, large))
        bomb = pa.record_batch({"id": ["a"], "text": ["x" * (1 << 18)]})
        packed = pa.ipc.IpcWriteOptions(compression="zstd")
        assert "a batch of 26" in str(refused(uri, bomb, write_options=packed))
        offsets = pa.array([0, 1 << 30, 1], pa.int32()).buffers()[1]  # the second is far outside the memory
        texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"x"))
        hostile = pa.RecordBatch.from_arrays([pa.array(["a", "b"]), texts], names=["id", "text"])
        assert isinstance(refused(uri, hostile), pa.ArrowInvalid)
        assert raw(uri, [b"no protobuf at all"]) == grpc.StatusCode.INVALID_ARGUMENT
        assert raw(uri, []) == grpc.StatusCode.INVALID_ARGUMENT
        code = grpc.StatusCode.INVALID_ARGUMENT
        # a message that says it goes on in the next ones is not gathered, and nothing is passed over in silence
        schema, (header, body) = ipc_messages(batch(ROWS[5:6]))
        one = flight_data(header, body)
        assert raw(uri, [flight_data(*schema), flight_data(header, body[:-8]), *[one] * 9]) == code
        assert raw(uri, [flight_data(*schema), flight_data(header, body + bytes(64)), one]) == code
        good.told_of(1)
        good.send(batch(ROWS[5:10]))
        good.told_of(2)
        good.end()
        assert not ended
    points.assert_same(expected(ROWS[:10], to, tmp_path), stored(to))


def refused(uri, one, write_options=None):
    options = flight.FlightCallOptions(write_options=write_options)
    writer, reader = flight.connect(uri).do_put(flight.FlightDescriptor.for_command(b""), one.schema, options)
    with suppress(flight.FlightError, pa.ArrowException):
        writer.write_batch(one)
        writer.done_writing()
        assert reader.read() is None
    with pytest.raises((flight.FlightError, pa.ArrowException)) as raised:
        writer.close()
    return raised.value


def ipc_messages(one):
    """(header, body) of a schema and of a batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, one.schema) as writer:
        writer.write_batch(one)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    messages = reader.read_next_message(), reader.read_next_message()
    return [(message.metadata.to_pybytes(), message.body.to_pybytes()) for message in messages]


def flight_data(header, body):
    """A message of a put; `put_result` writes field 1, and 1000 is two bytes."""
    return b"\x12" + put_result(header)[1:] + (b"\xc2\x3e" + put_result(body)[1:] if body else b"")


def raw(uri, messages):
    """The status of a put of these bytes."""
    with grpc.insecure_channel(uri.partition("://")[2]) as channel:
        call = channel.stream_stream("/arrow.flight.protocol.FlightService/DoPut")(iter(messages))
        with suppress(grpc.RpcError):
            list(call)
        return call.code()


def test_many_clients_share_rounds(to, tmp_path):
    with endpoint(to) as (uri, _, ended):
        clients = [Client(uri) for _ in range(4)]
        threads = [
            threading.Thread(target=push, args=(client, ROWS[number::4]))
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    assert (ended[0].counts.read, ended[0].counts.indexed) == (40, 40)
    points.assert_same(expected(ROWS, to, tmp_path), stored(to))


def push(client, rows):
    client.send(*(batch(rows[start : start + 2]) for start in range(0, len(rows), 2)))
    client.told_of(-(-len(rows) // 2))
    client.end()


def test_an_outage_is_waited_out_and_nothing_is_acknowledged_meanwhile(to, qdrant, tmp_path):
    to = to.model_copy(update={"store": to.store.model_copy(update={"retries": 0})})
    with endpoint(to) as (uri, _, ended):
        qdrant.plant("status", times=1000, status=503, on="upsert")
        client = Client(uri)
        client.send(batch(ROWS[:5]))
        told = []
        reading = threading.Thread(target=lambda: told.extend(client.told_of(1)))
        reading.start()
        wait_for(lambda: sum(call.startswith("upsert") for call in calls(qdrant)) > 3)
        assert not told
        qdrant.plant()
        reading.join(DEADLINE)
        assert told[0]["counts"]["read"] == 5
        client.end()
        assert not ended
    points.assert_same(expected(ROWS[:5], to, tmp_path), stored(to))


def calls(qdrant):
    """The server's calls so far; the planted fault stays."""
    found = qdrant.calls()
    qdrant.plant("status", times=1000, status=503, on="upsert")
    return found


def test_who_may_put(to, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="can be reached from other machines"):
        watch("grpc://0.0.0.0:8815", to, LocalExecutor(), threading.Event())
    with pytest.raises(UsageError, match="no place to listen at"):
        watch("grpc://127.0.0.1", to, LocalExecutor(), threading.Event())
    with pytest.raises(UsageError, match="certificate or key cannot be read"):
        Place.parse("grpc+tls://127.0.0.1:1", to.watch)
    closed = to.model_copy(update={"watch": to.watch.model_copy(update=secret("s3cret-of-the-endpoint"))})
    with endpoint(closed, host="0.0.0.0") as (uri, _, _):
        here = uri.replace("0.0.0.0", "127.0.0.1")
        for token in ("", "s3cret-of-the-endpoin"):
            with pytest.raises(flight.FlightUnauthenticatedError):  # as early as the schema, or later
                raise Client(here, token=token).failure()
        client = Client(here, token="s3cret-of-the-endpoint")
        client.send(batch(ROWS[:2]))
        client.told_of(1)
        client.end()
        with pytest.raises(UsageError, match="cannot be listened at"):
            watch(here, closed.model_copy(update={"store": StoreConfig(url="memory:", collection="c")}),
                  LocalExecutor(), threading.Event())  # fmt: skip


def secret(token):
    return {"token": type(StoreConfig().api_key)(token)}


def test_tls(to, tmp_path):
    key, cert = certificate(tmp_path)
    files = {"tls_key": str(key), "tls_cert": str(cert)}
    safe = to.model_copy(update={"watch": to.watch.model_copy(update=files)})
    with pytest.raises(UsageError, match="without TLS"):
        Place.parse("grpc://127.0.0.1:1", safe.watch)
    with endpoint(safe, scheme="grpc+tls", host="localhost") as (uri, _, _):
        client = Client(uri, tls_root_certs=cert.read_bytes())
        client.send(batch(ROWS[:2]))
        assert client.told_of(1)[-1]["rows"] == 2
        client.end()


def certificate(folder):
    """A key and a certificate of its own for localhost, for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    return folder / "key.pem", folder / "cert.pem"


class Watch:
    """`headwater watch grpc://…` in a process of its own, to be killed."""

    def __init__(self, to, cache, *more):
        self.uri = f"grpc://127.0.0.1:{free_port()}"
        self.process = runs.start(
            "watch", self.uri, "--encoder", to.encoder.model, "--store", to.store.url, "--collection",
            to.store.collection, "--max-latency", "100ms", "--json", "--set", f"run.state={to.run.state}",
            "--set", "chunking.max_tokens=48", "--set", "encoder.provider=cpu", "--set", "run.lease_s=2", *more,
            cache=cache,
        )  # fmt: skip
        port = int(self.uri.rpartition(":")[2])
        wait_for(lambda: connects(port) or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def test_killed_between_write_and_acknowledgement_then_drained(to, qdrant, encoder_cache, tmp_path):
    with Watch(to, encoder_cache) as server:
        client = Client(server.uri)
        client.send(batch(ROWS[:10]))
        client.told_of(1)
        # upserts are carried out from here on, and never said to be done
        qdrant.plant("answer", times=1000, on="upsert", answer="wait_timeout")
        before = len(stored(to))
        client.send(batch([{**ROWS[1], "text": "a shorter text."}, *ROWS[10:20]]))
        wait_for(lambda: len(stored(to)) > before)
        os.killpg(server.process.pid, signal.SIGKILL)
        assert isinstance(client.failure(), flight.FlightError)
    qdrant.plant()
    with Watch(to, encoder_cache) as server:
        client = Client(server.uri)
        client.send(
            batch([{**ROWS[1], "text": "a shorter text."}, *ROWS[10:20]])
        )  # it was told of none of them
        client.told_of(1)
        client.end()
        idle = Client(server.uri)
        taken = Client(server.uri)
        qdrant.plant("hang", times=1, on="upsert", seconds=0.5)
        taken.send(batch(ROWS[20:30]))
        wait_for(lambda: "upsert" in qdrant.calls()[-1])
        server.process.send_signal(signal.SIGTERM)
        assert taken.told()["rows"] == 10  # what was taken is finished, and said to be
        for put in (taken, idle):
            assert "Send the rest again" in str(put.failure())
        assert not connects(int(server.uri.rpartition(":")[2]))
        out, err = server.process.communicate(timeout=DEADLINE)
    assert server.process.returncode == 0, err
    assert runs.lines(out)[0]["read"] == 21
    rows = [ROWS[0], {**ROWS[1], "text": "a shorter text."}, *ROWS[2:30]]
    points.assert_same(expected(rows, to, tmp_path), stored(to))


def test_acknowledgements_nobody_fetches_become_one():
    put = Put()
    for _ in range(3):
        put.take()
    put.acknowledge(1, SplitAck("", Counts(read=2, indexed=2)))
    put.acknowledge(2, SplitAck("", Counts(read=3, indexed=3)))
    put.end(UsageError("wrong"))
    said = put.acknowledgements()
    told = json.loads(next(said))
    assert (told["batches"], told["counts"]["indexed"]) == (3, 5)
    with pytest.raises(HeadwaterError, match="wrong"):
        next(said)
