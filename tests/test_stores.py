"""One contract, every store: the same calls give the same answers wherever points live."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import models
from stores import ID, KINDS, alias, ids, make, opened, points, vector

from pipeline.errors import StoreError
from pipeline.stores import Points, Store, nearest

TYPES = {
    "int": 7,
    "big": 2**62,
    "negative": -3,
    "zero": 0,
    "float": 1.5,
    "whole": 2.0,
    "tiny": 5e-324,
    "true": True,
    "false": False,
    "null": None,
    "text": 'häuser 🏠\n"quoted"',
    "empty": "",
    "list": [1, 2.5, "x", None, True, [], {"a": []}],
    "nested": {"a": {"b": [{"c": 1}]}, "empty": {}},
}


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> Iterator[Store]:
    with opened(request.param, tmp_path, request) as store:
        yield store


# --- collections, metadata, aliases


def test_a_collection_comes_and_goes(store):
    assert store.get_collections().collections == []
    assert not store.collection_exists("c")
    make(store)
    assert [one.name for one in store.get_collections().collections] == ["c"]
    with pytest.raises(StoreError):
        make(store)
    assert store.delete_collection("c")
    assert not store.delete_collection("c")
    assert not store.collection_exists("c")
    with pytest.raises(StoreError, match="c"):
        store.get_collection("c")
    make(store)
    assert store.count("c").count == 0


def test_metadata_is_kept_exactly_and_merged_by_key(store):
    make(store, metadata={"headwater": TYPES, "other": 1})
    assert store.get_collection("c").config.metadata == {"headwater": TYPES, "other": 1}
    store.update_collection("c", metadata={"other": {"now": [2]}})
    assert store.get_collection("c").config.metadata == {"headwater": TYPES, "other": {"now": [2]}}


def test_a_collection_is_described_as_it_was_made(store):
    store.create_collection(
        "c",
        {"dense": models.VectorParams(size=4, distance=models.Distance.DOT)},
        sparse_vectors_config={"sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    store.create_payload_index("c", "metadata.n", models.PayloadSchemaType.INTEGER)
    store.create_payload_index("c", "metadata.n", models.PayloadSchemaType.INTEGER)
    info = store.get_collection("c")
    dense = info.config.params.vectors["dense"]
    assert (dense.size, dense.distance) == (4, models.Distance.DOT)
    assert info.config.params.sparse_vectors["sparse"].modifier == models.Modifier.IDF
    assert info.payload_schema["metadata.n"].data_type == models.PayloadSchemaType.INTEGER
    store.upsert("c", points([1, 2], name="dense"))
    assert store.get_collection("c").points_count == 2


def drop(name: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))


def test_an_alias_stands_for_its_collection_everywhere(store):
    make(store, "real")
    store.update_collection_aliases([alias("c", "real")])
    assert store.collection_exists("c")
    store.create_payload_index("c", "metadata.n", models.PayloadSchemaType.INTEGER)
    store.update_collection("c", metadata={"a": 1})
    store.upsert("c", points([1, 2, 3]))
    store.delete("c", [ID[3]])
    assert store.count("c").count == store.count("real").count == 2
    assert [r.id for r in store.retrieve("c", [ID[1]])] == [ID[1]]
    assert ids(store) == {1, 2}
    assert nearest(store, "c", np.array([vector(1)], np.float32), 1)[0][0].id == ID[1]
    assert store.get_collection("real").config.metadata == {"a": 1}
    assert "metadata.n" in store.get_collection("c").payload_schema
    assert [one.name for one in store.get_collections().collections] == ["real"]
    store.optimize("c")
    store.flush()


def test_an_alias_is_swapped_in_one_call_or_not_at_all(store):
    make(store, "old")
    make(store, "new")
    store.update_collection_aliases([alias("c", "old")])
    with pytest.raises(StoreError):
        store.update_collection_aliases([drop("c"), alias("c", "missing")])
    with pytest.raises(StoreError):
        store.update_collection_aliases([drop("c"), alias("new", "old")])
    assert {(a.alias_name, a.collection_name) for a in store.get_aliases().aliases} == {("c", "old")}
    store.update_collection_aliases([drop("c"), alias("c", "new"), alias("also", "old")])
    known = {(a.alias_name, a.collection_name) for a in store.get_aliases().aliases}
    assert known == {("c", "new"), ("also", "old")}
    with pytest.raises(StoreError):
        make(store, "c")  # the alias has the name


def test_deleting_a_collection_takes_its_aliases_along(store):
    make(store, "real")
    store.update_collection_aliases([alias("c", "real")])
    assert not store.delete_collection("c")  # an alias is not a collection
    assert store.delete_collection("real")
    assert store.get_aliases().aliases == []


# --- points


def test_payloads_come_back_exactly_as_they_were(store):
    make(store)
    given_payload = {"text": "t", "metadata": TYPES, "headwater": {"document_id": "d"}}
    store.upsert("c", points([1], payload=lambda _: given_payload))
    (record,) = store.retrieve("c", [ID[1]])
    assert json.dumps(record.payload, sort_keys=True) == json.dumps(given_payload, sort_keys=True)
    (hit,) = nearest(store, "c", np.array([vector(1)], np.float32), 1)[0]
    assert json.dumps(hit.payload, sort_keys=True) == json.dumps(given_payload, sort_keys=True)
    page, _ = store.scroll("c")
    assert json.dumps(page[0].payload, sort_keys=True) == json.dumps(given_payload, sort_keys=True)


def test_only_the_payload_keys_asked_for_are_read(store):
    make(store)
    store.upsert("c", points([1], payload=lambda n: {"text": "t", "headwater": {"a": 1, "b": 2}}))
    assert store.retrieve("c", [ID[1]], with_payload=["headwater.a"])[0].payload == {"headwater": {"a": 1}}
    assert store.scroll("c", with_payload=["text"])[0][0].payload == {"text": "t"}
    assert not store.retrieve("c", [ID[1]], with_payload=False)[0].payload


def test_an_upsert_replaces_the_whole_point(store):
    make(store)
    store.upsert("c", points(list(range(10))))
    store.upsert("c", Points([ID[3]], {"": np.array([vector(9)], np.float32)}, [{"new": 1}]))
    (record,) = store.retrieve("c", [ID[3]], with_vectors=True)
    assert record.payload == {"new": 1}
    assert np.allclose(record.vector, vector(9), atol=1e-6)
    assert store.count("c").count == 10


def older(n: int) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="headwater.sequence", range=models.Range(lt=n))])


def sequenced(numbers: list[int], sequence: int) -> Points:
    return points(numbers, payload=lambda n: {"n": n, "headwater": {"sequence": sequence}})


def sequences(store: Store) -> dict[int, int]:
    records, _ = store.scroll("c", limit=50)
    return {record.payload["n"]: record.payload["headwater"]["sequence"] for record in records}


def test_with_a_filter_a_point_is_replaced_only_where_it_matches_and_a_missing_one_is_inserted(store):
    make(store)
    store.upsert("c", sequenced([0, 1, 2, 3, 4], 5))
    store.upsert("c", sequenced([1, 2], 9), older(9))
    store.upsert("c", sequenced([0, 1, 2, 3, 4, 5, 6, 7], 7), older(7))
    assert sequences(store) == {0: 7, 1: 9, 2: 9, 3: 7, 4: 7, 5: 7, 6: 7, 7: 7}
    store.upsert("c", sequenced([0, 1], 7), older(7))  # again: what is there already stays
    assert sequences(store)[1] == 9
    # What is asked of the point is asked of the stored one: a payload without the key is not older.
    store.upsert("c", points([9], payload=lambda n: {"n": n, "headwater": {"sequence": None}}))
    store.upsert("c", sequenced([9], 3), older(3))
    assert sequences(store)[9] is None
    store.upsert("c", sequenced([9], 3))
    assert sequences(store)[9] == 3
    # The vector goes with the payload: neither is replaced alone.
    store.upsert("c", Points([ID[1]], {"": np.array([vector(30)], np.float32)}, [{"n": 1}]), older(9))
    (record,) = store.retrieve("c", [ID[1]], with_vectors=True)
    assert np.allclose(record.vector, vector(1), atol=1e-6)


def test_a_filter_of_ids_and_alternatives_decides_too(store):
    make(store)
    store.upsert("c", sequenced([0, 1, 2], 1))
    mine = models.Filter(
        should=[
            models.HasIdCondition(has_id=[ID[0]]),
            models.FieldCondition(key="n", match=models.MatchValue(value=1)),
        ]
    )
    store.upsert("c", sequenced([0, 1, 2, 3], 2), mine)
    assert sequences(store) == {0: 2, 1: 2, 2: 1, 3: 2}


def test_nothing_is_no_error(store):
    make(store)
    store.upsert("c", points([]))
    store.upsert("c", points([]), older(1))
    store.delete("c", [])
    assert store.retrieve("c", []) == []
    assert store.retrieve("c", [ID[1]]) == []
    store.delete("c", [ID[1]])
    assert store.scroll("c") == ([], None)
    assert nearest(store, "c", np.zeros((0, 4), np.float32), 3) == []
    assert nearest(store, "c", np.array([vector(1)], np.float32), 3) == [[]]


def test_keys_are_set_in_the_payloads_of_points_and_the_others_stay(store):
    make(store)
    store.upsert("c", points([1, 2, 3], payload=lambda n: {"ours": {"a": n, "b": [1]}, "text": "x"}))
    store.set_payload("c", {"a": 0, "c": True}, [ID[1], ID[3]], key="ours")
    store.set_payload("c", {"text": "y"}, [ID[2]])
    store.set_payload("c", {"text": "z"}, [])
    found = {ID.index(record.id): record.payload for record in store.retrieve("c", [ID[1], ID[2], ID[3]])}
    assert found == {
        1: {"ours": {"a": 0, "b": [1], "c": True}, "text": "x"},
        2: {"ours": {"a": 2, "b": [1]}, "text": "y"},
        3: {"ours": {"a": 0, "b": [1], "c": True}, "text": "x"},
    }


def test_payloads_are_overwritten_whole_and_vectors_stay(store):
    make(store)
    store.upsert("c", points(list(range(8))))
    before = {record.id: record.vector for record in store.retrieve("c", ID[:8], with_vectors=True)}
    store.overwrite_payloads("c", ID[:7], [{**TYPES, "n": n} for n in range(7)])
    store.overwrite_payloads("c", [], [])
    after = store.retrieve("c", ID[:8], with_vectors=True)
    assert {record.id: record.vector for record in after} == before
    assert {ID.index(record.id): record.payload for record in after} == {
        7: {"metadata": {"n": 7}},
        **{n: {**TYPES, "n": n} for n in range(7)},
    }


@pytest.mark.parametrize("name", ["", "dense"])
@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
def test_the_nearest_come_first_with_the_score_of_the_distance(store, distance, name):
    params = models.VectorParams(size=4, distance=distance)
    store.create_collection("c", {name: params} if name else params)
    store.upsert("c", points(list(range(20)), name=name))
    queries = np.array([vector(n) for n in (3, 30, 31)], np.float32)
    rows = np.array([vector(n) for n in range(20)])
    found = nearest(store, "c", queries, 5, vector_name=name)
    for query, hits in zip(queries, found, strict=True):
        scores = -np.linalg.norm(rows - query, axis=1) if distance == "Euclid" else rows @ query
        assert [ID.index(hit.id) for hit in hits] == np.argsort(-scores)[:5].tolist()
        expected = np.abs(np.sort(scores)[::-1][:5]) if distance == "Euclid" else np.sort(scores)[::-1][:5]
        assert np.allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_a_point_has_several_vectors_each_found_by_itself(store):
    sizes = {"a": (4, models.Distance.COSINE), "b": (6, models.Distance.DOT)}
    params = {name: models.VectorParams(size=n, distance=kind) for name, (n, kind) in sizes.items()}
    store.create_collection("c", params)
    rows = {
        name: np.array([vector(n, size) for n in range(9)], np.float32) for name, (size, _) in sizes.items()
    }
    rows["b"] = rows["b"][::-1].copy()
    store.upsert("c", Points(ID[:9], rows, [{"n": n} for n in range(9)]))
    for name in sizes:
        found = nearest(store, "c", rows[name][[2, 7]], 1, vector_name=name)
        assert [ID.index(hit.id) for (hit,) in found] == [2, 7]
    (record,) = store.retrieve("c", [ID[4]], with_vectors=True)
    assert all(np.allclose(record.vector[name], rows[name][4], atol=1e-6) for name in sizes)
    with pytest.raises(StoreError):
        store.upsert("c", Points(ID[9:10], {name: rows["a"][:1] for name in sizes}, [{}]))


def test_points_that_do_not_fit_the_collection_are_refused(store):
    make(store)
    with pytest.raises(StoreError):
        store.upsert("c", points([1], dims=5))
    with pytest.raises(StoreError):
        store.upsert("c", points([1], name="other"))
    with pytest.raises(StoreError):
        store.upsert("missing", points([1]))
    with pytest.raises(StoreError):
        nearest(store, "c", np.ones((1, 5), np.float32), 1)
    assert store.count("c").count == 0
