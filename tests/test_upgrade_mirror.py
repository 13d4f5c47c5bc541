"""The mirror: whatever happens to the source, and whenever it dies, its last pass leaves what the source is."""

import contextlib
import itertools
import threading

import histories
import mirrors
import numpy as np
import pytest
from histories import KEYS, Crashing, Row
from hypothesis import given, settings
from hypothesis import strategies as st
from mirrors import NEW, Words, contents, index, one_pass, until_equal, wanted
from qdrant_client import models

from pipeline.config import StoreConfig
from pipeline.errors import PointTooLarge, StoreUnavailable
from pipeline.schemas import point_id
from pipeline.stores import Suppressions, Tombstones, documents, open_store, read_documents, read_heads
from pipeline.upgrade.completeness import count_differing
from pipeline.upgrade.limits import Limits

A, B, C = KEYS[:3]


@pytest.fixture(params=["memory", "edge", "grpc"])
def store(request, tmp_path):
    match request.param:
        case "memory":
            opened = open_store(StoreConfig(url="memory:"))
        case "edge":
            opened = open_store(StoreConfig(url=f"edge:{tmp_path / 'store'}"))
        case _:
            opened = open_store(StoreConfig(url=request.getfixturevalue("qdrant").grpc_url))
    for left in opened.get_collections().collections:
        opened.delete_collection(left.name)
    both(opened)
    yield opened
    opened.close()


def both(store):
    histories.new_collection(store)
    mirrors.new_target(store)
    for name, (key, kind) in itertools.product(
        "cd", (("document_id", "keyword"), ("namespace", "keyword"), ("chunk_index", "integer"))
    ):
        store.create_payload_index(name, f"headwater.{key}", models.PayloadSchemaType(kind))


def in_memory():
    store = open_store(StoreConfig(url="memory:"))
    both(store)
    return store


def equal(store):
    assert_same(contents(store, "d"), wanted(contents(store, "c")))


def assert_same(left, right):
    assert {id: payload for id, (payload, _) in left.items()} == {
        id: payload for id, (payload, _) in right.items()
    }
    for id, (_, vector) in left.items():
        np.testing.assert_allclose(vector, right[id][1], rtol=1e-5)


def test_it_copies_patches_and_deletes_and_then_finds_nothing_to_do(store):
    index(store, Row(A, ("river", "stone"), 1, 3), Row(B, ("light",), 1, 3), Row(C, ("river",), 1, 3))
    first = one_pass(store)
    assert (first.documents, first.copied, first.chunks, first.tokens, first.equal) == (3, 3, 4, 4, True)
    equal(store)
    maker = Words()
    assert one_pass(store, maker).changed == 0
    assert maker.words == []
    index(
        store, Row(A, ("river", "stone"), 2, 4), Row(B, (), 1, 4), Row(C, ("light", "river", "river"), 1, 4)
    )
    second = one_pass(store, maker)
    assert (second.copied, second.patched, second.deleted, second.tombstones) == (1, 1, 1, 1)
    assert sorted(maker.words) == ["light", "river", "river"]  # what was patched is not embedded again
    equal(store)
    assert Tombstones(store, "d").find([A, B]) == {B: 4}
    index(store, Row(B, ("stone",), 1, 5), Row(C, ("light",), 1, 5))
    assert one_pass(store).tombstones == 1
    equal(store)
    assert Tombstones(store, "d").find([B]) == {}


def test_a_flag_on_a_head_goes_along_and_goes_again(store):
    index(store, Row(A, ("river", "stone"), 1, 3))
    one_pass(store)
    index(store, Row(A, ("light",), 2, 4, "unusable_vector"))
    assert one_pass(store).patched == 1
    equal(store)
    index(store, Row(A, ("river", "stone"), 1, 3))
    assert one_pass(store).patched == 1
    equal(store)


def test_what_is_being_changed_is_left_and_what_the_target_has_begun_is_done_again(store):
    index(store, Row(A, ("river", "stone"), 1), Row(B, ("light", "river"), 1), sequenced=False)
    one_pass(store)
    store.set_payload("c", {"writing": True}, [point_id(*A, 0)], key="headwater")
    store.set_payload("d", {"writing": True}, [point_id(*B, 0)], key="headwater")
    done = one_pass(store)
    assert (done.left, done.copied, done.equal) == (1, 1, False)
    assert not read_heads(store, "d", [B])[B].writing


@pytest.mark.parametrize(
    ("how", "reason"), [({"long": ("stone",)}, "too_long"), ({"blank": ("stone",)}, "unusable_vector")]
)
def test_a_document_that_cannot_be_taken_is_named_and_leaves_the_target_incomplete(store, how, reason):
    index(store, Row(A, ("river", "stone"), 1), Row(B, ("light",), 1), sequenced=False)
    done = one_pass(store, Words(**how))
    assert [(one.namespace, one.document_id, one.reason) for one in done.rejected] == [(*A, reason)]
    assert (done.copied, done.equal) == (1, False)
    assert set(contents(store, "d")) == {point_id(*B, 0)}
    assert one_pass(store).equal


class Narrow(Crashing):
    """A store that a stone is too large for."""

    def __getattr__(self, name):
        call = super().__getattr__(name)

        def upsert(collection, points, *more):
            for id, payload in zip(points.ids, points.payloads, strict=True):
                if payload["text"] == "stone":
                    raise PointTooLarge("too much", "Less", "Cut it", id)
            return call(collection, points, *more)

        return upsert if name == "upsert" else call


def test_a_document_too_large_for_the_store_leaves_the_others():
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1), Row(B, ("light",), 1), sequenced=False)

    done = one_pass(Narrow(store, None, True))
    assert [(one.document_id, one.reason) for one in done.rejected] == [("a", "too_large")]
    assert set(contents(store, "d")) == {point_id(*B, 0)}


def test_what_was_forgotten_while_it_was_copied_is_gone_in_the_end():
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1), Row(B, ("light",), 1), sequenced=False)

    class Forgets(Words):
        def make(self, given):
            Suppressions(store, "c").add(A)
            store.delete("c", [point_id(*A, n) for n in range(2)])
            return super().make(given)

    one_pass(store, Forgets())
    assert set(contents(store, "d")) == {point_id(*B, 0)}


class DiesAfterIt:
    """A store whose process dies after its first write into the target."""

    def __init__(self, store, kind):
        self._store, self._kind = store, kind

    def __getattr__(self, name):
        call = getattr(self._store, name)

        def write(collection, *more, **named):
            call(collection, *more, **named)
            if collection.startswith("d"):
                raise StoreUnavailable("dead")

        return write if name == self._kind else call


@pytest.mark.parametrize("row", [Row(A, ("river", "stone"), 1, 3), Row(A, (), 1, 4)])
def test_what_was_forgotten_is_not_written_also_if_it_dies_right_after(row):
    store = in_memory()
    index(store, Row(A, ("light",), 1, 2), Row(B, ("light",), 1, 2))
    index(store, row)
    Suppressions(store, "c").add(A)  # and who forgets goes on to remove it from both, but has not yet
    with pytest.raises(StoreUnavailable):
        one_pass(DiesAfterIt(store, "upsert"))
    assert point_id(*A, 0) not in contents(store, "d")
    assert Tombstones(store, "d").find([A]) == {}


@pytest.mark.parametrize(
    "fresh", [(), (Row(A, ("light", "stone"), 1, 4),), (Row(A, ("river", "stone"), 2, 4),)]
)
def test_what_was_forgotten_while_the_target_holds_it_goes_and_stops_nothing(store, fresh):
    index(store, Row(A, ("river", "stone"), 1, 3), Row(B, ("light",), 1, 3))
    one_pass(store)
    index(store, *fresh, Row(C, ("river",), 1, 3))

    class Forgets(Words):
        def make(self, given):
            Suppressions(store, "c").add(A)
            for held in "cd":
                store.delete(held, [point_id(*A, n) for n in range(2)])
            return super().make(given)

    one_pass(store, Forgets())
    assert set(contents(store, "d")) == {point_id(*key, 0) for key in (B, C)}
    assert one_pass(store).changed == 0


def test_what_is_forgotten_while_the_target_is_cleared_stops_nothing(store):
    index(store, Row(A, ("river", "stone"), 1, 3), Row(B, ("light", "stone"), 1, 3))
    one_pass(store)
    index(store, Row(A, (), 1, 4), Row(B, (), 1, 4))

    class Forgets(Crashing):
        """Between the look for what is absent and its removal another one forgets."""

        def __getattr__(self, name):
            call = super().__getattr__(name)

            def retrieve(collection, *more, **named):
                found = call(collection, *more, **named)
                if collection == "c":
                    Suppressions(store, "c").add(A)
                    store.delete("d", [point_id(*A, n) for n in range(2)])
                return found

            return retrieve if name == "retrieve" else call

    one_pass(Forgets(store, None, True))
    assert contents(store, "d") == {}


def test_with_a_budget_it_goes_on_where_it_stopped_and_never_spends_more():
    store = in_memory()
    index(store, *(Row(("", str(n)), ("river", "stone"), 1) for n in range(6)), sequenced=False)
    left = []
    while not left or left[-1]:
        limits = Limits(max_tokens=5)
        done = one_pass(store, limits=limits)
        assert done.tokens == limits.spent <= 5
        left.append(done.left)
    assert left == [4, 2, 0]
    equal(store)
    index(store, Row(A, ("river",) * 9, 1), sequenced=False)
    assert (
        one_pass(store, limits=Limits(max_tokens=5)).copied == 1
    )  # one that is longer stops nothing for ever


def test_a_stop_leaves_whole_documents():
    store = in_memory()
    index(store, *(Row(("", str(n)), ("river", "stone"), 1) for n in range(9)), sequenced=False)
    stop = threading.Event()

    class Stops(Words):
        def make(self, given):
            stop.set()
            return super().make(given)

    done = mirrors.mirror(store, mirrors.SIDES, Stops(), Limits(), stop)
    assert done.stopped
    assert not done.equal
    assert 0 < done.copied < 9
    assert done.copied + done.left == 9
    assert contents(store, "d").items() <= wanted(contents(store, "c")).items() or done.copied
    heads = read_heads(store, "d", [("", str(n)) for n in range(9)])
    assert len(heads) == done.copied
    assert store.count("d").count == 2 * len(heads)
    assert not any(head.writing for head in heads.values())
    until_equal(store)
    equal(store)


def test_once_it_is_to_stop_nothing_more_is_embedded_of_what_was_read():
    store = in_memory()
    index(store, *(Row(("", str(n)), ("river", "stone"), 1) for n in range(9)), sequenced=False)
    stop, waits, read = threading.Event(), threading.Event(), []

    class Stops(Words):
        def read(self, chunk):
            read.append(chunk)
            if len(read) > 8:  # the second window waits, while the first is embedded
                waits.set()
            return super().read(chunk)

        def make(self, given):
            assert waits.wait(10)
            stop.set()
            return super().make(given)

    maker = Stops()
    done = mirrors.mirror(store, mirrors.SIDES, maker, Limits(), stop)
    assert len(maker.words) == 4
    assert (done.copied, done.left, done.stopped) == (2, 7, True)
    until_equal(store)
    equal(store)


def test_it_tells_what_is_in_step_not_what_is_read():
    store = in_memory()
    index(store, *(Row(("", str(n)), ("river", "stone"), 1) for n in range(9)), sequenced=False)
    told, embedded = [], []

    class Counts(Words):
        def make(self, given):
            embedded.append(len(given) // 2)
            return super().make(given)

    def observe(progress):
        assert progress.documents <= sum(embedded)
        told.append((progress.documents, progress.total))

    mirrors.mirror(store, mirrors.SIDES, Counts(), Limits(), threading.Event(), observe)
    assert (told[0], told[-1]) == ((0, 9), (9, 9))
    assert len(told) > 4
    told.clear()
    embedded.append(9)
    mirrors.mirror(store, mirrors.SIDES, Counts(), Limits(), threading.Event(), observe)
    assert told == [(9, 9)]  # the same already


def test_an_error_of_the_store_is_raised_from_whichever_thread():
    for broken in ("retrieve", "upsert", "scroll"):
        store = in_memory()
        index(store, Row(A, ("river",), 1), sequenced=False)

        class Broken:
            def __getattr__(self, name, store=store, broken=broken):
                if name == broken:
                    raise StoreUnavailable("away")
                return getattr(store, name)

        with pytest.raises(StoreUnavailable):
            one_pass(Broken())


def test_in_place_only_vectors_of_other_versions_are_replaced_and_nothing_is_marked():
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1, 3), Row(B, ("light",), 1, 3))
    one_pass(store)
    before = contents(store, "d")
    for id in (point_id(*A, 0), point_id(*A, 1)):
        store.set_payload("d", {"encoder_version": "old", "bridge": "b"}, [id], key="headwater")
    marks = []

    class Watching(Crashing):
        def __getattr__(self, name):
            if name == "set_payload":
                marks.append(name)
            return super().__getattr__(name)

    sides = mirrors.Sides("c", "d", "d", {"": 3}, frozenset({NEW}))
    done = one_pass(Watching(store, None, True), sides=sides)
    assert (done.copied, done.deleted, done.left) == (1, 0, 0)
    assert_same(contents(store, "d"), before)
    assert marks == []


def test_in_place_a_document_too_large_for_the_store_stays_as_it_was():
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1), Row(B, ("light",), 1), sequenced=False)
    one_pass(store)
    for id in contents(store, "d"):
        store.set_payload("d", {"encoder_version": "old"}, [id], key="headwater")
    before = contents(store, "d")
    done = one_pass(Narrow(store, None, True), sides=mirrors.Sides("c", "d", "d", {"": 3}, frozenset({NEW})))
    assert [(one.document_id, one.reason) for one in done.rejected] == [("a", "too_large")]
    assert done.copied == 1
    after = contents(store, "d")
    assert {id for id in before if after[id] == before[id]} == {point_id(*A, 0), point_id(*A, 1)}


def test_a_document_that_the_target_has_cut_its_own_way_stays_so_until_it_changes():
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1, 3))
    one_pass(store)
    own = {"start": 0, "end": 11, "chunk_count": 1}
    store.set_payload("d", own, [point_id(*A, 0)], key="headwater")
    store.delete("d", [point_id(*A, 1)])
    assert one_pass(store).changed == 0
    index(store, Row(A, ("river", "stone"), 2, 4))
    done = one_pass(store)  # metadata would be laid over other chunks
    assert (done.copied, done.patched, done.left) == (1, 0, 0)
    equal(store)


@pytest.mark.parametrize("at", range(4))
def test_no_document_is_read_half_of_one_version_and_half_of_the_next(at, monkeypatch):
    monkeypatch.setattr(documents, "_PAGE", 1)
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1), sequenced=False)
    change = Meanwhile(store, at, lambda: index(store, Row(A, ("light", "river"), 1), sequenced=False))
    found = read_documents(change, "c", read_heads(store, "c", [A]))
    texts = [[chunk.payload["text"] for chunk in chunks] for whole in found for chunks in whole.values()]
    assert texts == ([["river", "stone"]] if at == 3 else [])


def test_differences_are_counted_on_both_sides():
    store = in_memory()
    index(store, Row(A, ("river", "stone"), 1, 3), Row(B, ("light",), 1, 3))
    one_pass(store)
    assert count_differing(store, "c", "d") == 0
    for name in "cd":
        store.set_payload(name, {"writing": True}, [point_id(*A, 0)], key="headwater")
    assert count_differing(store, "c", "d") == 1  # whole on neither side
    index(store, Row(A, ("river",), 1, 4), Row(B, (), 1, 4), Row(C, ("light",), 1, 4))
    assert count_differing(store, "c", "d") == 3


class Meanwhile:
    """A store in which others do something at the n-th request of the mirror."""

    def __init__(self, store, at, what):
        self._store, self._at, self._what, self._calls = store, at, what, itertools.count()

    def __getattr__(self, name):
        call = getattr(self._store, name)
        if name in ("retrieve", "scroll", "upsert") and next(self._calls) == self._at:
            self._what()
        return call


step = st.tuples(histories.REJECTING, st.none() | st.integers(0, 12), st.booleans(), st.integers(0, 14))


@settings(max_examples=25, deadline=None)
@given(st.lists(step, min_size=1, max_size=4), st.integers(1, 3))
def test_whatever_happens_meanwhile_and_whenever_it_dies_it_ends_equal(steps, page):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_PAGE", page)
        go_through(steps)


def go_through(steps):
    store = in_memory()
    oracle = histories.Oracle(sequenced=True)
    for history, crash, whole, at in steps:
        for run in history[:-1]:
            live(store, oracle, run)
        meanwhile = Meanwhile(
            Crashing(store, crash, whole), at, lambda run=history[-1]: live(store, oracle, run)
        )
        with contextlib.suppress(StoreUnavailable):
            one_pass(meanwhile)
        live(store, oracle, history[-1])  # if it has not happened; else nothing changes
    until_equal(store)
    assert_same(contents(store, "d"), wanted(oracle.points()))
    assert Tombstones(store, "d").find(KEYS) == oracle.deleted


def live(store, oracle, run):
    """A run on the source, also one that crashes and is run again."""
    oracle.apply(run)
    try:
        histories.index(Crashing(store, run.crash, run.whole), run, sequenced=True)
    except StoreUnavailable:
        histories.index(Crashing(store, None, True), run, sequenced=True)
