"""A server that refuses for a while, is away, or stands still: nothing is lost, and nobody runs in circles."""

from __future__ import annotations

import signal
import threading
import time

import documents
import numpy as np
import points as stored
import pytest
import runs
from qdrant_client import models
from qdrant_server import Server, running
from stores import points
from test_stores_server import QUICK, config, upserts

from pipeline import metrics
from pipeline.errors import StoreOverloaded
from pipeline.stores import Points, open_store
from pipeline.stores import server as server_module


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(params=["grpc", "rest"])
def protocol(request) -> str:
    return request.param


@pytest.fixture
def store(server, monkeypatch):
    monkeypatch.setattr(server_module, "_BACKOFF", QUICK)
    monkeypatch.setattr(server_module, "_JITTER_S", 0.05)
    server.plant()
    opened = open_store(config(server, "grpc", batch_points=3, retries=8))
    opened.delete_collection("c")
    opened.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    yield opened
    server.plant()
    opened.close()


@pytest.mark.parametrize("retry_after", ["0.1", None], ids=["with a pause", "without"])
def test_a_storm_of_refusals_is_waited_out(server, store, retry_after):
    server.plant("status", status=429, retry_after=retry_after, on="upsert", times=12)
    store.upsert("c", points(list(range(24))))
    assert store.count("c").count == 24
    assert store._pace._halvings
    # Eight batches and twelve refusals; without a pause to keep, batches may go in halves.
    assert len(upserts(server)) <= (8 if retry_after else 24) + 12


@pytest.mark.parametrize("retry_after", ["0.1", None], ids=["with a pause", "without"])
def test_a_storm_without_end_is_an_error_after_few_requests(server, store, retry_after):
    server.plant("status", status=429, retry_after=retry_after, on="upsert", times=10**6)
    impatient = open_store(config(server, "grpc", batch_points=3, retries=2))
    with pytest.raises(StoreOverloaded):
        impatient.upsert("c", points(list(range(24))))
    # For each of eight batches three attempts; without a pause two for it whole, two for its half, three for a point.
    assert len(upserts(server)) <= 8 * (3 if retry_after else 2 + 2 + 3)
    impatient.close()


def test_a_killed_server_that_comes_back_is_written_to_again(tmp_path, protocol, monkeypatch):
    monkeypatch.setattr(
        server_module, "_BACKOFF", server_module.wait_exponential_jitter(multiplier=0.2, max=1)
    )
    first = Server(tmp_path)
    store = open_store(config(first, protocol, retries=20, batch_points=10))
    store.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    started = threading.Event()
    second: list[Server] = []

    def cut():
        started.wait()
        time.sleep(0.1)
        first.kill()
        time.sleep(0.3)
        second.append(first.again())

    cutting = threading.Thread(target=cut)
    cutting.start()
    rows = np.ones((10, 4), np.float32)
    try:
        for n in range(60):
            ids = [f"00000000-0000-0000-0000-{n * 10 + i:012d}" for i in range(10)]
            store.upsert("c", Points(ids, {"": rows}, [{"n": n}] * 10))
            started.set()
            time.sleep(0.005)
        assert store.count("c").count == 600
    finally:
        cutting.join()
        store.close()
        second[0].stop()
        first.process.stdout.close()


# --- a whole run over an outage


class Attempts:
    """A sink that counts what was tried again."""

    def __init__(self):
        self.causes = []

    def record(self, metric, value, labels):
        if metric is metrics.RETRIES:
            self.causes += labels


@pytest.fixture
def attempts():
    sink = Attempts()
    metrics.send_to(sink)
    yield sink
    metrics.send_to(None)


def take_away(server: Server, how: str, seconds: float) -> Server:
    """Kill or freeze the server for so long; the one that serves then."""
    if how == "frozen":
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)
        return server
    server.kill()
    time.sleep(seconds)
    return server.again()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_run_outlasts_an_outage_and_says_that_it_waits(
    how, tiny_model, encoder_cache, tmp_path, attempts, caplog
):
    source = documents.write(tmp_path / "docs.parquet", documents.rows(20, most_words=60), row_group=4)
    more = {"run__state": f"{tmp_path}/state", "store__batch_points": 4, "store__timeout_s": 1}
    plain = runs.settings(tiny_model, encoder_cache, f"memory:{tmp_path}", **more)
    runs.run(source, plain)
    first = Server(tmp_path / "server")
    to = runs.settings(tiny_model, encoder_cache, first.grpc_url, **more)
    serving = [first]

    def cut():
        while sum(call.startswith("upsert") for call in first.calls()) < 8:
            time.sleep(0.02)
        serving.append(take_away(first, how, 3.5 if how == "frozen" else 1.5))

    first.plant("hang", seconds=0.1, on="upsert", times=10**6)  # so that there is a middle to cut it in
    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        summary = runs.run(source, to)
        cutting.join()
        assert (summary.exit_code, summary.counts.read) == (0, 20)
        stored.assert_same(
            stored.contents_of(to.store.url, "docs"), stored.contents_of(plain.store.url, "docs")
        )
    finally:
        cutting.join()
        serving[-1].stop()
        first.process.stdout.close()
    assert 1 <= len(attempts.causes) <= 60
    assert set(attempts.causes) == {"StoreUnavailable"}
    assert any("trying again" in told and "again_in_s=" in told for told in caplog.messages)


def test_a_server_that_asks_to_slow_down_gets_fewer_requests_at_once(server, store, protocol):
    small = open_store(config(server, protocol, batch_points=3))
    server.plant("status", status=429, retry_after="1", on="upsert", times=1)
    small.upsert("c", points(list(range(12))))
    assert small.count("c").count == 12
    assert small._pace.limit < 4
    small.close()
