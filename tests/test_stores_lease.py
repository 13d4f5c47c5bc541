import threading
import time
from dataclasses import replace

import pytest

from pipeline.config import StoreConfig
from pipeline.errors import CollectionHeld, LeaseLost, StoreUnavailable
from pipeline.owner import Owner
from pipeline.stores import Lease, hold, open_store
from pipeline.stores import lease as leases

FAR = replace(Owner.here(), machine="another machine", host="far", pid=4)


@pytest.fixture(params=["memory", "edge", "grpc", "rest"])
def store(request, tmp_path):
    if request.param == "memory":
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
    with hold(store, "docs", "nightly", 1.0, lambda: None):
        with pytest.raises(CollectionHeld, match="nightly"):
            Lease.take(store, "docs", "", 1.0)
        assert Lease.take(store, "others", "", 1.0).epoch == 1
    assert Lease.take(store, "docs", "", 1.0).epoch == 2


def test_of_many_that_reach_for_it_at_once_one_gets_it(store):
    got, refused = [], []
    ready = threading.Barrier(6)

    def reach():
        ready.wait()
        try:
            with hold(store, "docs", "", 1.5, lambda: None) as lease:
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
        Lease.take(store, "docs", "", 3600.0)
    since = time.monotonic()
    assert Lease.take(store, "docs", "", 1.0).epoch == 2
    assert time.monotonic() - since < 5


def test_a_holder_elsewhere_is_replaced_when_it_gave_no_sign_of_life_and_then_learns_of_it(store, elsewhere):
    silent = Lease.take(store, "docs", "", 0.5)
    since = time.monotonic()
    following = Lease.take(store, "docs", "", 60.0)
    assert time.monotonic() - since >= 0.5
    assert following.epoch == 2
    with pytest.raises(LeaseLost, match="far"):
        silent.beat()
    silent.release()  # takes nothing from the new holder
    following.beat()


def test_who_loses_the_lease_is_told_once(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    told = []
    with hold(store, "docs", "", 0.5, lambda: told.append(1)) as lease:
        found = leases._read(store, "docs")
        thief = replace(found, epoch=found.epoch + 1, beat=0, token="thief")
        while not leases._swap(store, leases._read(store, "docs"), thief):
            pass
        time.sleep(1)
        with pytest.raises(LeaseLost):
            lease.check()
    assert told == [1]
    assert leases._read(store, "docs").token == "thief"


def test_a_store_that_does_not_answer_for_a_while_is_no_loss(elsewhere):
    store = open_store(StoreConfig(url="memory:"))
    upsert = store.upsert

    def unavailable(*_, **__):
        raise StoreUnavailable("not now")

    with hold(store, "docs", "", 0.5, lambda: None) as lease:
        store.upsert = unavailable
        time.sleep(0.7)
        store.upsert = upsert
        before = leases._read(store, "docs").beat
        time.sleep(0.5)
        assert leases._read(store, "docs").beat > before
        lease.check()


def test_without_a_lease_nobody_is_asked():
    with hold(None, "docs", "", 0, lambda: None) as lease:
        assert lease is None
