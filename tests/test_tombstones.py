"""What must stay gone, and what must stay although a newer version was rejected: the cases one by one."""

import histories
import pytest
from histories import KEYS, Crashing, Row, Run
from qdrant_client import models

from pipeline.config import StoreConfig
from pipeline.errors import StoreUnavailable
from pipeline.lane.windows import WINDOW_ROWS
from pipeline.schemas import Counts, point_id
from pipeline.stores import DocumentWriter, Tombstones, open_store, read_heads

A, B = KEYS[0], KEYS[1]


@pytest.fixture(params=["memory", "local", "edge", "grpc", "rest"])
def store(request, tmp_path):
    match request.param:
        case "memory":
            opened = open_store(StoreConfig(url="memory:"))
        case "edge" | "local" as kind:
            opened = open_store(StoreConfig(url=f"{kind}:{tmp_path / 'store'}"))
        case kind:
            server = request.getfixturevalue("qdrant")
            url = server.grpc_url if kind == "grpc" else server.rest_url
            opened = open_store(StoreConfig(url=url, prefer_grpc=kind == "grpc"))
    for left in opened.get_collections().collections:
        opened.delete_collection(left.name)
    histories.new_collection(opened)
    for key, kind in (("document_id", "keyword"), ("namespace", "keyword"), ("chunk_index", "integer")):
        opened.create_payload_index("c", f"headwater.{key}", models.PayloadSchemaType(kind))
    yield opened
    opened.close()


def index(store, *rows, sequenced=True) -> Counts:
    return histories.index(Crashing(store, None, True), Run(rows, 9, 9, None, True), sequenced)


def flag(store, key=A) -> str:
    return read_heads(store, "c", [key])[key].rejected


def test_a_deletion_is_not_undone_by_an_older_version_and_is_by_a_newer_one(store):
    index(store, Row(A, ("river", "stone"), 1, 3))
    assert index(store, Row(A, (), 1, 5), Row(B, (), 1, 5)).deleted == 2  # one of them was never here
    assert not store.collection_exists("c__deleted__deleted")
    for sequence in (3, 4):
        assert index(store, Row(A, ("light",), 1, sequence), Row(B, ("light",), 1, sequence)).stale == 2
    assert index(store, Row(A, (), 1, 4)).stale == 1
    assert histories.contents(store) == {}
    assert histories.tombstones(store) == {A: 5, B: 5}
    assert index(store, Row(A, ("light",), 1, 5), Row(B, ("light",), 1, 6)).indexed == 2
    assert histories.tombstones(store) == {}
    assert store.count("c").count == 2


def test_a_source_without_sequences_leaves_no_tombstones_and_heeds_none(store):
    index(store, Row(A, ("river",), 1), sequenced=False)
    index(store, Row(A, (), 1), sequenced=False)
    assert not store.collection_exists(Tombstones(store, "c").name)
    index(store, Row(A, (), 1, 7))
    assert index(store, Row(A, ("river",), 1), sequenced=False).indexed == 1


def test_what_a_late_writer_brings_back_goes_with_the_next_row_about_it(store):
    index(store, Row(A, ("river", "stone"), 1, 3))
    Tombstones(store, "c").set({A: 5})
    counts = index(store, Row(A, ("light",), 1, 4))
    assert (counts.stale, counts.points_removed) == (1, 2)
    assert histories.contents(store) == {}
    assert histories.tombstones(store) == {A: 5}


@pytest.mark.parametrize("fate", histories.FATES)
def test_a_flag_goes_with_the_next_good_version_even_if_that_is_what_is_stored(store, fate):
    good = Row(A, ("river", "stone"), 1, 3)
    index(store, good)
    before = histories.contents(store)
    assert index(store, Row(A, ("light",), 2, 4, fate)).rejected == 1
    assert flag(store) == fate
    after = histories.contents(store)
    assert after.keys() == before.keys()
    assert {id: vector for id, (_, vector) in after.items()} == {id: v for id, (_, v) in before.items()}
    assert index(store, good).patched == 1
    assert histories.contents(store) == before
    assert index(store, good).unchanged == 1


def test_no_flag_for_a_rejected_version_that_is_older_and_none_written_twice(store):
    index(store, Row(A, ("river",), 1, 3))
    assert index(store, Row(A, (), 1, 2, "empty_text")).rejected == 1
    assert flag(store) == ""
    index(store, Row(A, (), 1, 4, "empty_text"))
    watched = Crashing(store, None, True)
    histories.index(watched, Run((Row(A, (), 1, 4, "empty_text"),), 9, 9, None, True), True)
    assert watched.changes == 0


def test_what_no_head_vouches_for_goes_when_the_next_version_is_rejected(store):
    index(store, Row(A, ("river", "stone"), 1, 3))
    store.set_payload("c", {"writing": True}, [point_id(*A, 0)], key="headwater")
    assert index(store, Row(A, (), 1, 4, "empty_text")).points_removed == 2
    assert histories.contents(store) == {}


def test_metadata_too_large_for_the_store_leave_what_was_there(store):
    index(store, Row(A, ("river", "stone", "light"), 1, 3), Row(B, ("river",), 1, 3))
    before = histories.contents(store)

    class Narrow(Crashing):
        def __getattr__(self, name):
            call = super().__getattr__(name)
            if name != "overwrite_payloads":
                return call

            def overwrite(collection, ids, payloads):
                for row, payload in enumerate(payloads):
                    if payload["metadata"] == {"year": 9} and payload["headwater"]["chunk_index"] != 1:
                        raise histories.PointTooLarge("too much", "Less", "Cut it", ids[row])
                    call(collection, [ids[row]], [payload])

            return overwrite

    rows = Row(A, ("river", "stone", "light"), 9, 4), Row(B, ("river",), 2, 4)
    counts = histories.index(Narrow(store, None, True), Run(rows, 9, 9, None, True), True)
    assert (counts.patched, counts.rejected) == (1, 1)
    assert flag(store) == "too_large"
    assert index(store, Row(A, ("river", "stone", "light"), 1, 3)).patched == 1
    after = histories.contents(store)
    ids = [point_id(*A, n) for n in range(3)]
    assert [after[id] for id in ids] == [before[id] for id in ids]


@pytest.mark.parametrize("store", ["grpc", "rest"], indirect=True)
def test_a_server_s_limit_is_known_before_anything_is_overwritten(store, monkeypatch):
    monkeypatch.setattr("pipeline.stores.server.MAX_REQUEST_BYTES", 2000)
    rows = Row(A, ("river", "stone"), 1, 3), Row(B, ("river",), 1, 3)
    histories.index(store, Run(rows, 9, 1, None, True), True)
    before = histories.contents(store)
    large = Row(A, ("light", "stone" * 500), 1, 4), Row(B, ("light",), 1, 4)
    counts = histories.index(store, Run(large, 9, 1, None, True), True)
    assert (counts.indexed, counts.rejected, counts.points_removed) == (1, 1, 0)
    assert flag(store) == "too_large"
    histories.index(store, Run(rows[:1], 9, 1, None, True), True)
    ids = [point_id(*A, n) for n in range(2)]
    assert [histories.contents(store)[id] for id in ids] == [before[id] for id in ids]


@pytest.mark.parametrize("whole", [True, False])
def test_at_every_moment_what_is_gone_has_a_tombstone(whole):
    crash, crashed = 0, True
    while crashed:
        store = open_store(StoreConfig(url="memory:"))
        histories.new_collection(store)
        index(store, Row(A, ("river", "stone", "light"), 1, 3))
        before = set(histories.contents(store))
        try:
            gone = Run((Row(A, (), 1, 5),), 9, 9, None, True)
            histories.index(Crashing(store, crash, whole), gone, sequenced=True)
            crashed = False
        except StoreUnavailable:
            crash += 1
        assert set(histories.contents(store)) == before or histories.tombstones(store) == {A: 5}
        assert index(store, Row(A, ("light",), 1, 4)).stale == bool(histories.tombstones(store))
        assert bool(histories.contents(store)) != bool(histories.tombstones(store))
    assert crash > 3


def test_many_deletions_cost_one_request_a_batch():
    store = open_store(StoreConfig(url="memory:"))
    histories.new_collection(store)
    keys = [("", str(n)) for n in range(2 * WINDOW_ROWS // 16)]
    Tombstones(store, "c").set(dict.fromkeys(keys, 1))
    asked = []

    class Counting:
        def __getattr__(self, name):
            asked.append(name)
            return getattr(store, name)

    known = Tombstones(Counting(), "c")
    assert known.find(keys) == dict.fromkeys(keys, 1)
    assert known.find(keys) == dict.fromkeys(keys, 1)
    assert asked == ["collection_exists", "retrieve", "retrieve"]
    assert DocumentWriter(store, "c").delete(keys, {}) == 0
