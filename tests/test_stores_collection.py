"""Collections by alias, URLs of stores, and points before they are sent."""

from __future__ import annotations

import numpy as np
import pytest
from qdrant_client import models
from stores import ID, alias, points

from pipeline.config import QuantizationConfig, StoreConfig
from pipeline.errors import BrokenInvariant, CollectionMismatch, StoreError, StoreUnavailable, UsageError
from pipeline.stores import Points, collection, open_store
from pipeline.stores.local import LocalStore

CONFIG = StoreConfig(vector_name="dense", sparse_vector="sparse", payload_indexes={"year": "integer"})


def test_a_collection_is_made_behind_its_alias():
    store = LocalStore.in_memory()
    assert collection.resolve(store, "docs") is None
    physical = collection.create(store, "docs", CONFIG, 4, {"headwater": {"version": "v"}})
    assert physical.startswith("docs__")
    assert collection.resolve(store, "docs") == physical
    assert collection.read_metadata(store, physical) == {"headwater": {"version": "v"}}
    info = store.get_collection("docs")
    assert info.config.params.vectors["dense"].size == 4
    assert set(info.config.params.sparse_vectors) == {"sparse"}
    kinds = {key: found.data_type.value for key, found in info.payload_schema.items()}
    assert kinds == {
        "headwater.document_id": "keyword",
        "headwater.namespace": "keyword",
        "headwater.chunk_index": "integer",
        "metadata.year": "integer",
    }
    assert collection.create(store, "other", CONFIG, 4, {}) != collection.create(
        store, "third", CONFIG, 4, {}
    )


class DiesBeforeTheAlias(LocalStore):
    def update_collection_aliases(self, changes):
        raise StoreUnavailable("gone")


def test_a_half_made_collection_is_never_seen():
    store = DiesBeforeTheAlias.in_memory()
    with pytest.raises(StoreUnavailable):
        collection.create(store, "docs", CONFIG, 4, {})
    assert collection.resolve(store, "docs") is None


def test_a_collection_with_the_aliass_name_is_not_touched():
    store = LocalStore.in_memory()
    store.create_collection("docs", models.VectorParams(size=4, distance="Dot"))
    with pytest.raises(CollectionMismatch, match="'docs' is a collection that headwater did not make"):
        collection.resolve(store, "docs")
    assert store.collection_exists("docs")


class AliasMadeMeanwhile(LocalStore):
    """Another command makes the alias right after this one has looked for it."""

    made = False

    def get_aliases(self):
        found = super().get_aliases()
        if not self.made:
            self.made = True
            collection.create(self, "docs", CONFIG, 4, {})
        return found


def test_an_alias_that_is_made_between_two_looks_is_found():
    store = AliasMadeMeanwhile.in_memory()
    assert (collection.resolve(store, "docs") or "").startswith("docs__")


def test_an_alias_may_be_moved():
    store = LocalStore.in_memory()
    old, new = (collection.create(store, name, CONFIG, 4, {}) for name in ("docs", "next"))
    store.update_collection_aliases([alias("docs", new)])
    assert collection.resolve(store, "docs") == new != old


@pytest.mark.parametrize(
    ("found", "ours", "dims", "said"),
    [
        (CONFIG, CONFIG, 8, ["4-dimensional", "8-dimensional"]),
        (CONFIG, CONFIG.model_copy(update={"distance": "dot"}), 4, ["Cosine", "Dot"]),
        (
            CONFIG,
            CONFIG.model_copy(update={"vector_name": "other"}),
            4,
            ["'dense'", "'other'", "store.vector_name"],
        ),
        (CONFIG, CONFIG.model_copy(update={"vector_name": ""}), 4, ["'dense'", "unnamed"]),
        (StoreConfig(), CONFIG, 4, ["unnamed", "'dense'"]),
    ],
)
def test_vectors_that_do_not_fit_are_named_on_both_sides(found, ours, dims, said):
    store = LocalStore.in_memory()
    physical = collection.create(store, "docs", found, 4, {})
    collection.check_vectors(store, physical, found, 4)
    with pytest.raises(CollectionMismatch) as refused:
        collection.check_vectors(store, physical, ours, dims)
    for word in said:
        assert word in str(refused.value)
    assert refused.value.do


def test_bits_that_no_codec_has_are_refused():
    config = StoreConfig(quantization=QuantizationConfig(kind="binary", bits=4))
    store = LocalStore.in_memory()
    with pytest.raises(UsageError, match=r"1, 1\.5, 2"):
        collection.create(store, "docs", config, 4, {})
    assert store.get_collections().collections == []


@pytest.mark.parametrize(
    "url",
    ["", "edge:", "local:", "qdrant://x", "http://", "grpc://", "http://h:99999", "http://h:x", "grpc://h:1/path",
     "http://h:0", "http://h/?api_key=1", "docs", "https:/x"],
)  # fmt: skip
def test_a_bad_url_is_shown_the_good_forms(url):
    with pytest.raises(UsageError) as refused:
        open_store(StoreConfig(url=url))
    assert all(
        form in refused.value.need for form in ("edge:DIR", "http://", "https://", "grpc://", "grpcs://")
    )


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@h:1", "grpc://hunter2@h", "other://me:hunter2@h", "http://h?k=hunter2"]
)
def test_a_secret_in_a_url_is_not_repeated(url):
    with pytest.raises(UsageError) as refused:
        open_store(StoreConfig(url=url))
    assert "hunter2" not in str(refused.value) + repr(refused.value)


def test_memory_stores_are_found_by_name():
    one, same, other, fresh = (open_store(StoreConfig(url=f"memory:{name}")) for name in ("x", "x", "y", ""))
    collection.create(one, "docs", CONFIG, 4, {})
    assert collection.resolve(same, "docs") is not None
    assert collection.resolve(other, "docs") is None
    assert collection.resolve(fresh, "docs") is None


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (np.array([[1, np.nan]], np.float32), StoreError),
        (np.array([[1, np.inf]], np.float32), StoreError),
        (np.array([[-np.inf, 1]], np.float32), StoreError),
        (np.zeros((1, 4), np.float32), StoreError),
        (np.ones((1, 0), np.float32), StoreError),
        (np.ones((1, 4), np.float64), BrokenInvariant),
        (np.ones(4, np.float32), BrokenInvariant),
        (np.ones((2, 4), np.float32), BrokenInvariant),
    ],
)
def test_vectors_that_would_poison_a_collection_are_refused(vectors, error):
    with pytest.raises(error):
        Points([ID[0]], {"": vectors}, [{}])


def test_the_largest_floats_are_no_infinity():
    Points([ID[0]], {"": np.full((1, 2048), np.finfo(np.float32).max, np.float32)}, [{}])
    Points([ID[0]], {"": np.full((1, 4), 1e-30, np.float32)}, [{}])


def test_one_bad_vector_among_many_is_named():
    vectors = np.ones((5, 4), np.float32)
    vectors[3, 2] = np.nan
    with pytest.raises(StoreError, match=f"1 of 5 vectors unusable: point {ID[3]}"):
        Points(ID[:5], {"": np.ones((5, 2), np.float32), "dense": vectors}, [{}] * 5)


def test_points_are_cut_without_loss():
    whole = points(list(range(10)), name="dense")
    pieces = list(whole.batches(4))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert [id for piece in pieces for id in piece.ids] == whole.ids
    assert all(np.shares_memory(piece.vectors["dense"], whole.vectors["dense"]) for piece in pieces)
    taken = whole.take([7, 2])
    assert (taken.ids, taken.payloads) == ([ID[7], ID[2]], [whole.payloads[7], whole.payloads[2]])
    assert np.array_equal(taken.vectors["dense"], whole.vectors["dense"][[7, 2]])
