"""What the writer tells and refuses; test_commit_protocol.py has what crashes leave."""

import numpy as np
import pytest
from qdrant_client import models

from pipeline.errors import BrokenInvariant
from pipeline.schemas import point_id
from pipeline.stores import DocumentWriter, Points, Written, read_heads
from pipeline.stores.local import LocalStore

KEYS = [("", "a"), ("", "b"), ("t", "a")]


def chunks(key, count):
    namespace, document_id = key
    for index in range(count):
        ours = {
            "namespace": namespace,
            "document_id": document_id,
            "chunk_index": index,
            "chunk_count": count,
            "sequence": 0,
            "encoder_version": "v",
            "text_hash": "t",
            "metadata_hash": "m",
        }
        yield point_id(*key, index), {"headwater": ours}


def marked(payload):
    return {"headwater": payload["headwater"] | {"writing": True}}


def points(made) -> Points:
    made = list(made)
    vectors = np.ones((len(made), 2), dtype=np.float32)
    return Points([id for id, _ in made], {"": vectors}, [payload for _, payload in made])


@pytest.fixture
def store():
    store = LocalStore.in_memory()
    store.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))
    return store


def test_it_tells_what_was_acknowledged(store):
    writer = DocumentWriter(store, "c", batch_points=3)
    five, two = list(chunks(KEYS[0], 5)), list(chunks(KEYS[1], 2))
    assert writer.write(points(five + two), {}) == Written(points=7, documents=2, removed=0)
    heads = read_heads(store, "c", KEYS)
    assert {key: head.chunk_count for key, head in heads.items()} == {KEYS[0]: 5, KEYS[1]: 2}
    assert writer.write(points(chunks(KEYS[0], 2)), heads) == Written(points=2, documents=1, removed=3)
    assert writer.delete([KEYS[0], KEYS[2]], read_heads(store, "c", KEYS)) == 2
    assert writer.delete([], {}) == 0
    assert writer.write(points([]), {}) == Written()
    found, _ = store.scroll("c", limit=100)
    assert {record.id for record in found} == {id for id, _ in two}


def test_chunks_that_a_marked_head_does_not_count_are_found_by_asking(store):
    for count in (5, 2):  # as a run leaves it that died while the document shrank
        store.upsert("c", points((id, marked(payload)) for id, payload in chunks(KEYS[0], count)))
    assert DocumentWriter(store, "c").delete(KEYS, read_heads(store, "c", KEYS)) == 5
    assert store.count("c").count == 0


def test_of_documents_that_are_not_stored_nothing_is_asked(store, monkeypatch):
    monkeypatch.setattr(store, "scroll", lambda *_, **__: pytest.fail("the store was asked"))
    writer = DocumentWriter(store, "c")
    assert writer.write(points([*chunks(KEYS[0], 5), *chunks(KEYS[1], 1)]), {}).points == 6
    assert writer.delete([KEYS[2]], {}) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 2], "chunk 1 of 3"),
        ([0, 2], "chunk 2 of 3"),
        ([0, 1, 2, 0, 1, 2], "chunk 0 of 3"),
        ([0, 1], "last"),
    ],
)
def test_a_document_comes_in_order_as_a_whole_and_once(store, rows, message):
    made = list(chunks(KEYS[0], 3))
    with pytest.raises(BrokenInvariant, match=message):
        DocumentWriter(store, "c").write(points(made[row] for row in rows), {})
    assert store.count("c").count == 0
