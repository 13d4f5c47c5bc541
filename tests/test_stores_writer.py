"""The write protocol: crashes at any call, and the store still becomes what the last source says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models

from pipeline.errors import BrokenInvariant, StoreUnavailable
from pipeline.schemas import point_id
from pipeline.stores import DocumentWriter, Points, Written
from pipeline.stores.local import LocalStore

KEYS = [("", "a"), ("", "b"), ("t", "a"), ("t", "c"), ("", 'x",1')]


def chunks(key, count, version):
    namespace, document_id = key
    for index in range(count):
        ours = {
            "namespace": namespace,
            "document_id": document_id,
            "chunk_index": index,
            "chunk_count": count,
        }
        yield point_id(*key, index), {"headwater": ours, "version": version}


def points(made) -> Points:
    made = list(made)
    vectors = np.ones((len(made), 2), dtype=np.float32)
    return Points([id for id, _ in made], vectors, [payload for _, payload in made])


def windows(source, version, size):
    """The chunks of a source's documents in windows of `size` chunks, cut anywhere."""
    stream = [chunk for key, count in source.items() for chunk in chunks(key, count, version)]
    return [stream[start : start + size] for start in range(0, len(stream), size)]


class Crashing:
    """A store that dies at its k-th change: half of an upsert or delete is done, then it fails."""

    def __init__(self, store, after):
        self._store = store
        self._after = after

    def _dies(self):
        self._after -= 1
        return self._after < 0

    def upsert(self, name, given_points):
        if self._dies():
            self._store.upsert(name, given_points.slice(0, len(given_points) // 2))
            raise StoreUnavailable("crashed")
        self._store.upsert(name, given_points)

    def delete(self, name, ids):
        if self._dies():
            self._store.delete(name, ids[: len(ids) // 2])
            raise StoreUnavailable("crashed")
        self._store.delete(name, ids)

    def scroll(self, *args, **kwargs):
        return self._store.scroll(*args, **kwargs)


def empty_store() -> LocalStore:
    store = LocalStore.in_memory()
    store.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))
    return store


def contents(store):
    found, offset = store.scroll("c", limit=1000)
    assert offset is None
    return {record.id: record.payload for record in found}


def run(store, source, version, size, batch_points):
    """Index a source, and delete the documents it does not have, as a source with deletes would say."""
    writer = DocumentWriter(store, "c", batch_points)
    done = [writer.write(points(window)) for window in windows(source, version, size)]
    assert writer.open_documents == 0
    writer.delete([key for key in KEYS if key not in source])
    return done


SOURCE = st.dictionaries(st.sampled_from(KEYS), st.integers(1, 7))
ROUND = st.tuples(SOURCE, st.integers(1, 12), st.integers(1, 4), st.none() | st.integers(0, 20))


@given(st.lists(ROUND, min_size=1, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_store_is_what_the_last_source_says_whatever_crashed_before(rounds, rerun):
    store = empty_store()
    for version, (source, size, batch_points, crash) in enumerate(rounds):
        last = version == len(rounds) - 1
        try:
            run(Crashing(store, 10**9 if crash is None else crash), source, version, size, batch_points)
            crashed = False
        except StoreUnavailable:
            crashed = True
        if crashed and (rerun or last):
            run(store, source, version, 5, 3)
        if not crashed or rerun or last:
            wanted = {
                id: payload for key, count in source.items() for id, payload in chunks(key, count, version)
            }
            assert contents(store) == wanted


def versions(store, key):
    """The versions of a document's chunks by their index."""
    ours = [one for one in contents(store).values() if one["headwater"]["document_id"] == key[1]]
    ours = [one for one in ours if one["headwater"]["namespace"] == key[0]]
    return {one["headwater"]["chunk_index"]: one["version"] for one in ours}


@pytest.mark.parametrize("size", [1, 4, 30])
def test_a_new_head_stands_only_over_a_whole_document(size):
    before = dict.fromkeys(KEYS, 5)
    after = dict(zip(KEYS, (1, 3, 5, 7, 2), strict=True))
    crash, crashed = 0, True
    while crashed:
        store = empty_store()
        run(store, before, 0, 25, 25)
        try:
            run(Crashing(store, crash), after, 1, size, 3)
            crashed = False
        except StoreUnavailable:
            crash += 1
        for key, count in after.items():
            found = versions(store, key)
            if found.get(0) == 1:
                assert found == dict.fromkeys(range(count), 1)
    assert crash > 5


def test_a_deleted_documents_head_goes_last():
    crash, crashed = 0, True
    while crashed:
        store = empty_store()
        run(store, dict.fromkeys(KEYS, 5), 0, 25, 25)
        try:
            DocumentWriter(Crashing(store, crash), "c").delete(KEYS[:3])
            crashed = False
        except StoreUnavailable:
            crash += 1
        for key in KEYS[:3]:
            found = versions(store, key)
            assert not found or 0 in found
        DocumentWriter(store, "c").delete(KEYS[:3])
        assert len(contents(store)) == 10
    assert crash == 1


def test_it_tells_what_was_acknowledged():
    store = empty_store()
    writer = DocumentWriter(store, "c")
    five, two = list(chunks(KEYS[0], 5, 0)), list(chunks(KEYS[1], 2, 0))
    assert writer.write(points(five[:3])) == Written(points=0, documents=0, removed=0)
    assert writer.open_documents == 1
    assert five[0][0] not in contents(store)
    assert writer.write(points(five[3:] + two)) == Written(points=7, documents=2, removed=0)
    assert writer.write(points(chunks(KEYS[0], 2, 1))) == Written(points=2, documents=1, removed=3)
    assert writer.delete([KEYS[0], KEYS[2]]) == 2
    assert writer.delete([]) == 0
    assert set(contents(store)) == {id for id, _ in two}


def test_chunks_out_of_order_are_a_bug():
    writer = DocumentWriter(empty_store(), "c")
    made = list(chunks(KEYS[0], 3, 0))
    with pytest.raises(BrokenInvariant, match="chunk 1 of 3"):
        writer.write(points(made[1:]))
    writer = DocumentWriter(empty_store(), "c")
    writer.write(points(made[:2]))
    with pytest.raises(BrokenInvariant, match="chunk 0 of 3"):
        writer.write(points(made[:1]))
