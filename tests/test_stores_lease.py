import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import models
from real_qdrant import open_real
from waiting import wait_for

from pipeline.config import StoreConfig
from pipeline.errors import CollectionHeld, LeaseLost, StoreError, StoreUnavailable
from pipeline.owner import Owner
from pipeline.stores import Lease, Points, guarded, hold_lease, open_store
from pipeline.stores import lease as leases

FAR = replace(Owner.here(), machine="another machine", host="far", pid=4)


@pytest.fixture(params=["memory", "edge", "grpc", "rest", "real"])
def store(request, tmp_path):
    if request.param == "real":
        store = open_real()
    elif request.param == "memory":
        store = open_store(StoreConfig(url="memory:"))
    elif request.param == "edge":
        store = open_store(StoreConfig(url=f"edge:{tmp_path}/index"))
    else:
        server = request.getfixturevalue("qdrant")
        url = server.grpc_url if request.param == "grpc" else server.rest_url
        store = open_store(StoreConfig(url=url, prefer_grpc=request.param == "grpc"))
        store.delete_collection(leases.LEASES)
    yield store
    store.close()


@pytest.fixture
def elsewhere(monkeypatch):
    """Leases taken meanwhile belong to a process of another machine."""
    monkeypatch.setattr(Owner, "here", classmethod(lambda cls: FAR))


def test_one_run_at_a_time_and_the_next_when_it_has_ended(store):
    with hold_lease(store, "docs", "nightly", 1.0, threading.Event()):
        with pytest.raises(CollectionHeld, match="nightly"):
            Lease.take(store, "docs", "", 1.0, threading.Event())
        assert Lease.take(store, "others", "", 1.0, threading.Event()).epoch == 1
    assert Lease.take(store, "docs", "", 1.0, threading.Event()).epoch == 2


def test_of_many_that_reach_for_it_at_once_one_gets_it(store):
    got, refused = [], []
    ready = threading.Barrier(6)

    def reach():
        ready.wait()
        try:
            with hold_lease(store, "docs", "", 1.5, threading.Event()) as lease:
                got.append(lease.epoch)
                time.sleep(3)
        except CollectionHeld:
            refused.append(1)

    threads = [threading.Thread(target=reach) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [1]
    assert len(refused) == 5


def test_a_holder_whose_process_is_gone_is_replaced_at_once(store, monkeypatch):
    dead = replace(Owner.here(), pid=2**22 - 1)
    with monkeypatch.context() as patch:
        patch.setattr(Owner, "here", classmethod(lambda cls: dead))
        Lease.take(store, "docs", "", 3600.0, threading.Event())
    since = time.monotonic()
    assert Lease.take(store, "docs", "", 1.0, threading.Event()).epoch == 2
    assert time.monotonic() - since < 5


def test_a_holder_elsewhere_is_replaced_when_it_gave_no_sign_of_life_and_then_learns_of_it(store, elsewhere):
    silent = Lease.take(store, "docs", "", 0.5, threading.Event())
    since = time.monotonic()
    following = Lease.take(store, "docs", "", 60.0, threading.Event())
    assert time.monotonic() - since >= 0.5
    assert following.epoch == 2
    with pytest.raises(LeaseLost, match="far"):
        silent.beat()
    silent.release()  # takes nothing from the new holder
    following.beat()


def test_who_loses_the_lease_is_told(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    stop = threading.Event()
    with hold_lease(store, "docs", "", 0.5, stop) as lease:
        found = leases._read(store, "docs")
        thief = replace(found, epoch=found.epoch + 1, beat=0, token="thief")
        while not leases._swap(store, leases._read(store, "docs"), thief):
            pass
        wait_for(stop.is_set)
        with pytest.raises(LeaseLost):
            lease.check()
    assert stop.is_set()
    assert leases._read(store, "docs").token == "thief"


def test_a_store_that_does_not_answer_for_a_while_is_no_loss(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    upsert = store.upsert

    def unavailable(*_, **__):
        raise StoreUnavailable("not now")

    with hold_lease(store, "docs", "", 0.5, threading.Event()) as lease:
        store.upsert = unavailable
        time.sleep(0.7)
        store.upsert = upsert
        before = leases._read(store, "docs").beat
        wait_for(lambda: leases._read(store, "docs").beat > before)
        lease.check()


def test_without_a_lease_nobody_is_asked():
    with hold_lease(None, "docs", "", 0, threading.Event()) as lease:
        assert lease is None


def test_leases_that_somebody_deleted_are_made_again_and_the_run_keeps_its_own(store, elsewhere):
    stop = threading.Event()
    with hold_lease(store, "docs", "nightly", 0.5, stop) as lease:
        store.delete_collection(leases.LEASES)
        wait_for(lambda: store.collection_exists(leases.LEASES))
        assert wait_for(lambda: leases._read(store, "docs")).run == "nightly"
        lease.check()
    assert not stop.is_set()


def test_after_leases_were_deleted_two_runs_do_not_take_each_others_states_for_their_own(store, elsewhere):
    first = Lease.take(store, "docs", "", 60.0, threading.Event())
    store.delete_collection(leases.LEASES)
    second = Lease.take(store, "docs", "", 60.0, threading.Event())
    assert second.epoch == first.epoch
    with pytest.raises(LeaseLost):
        first.beat()
    second.beat()


def test_a_stop_ends_the_wait_for_a_silent_holder(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    Lease.take(store, "docs", "", 3600.0, threading.Event())
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    since = time.monotonic()
    with pytest.raises(CollectionHeld):
        Lease.take(store, "docs", "", 1.0, stop)
    assert time.monotonic() - since < 3


def test_that_the_holder_of_a_long_lease_lives_is_soon_seen(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    since = time.monotonic()
    with hold_lease(store, "docs", "", 3600.0, threading.Event()), pytest.raises(CollectionHeld):
        Lease.take(store, "docs", "", 1.0, threading.Event())
    assert time.monotonic() - since < 10


@pytest.mark.parametrize("damage", [{"stamp": "1.0"}, {"more": 1}, {"epoch": 7}])
def test_a_lease_of_another_form_is_an_error_that_says_what_to_do(damage):
    store = open_store(StoreConfig(url="memory:"))
    Lease.take(store, "docs", "", 1.0, threading.Event())
    damaged = {**leases._read(store, "docs").payload(), **damage}
    store.upsert(leases.LEASES, Points([leases._point("docs")], {"": np.ones((1, 1), np.float32)}, [damaged]))
    with pytest.raises(StoreError, match="Delete collection"):
        Lease.take(store, "docs", "", 1.0, threading.Event())


def test_a_writer_that_stalled_asks_before_it_writes_again(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    mine = Lease.take(store, "docs", "", 0.6, threading.Event())
    store.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    writer = guarded(store, "docs", mine.token, 0.6)
    point = Points([str(uuid.uuid4())], {"": np.ones((1, 1), np.float32)}, [{}])
    writer.upsert("c", point)
    time.sleep(0.3)
    writer.upsert("c", point)  # asked, and still ours
    Lease.take(store, "docs", "", 0.6, threading.Event())
    with pytest.raises(LeaseLost, match="far"):
        writer.delete("c", point.ids)
    assert writer.count("c").count == 1
    assert guarded(store, "docs", "", 0) is store


@pytest.mark.parametrize("over", ["grpc", "rest"])
def test_a_writer_that_tries_again_after_it_lost_the_lease_writes_nothing(over, qdrant, elsewhere):
    """As after it was frozen within a request: that timed out, and the store tries again."""
    url = qdrant.grpc_url if over == "grpc" else qdrant.rest_url
    store = open_store(StoreConfig(url=url, prefer_grpc=False))
    name = f"late-{over}"
    mine = Lease.take(store, name, "", 0.6, threading.Event())
    store.create_collection(name, models.VectorParams(size=1, distance=models.Distance.DOT))
    point = Points([str(uuid.uuid4())], {"": np.ones((1, 1), np.float32)}, [{"version": 1}])
    store.upsert(name, point)
    writer = guarded(store, name, mine.token, 0.6)
    qdrant.plant("status", status=503, on="set_payload", times=1000)
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(writer.set_payload, name, {"version": 0}, point.ids)
        Lease.take(store, name, "", 0.6, threading.Event())
        qdrant.plant()
        with pytest.raises(LeaseLost, match="far"):
            late.result()
    assert store.retrieve(name, point.ids)[0].payload == {"version": 1}
    store.close()
