"""The server store against a server with planted faults: what is retried, what is not, and what is said."""

from __future__ import annotations

import datetime
import email.utils
import logging
import pickle
import time
import traceback
import warnings

import httpx
import pytest
from pydantic import SecretStr
from qdrant_client import models
from qdrant_server import Server, running
from stores import ID, points
from tenacity import RetryCallState

from pipeline.config import StoreConfig
from pipeline.errors import (
    HeadwaterError,
    PointTooLarge,
    StoreError,
    StoreFull,
    StoreOverloaded,
    StoreUnauthorized,
    StoreUnavailable,
    UsageError,
)
from pipeline.stores import open_store
from pipeline.stores import server as server_module

# True, and out of place here: the server is on loopback.
pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
KEY = "s3cret-key-nobody-may-see"
QUICK = server_module._BACKOFF.__class__(multiplier=0.01, max=0.05, jitter=0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server"), KEY) as started:
        yield started


@pytest.fixture(params=["grpc", "rest"])
def protocol(request) -> str:
    return request.param


def config(server: Server, protocol: str, **settings) -> StoreConfig:
    url = server.grpc_url if protocol == "grpc" else server.rest_url
    settings = {"retries": 3, "timeout_s": 5, "api_key": SecretStr(server.api_key)} | settings
    return StoreConfig(url=url, prefer_grpc=protocol == "grpc", **settings)


@pytest.fixture
def store(server, protocol, monkeypatch):
    monkeypatch.setattr(server_module, "_BACKOFF", QUICK)
    server.plant()
    opened = open_store(config(server, protocol))
    opened.delete_collection("c")
    opened.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    yield opened
    server.plant()
    opened.close()


def upserts(server: Server) -> list[int]:
    """The sizes of the upserts since the collection was made."""
    calls = server.calls()
    since = len(calls) - calls[::-1].index("create")
    return [int(call.split()[1]) for call in calls[since:] if call.startswith("upsert")]


# --- errors that pass


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 408},
        {"kind": "drop"},
        {"kind": "lost"},
        {"kind": "partial", "status": 500, "message": "1 of 2 shards failed to apply the operation"},
        {"kind": "answer", "answer": "acknowledged"},
        {"kind": "answer", "answer": "wait_timeout"},
    ],
    ids=lambda fault: f"{fault['kind']}-{fault.get('status', fault.get('answer', ''))}",
)
def test_an_upsert_is_tried_again_until_it_is_applied(server, store, fault):
    server.plant(**fault, on="upsert", times=2)
    store.upsert("c", points([1, 2, 3]))
    assert upserts(server) == [3, 3, 3]
    assert store.count("c").count == 3


@pytest.mark.parametrize("fault", ["acknowledged", "wait_timeout", "lost"])
def test_every_update_is_sent_until_it_is_applied(server, store, fault):
    store.upsert("c", points([1, 2]))
    (one, two), where = points([1, 2]).ids, models.Filter(must=[models.HasIdCondition(has_id=[ID[2]])])
    updates = {
        "set_payload": lambda: store.set_payload("c", {"a": 1}, [one]),
        "batch": lambda: store.overwrite_payloads("c", [one, two], [{"b": 1}] * 2),
        "index": lambda: store.create_payload_index("c", "k", models.PayloadSchemaType.KEYWORD),
        "delete": lambda: store.delete("c", where),
    }
    for on, update in updates.items():
        answer = {"kind": "lost"} if fault == "lost" else {"kind": "answer", "answer": fault}
        server.plant(**answer, on=on, times=2)
        update()
        assert server.calls()[-3:] == [on] * 3
    (left,) = store.retrieve("c", [one, two])
    assert (left.id, left.payload) == (one, {"b": 1})


def test_a_late_answer_is_not_waited_for_and_what_arrives_twice_is_there_once(server, protocol, monkeypatch):
    monkeypatch.setattr(server_module, "_BACKOFF", QUICK)
    store = open_store(config(server, protocol, timeout_s=1))
    store.delete_collection("c")
    store.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    server.plant("hang", seconds=1.5, on="upsert", times=1)
    store.upsert("c", points([1, 2, 3]))
    time.sleep(0.7)
    assert upserts(server) == [3, 3]
    assert store.count("c").count == 3
    store.close()


@pytest.mark.parametrize(
    "on", ["query", "retrieve", "scroll", "count", "delete", "get", "list_aliases", "index"]
)
def test_every_call_is_tried_again(server, store, on):
    store.upsert("c", points([1]))
    server.plant("status", status=503, on=on, times=1)
    calls = {
        "query": lambda: store.query_batch_points("c", [models.QueryRequest(query=[1.0] * 4, limit=1)]),
        "retrieve": lambda: store.retrieve("c", points([1]).ids),
        "scroll": lambda: store.scroll("c"),
        "count": lambda: store.count("c"),
        "delete": lambda: store.delete("c", points([1]).ids),
        "get": lambda: store.get_collection("c"),
        "list_aliases": store.get_aliases,
        "index": lambda: store.create_payload_index("c", "k", models.PayloadSchemaType.KEYWORD),
    }
    calls[on]()
    assert server.calls()[-2:] == [on, on]


def test_trying_again_has_an_end(server, store):
    server.plant("status", status=503, on="upsert", times=99)
    with pytest.raises(StoreUnavailable, match="planted") as failed:
        store.upsert("c", points([1]))
    assert upserts(server) == [1] * 4  # once, and three retries
    assert "upsert into 'c' (1 points)" in str(failed.value)
    server.plant("answer", answer="acknowledged", on="delete", times=99)
    with pytest.raises(StoreUnavailable, match="acknowledged"):
        store.delete("c", points([1]).ids)


def test_a_server_that_hangs_is_left_after_the_timeout(server, protocol):
    store = open_store(config(server, protocol, timeout_s=1, retries=0))
    server.plant("hang", seconds=3, on="count")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.count("c")
    assert time.monotonic() - began < 2.5
    store.close()


@pytest.mark.parametrize("retry_after", ["0.05", None], ids=["with a pause", "without"])
def test_a_server_that_always_asks_to_slow_down_is_left_in_the_end(server, store, retry_after):
    server.plant("status", status=429, retry_after=retry_after, on="upsert", times=99)
    with pytest.raises(StoreOverloaded, match="slow down") as failed:
        store.upsert("c", points([1, 2]))
    assert (failed.value.retry_after_s > 0) == bool(retry_after)
    # With a pause the batch can go through later; without one it may never, so it goes in halves.
    assert upserts(server) == ([2] * 4 if retry_after else [2, 2, 1, 1, 1, 1])


def test_pauses_grow_with_jitter_and_are_never_less_than_asked_for():
    def pauses(attempt, error):
        state = RetryCallState(None, None, (), {})
        state.attempt_number = attempt
        state.set_exception((type(error), error, None))
        return [server_module._pause(state) for _ in range(50)]

    down, asked = StoreUnavailable("x"), StoreOverloaded("x", retry_after_s=7.0)
    assert all(0.2 <= pause <= 0.7 for pause in pauses(1, down))
    assert all(9.9 <= pause <= 10 for pause in pauses(9, down))
    assert all(7 <= pause <= 7.5 for pause in pauses(1, asked))
    assert all(pause >= 9.9 for pause in pauses(9, asked))
    assert all(300 <= pause <= 300.5 for pause in pauses(1, StoreOverloaded("x", retry_after_s=1e6)))
    assert all(len(set(some)) > 40 for some in (pauses(1, down), pauses(1, asked)))


@pytest.mark.parametrize("form", ["integer", "decimal", "date"])
def test_the_pause_a_server_asks_for_is_kept(server, store, form):
    # A date has whole seconds, so up to one of its three is gone before it is read.
    date = email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3), usegmt=True
    )
    value, least = {"integer": ("1", 1.0), "decimal": ("0.4", 0.4), "date": (date, 1.0)}[form]
    server.plant("status", status=429, retry_after=value, on="count", times=1)
    began = time.monotonic()
    assert store.count("c").count == 0
    assert least <= time.monotonic() - began < 5


# --- batches that are too large


@pytest.mark.parametrize("status", [413, 429])
def test_a_batch_that_can_never_fit_is_sent_in_halves(server, store, status):
    message = "decoded message length too large" if status == 413 else "batch exceeds the limit"
    server.plant("status", status=status, message=message, on="upsert", above_points=3, times=99)
    store.upsert("c", points(list(range(12))))
    assert store.count("c").count == 12
    sizes = upserts(server)
    assert sizes.count(3) == 4
    assert sizes[0] == 12
    if status == 429:
        assert sizes[:3] == [12, 12, 6]  # a rate limit without a header may also pass


def test_halves_go_by_the_filter_too(server, store):
    store.upsert("c", points([1, 5], payload=lambda n: {"sequence": 9}))
    server.plant("status", status=413, message="payload too large", on="upsert", above_points=3, times=99)
    older = models.Filter(must=[models.FieldCondition(key="sequence", range=models.Range(lt=7))])
    store.upsert("c", points(list(range(8)), payload=lambda n: {"sequence": 7}), older)
    records, _ = store.scroll("c", limit=20)
    assert sorted(record.payload["sequence"] for record in records) == [7] * 6 + [9] * 2


def test_one_point_that_is_too_large_is_an_error_at_once(server, store):
    server.plant("status", status=413, message="payload too large", on="upsert", times=99)
    with pytest.raises(PointTooLarge, match="too large") as failed:
        store.upsert("c", points([1, 2]))
    assert upserts(server) == [2, 1]
    assert pickle.loads(pickle.dumps(failed.value)).point_id == points([1]).ids[0]


def test_requests_stay_under_the_limit(server, store, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_REQUEST_BYTES", 4000)
    store.upsert("c", points(list(range(16)), payload=lambda n: {"text": "x" * 1000}))
    assert store.count("c").count == 16
    assert max(upserts(server)) < 4
    with pytest.raises(PointTooLarge, match="4000 bytes"):
        store.upsert("c", points([20], payload=lambda n: {"text": "x" * 5000}))
    assert store.count("c").count == 16


# --- errors that stay


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 400, "message": "bad vector"}, StoreError),
        ({"status": 401}, StoreUnauthorized),
        ({"status": 403}, StoreUnauthorized),
        ({"status": 507, "message": "No space left on device: WAL"}, StoreFull),
        ({"status": 500, "message": "IO Error: No space left on device (os error 28)"}, StoreFull),
    ],
    ids=lambda value: str(value.get("status")) if isinstance(value, dict) else value.__name__,
)
def test_what_cannot_pass_is_said_at_once(server, store, fault, expected):
    server.plant("status", **fault, on="upsert", times=9)
    with pytest.raises(expected, match=fault.get("message", "planted").split(":")[0]) as failed:
        store.upsert("c", points([1]))
    assert type(failed.value) is expected
    assert upserts(server) == [1]


def test_a_wrong_key_is_refused_with_advice_and_never_shown(server, protocol, caplog):
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        store = open_store(config(server, protocol, api_key=SecretStr("wr0ng-" + KEY)))
        with pytest.raises(StoreUnauthorized, match="HEADWATER_STORE__API_KEY") as failed:
            store.get_collections()
        with pytest.raises(StoreUnauthorized) as nokey:
            open_store(config(server, protocol, api_key=SecretStr(""))).get_collections()
    shown = [
        *(
            repr(one) + str(one) + "".join(traceback.format_exception(one))
            for one in (failed.value, nokey.value)
        ),
        repr(store) + str(store),
        repr(config(server, protocol)),
        repr(pickle.dumps(failed.value)),
        caplog.text,
        *(str(one.message) for one in warned),
    ]
    assert not any(KEY in text for text in shown)
    assert not any("version" in str(one.message) for one in warned)
    store.close()


def test_a_newline_at_the_end_is_no_part_of_a_key(server, protocol):
    store = open_store(config(server, protocol, api_key=SecretStr(KEY + "\n")))
    store.get_collections()
    store.close()


def test_a_key_may_lie_in_a_file(server, protocol, tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    store = open_store(config(server, protocol, api_key=SecretStr(""), api_key_file=str(tmp_path / "key")))
    assert store.get_collections().collections is not None
    store.close()
    with pytest.raises(UsageError, match=r"store\.api_key_file"):
        open_store(config(server, protocol, api_key=SecretStr(""), api_key_file=str(tmp_path / "none")))


def test_nobody_there_is_said_with_what_to_do(protocol):
    url = "grpc://127.0.0.1:1" if protocol == "grpc" else "http://127.0.0.1:1"
    store = open_store(StoreConfig(url=url, prefer_grpc=False, retries=0, timeout_s=2))
    with pytest.raises(StoreUnavailable) as failed:
        store.get_collections()
    assert url in failed.value.got
    assert failed.value.need == "A running Qdrant at that address"
    assert "--store" in failed.value.do
    assert "store.grpc_port" in failed.value.do
    store.close()


def test_the_wrong_protocol_is_said_at_once(server, protocol):
    rest, over_grpc = (url.partition("//")[2] for url in (server.rest_url, server.grpc_url))
    wrong = (
        [f"grpc://{rest}", f"grpcs://{over_grpc}"]
        if protocol == "grpc"
        else [f"http://{over_grpc}", f"https://{rest}"]
    )
    for url in wrong:
        store = open_store(StoreConfig(url=url, prefer_grpc=False, retries=9, timeout_s=5))
        began = time.monotonic()
        with pytest.raises(StoreError, match="Check --store"):
            store.get_collections()
        assert time.monotonic() - began < 3
        store.close()


def test_waiting_for_a_server_is_told(server, store, caplog):
    server.plant("status", status=503, on="count", times=3)
    assert store.count("c").count == 0
    (told,) = caplog.messages
    for words in ("trying again", "planted", "attempts=2", "waited_s=", "again_in_s="):
        assert words in told


def test_something_else_that_answers_is_no_qdrant(server):
    store = open_store(config(server, "rest"))
    server.plant("garbage", on="list", times=9)
    with pytest.raises(StoreError, match="not Qdrant"):
        store.get_collections()
    server.plant("garbage", on="upsert", times=9)
    with pytest.raises(StoreError, match="not Qdrant"):
        store.upsert("c", points([1]))
    assert server.calls()[-1] == "upsert 1"
    store.close()
    crossed = open_store(StoreConfig(url=f"grpc://127.0.0.1:{server.rest_port}", retries=0, timeout_s=2))
    with pytest.raises(HeadwaterError):
        crossed.get_collections()
    crossed.close()


def test_a_collection_made_by_a_lost_answer_is_taken(store, monkeypatch):
    store.delete_collection("c")
    create, attempts = store._client.create_collection, []

    def loses_its_answer(*args, **kwargs):
        attempts.append(create(*args, **kwargs))
        raise httpx.ReadTimeout("lost")

    monkeypatch.setattr(store._client, "create_collection", loses_its_answer)
    assert store.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    assert attempts == [True]
    assert store.collection_exists("c")


def test_batches_are_sent_side_by_side_and_all_are_there_when_upsert_returns(server, store, protocol):
    small = open_store(config(server, protocol, batch_points=3))
    server.plant("hang", on="upsert", seconds=0.5, times=4)
    since = time.monotonic()
    small.upsert("c", points(list(range(12))))
    assert time.monotonic() - since < 1.6  # 2 one after the other
    assert small.count("c").count == 12
    small.close()


def test_an_error_in_one_batch_is_raised_when_the_others_are_through(server, store, protocol):
    small = open_store(config(server, protocol, batch_points=3))
    server.plant("status", status=400, message="planted", on="upsert", times=1)
    with pytest.raises(StoreError, match="planted"):
        small.upsert("c", points(list(range(12))))
    assert small.count("c").count == 9
    small.close()
