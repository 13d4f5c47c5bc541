"""Codes in Qdrant's engine: exact scores, the graph with a last rescore, and a control that must fail."""

from __future__ import annotations

import numpy as np
import pytest
from qdrant_client import models

from pipeline.codes import Codes, CodesSpec, from_values, inner_products, make_binarizer, query_rows, to_rows
from pipeline.codes.packing import to_values, unpack
from pipeline.config import StoreConfig
from pipeline.errors import UsageError
from pipeline.stores import CodedQueries, Points, collection, nearest, nearest_by_codes
from pipeline.stores.edge import EdgeStore

DIMS = 64
IDS = [f"00000000-0000-0000-0000-{n:012d}" for n in range(12000)]


def skewed(count: int, bits: int, seed: int = 0) -> np.ndarray:
    """Values int8[n, dims], far more often high than low, in a mixture that differs by document."""
    generator = np.random.default_rng(seed)
    share = generator.uniform(0.5, 0.95, size=(count, 1, 1))
    return to_values(generator.random((count, bits, DIMS)) < share)


def coded(values: np.ndarray, bits: int, scale: np.ndarray | float = 1.0) -> np.ndarray:
    scales = np.broadcast_to(np.float32(scale), len(values)).astype(np.float32)
    return to_rows(Codes(from_values(values, bits), scales), bits)


def queried(values: np.ndarray, bits: int) -> np.ndarray:
    """What `query_rows` makes of queries whose codes have these values."""

    class Known:
        spec = CodesSpec("", bits, DIMS, "norm")

        def project(self, queries):
            return queries.astype(np.float32)

    return query_rows(Known(), values)


def make(store: EdgeStore, bits: int, **more) -> str:
    config = StoreConfig(**{"keep_vectors": False, **more})
    return collection.create(store, "docs", config, 16, {}, CodesSpec("f", bits, DIMS, "norm"))


def scores(
    store: EdgeStore, physical: str, queries: np.ndarray, name: str, count: int
) -> list[dict[str, float]]:
    exact = models.SearchParams(exact=True)
    requests = [
        models.QueryRequest(query=row.tolist(), using=name, limit=count, params=exact) for row in queries
    ]
    return [
        {str(hit.id): hit.score for hit in answer.points}
        for answer in store.query_batch_points(physical, requests)
    ]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_scores_of_the_engine_are_the_integer_inner_products(bits, tmp_path):
    documents, queries = skewed(400, bits), skewed(8, bits, seed=1)
    expected = inner_products(queries, documents)
    store = EdgeStore.open(tmp_path)
    physical = make(store, bits)
    store.upsert(physical, Points(IDS[:400], {"codes": coded(documents, bits)}, [{}] * 400))
    found = scores(store, physical, queried(queries, bits), "codes", 400)
    for row, got in zip(expected, found, strict=True):
        assert [got[id] for id in IDS[:400]] == row.tolist()
    store.close()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_documents_scale_is_part_of_the_score(bits, tmp_path):
    documents, queries = skewed(300, bits), skewed(6, bits, seed=1)
    scale = 1 / np.linalg.norm(documents.astype(np.float32), axis=1)
    store = EdgeStore.open(tmp_path)
    physical = make(store, bits)
    store.upsert(physical, Points(IDS[:300], {"codes": coded(documents, bits, scale)}, [{}] * 300))
    found = scores(store, physical, queried(queries, bits), "codes", 300)
    expected = inner_products(queries, documents) * scale
    for row, got in zip(expected, found, strict=True):
        np.testing.assert_allclose([got[id] for id in IDS[:300]], row, rtol=1e-5, atol=1e-4)
    store.close()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_raw_codes_in_bytes_rank_wrongly(bits, tmp_path):
    """The control: were this to rank right, the tests above would show nothing."""
    documents, queries = skewed(400, bits), skewed(8, bits, seed=1)
    most = (1 << bits) - 1
    store = EdgeStore.open(tmp_path)
    raw = models.VectorParams(size=DIMS, distance=models.Distance.DOT, datatype=models.Datatype.UINT8)
    store.create_collection("c", raw)
    store.upsert("c", Points(IDS[:400], {"": ((documents + most) // 2).astype(np.float32)}, [{}] * 400))
    found = nearest(store, "c", ((queries + most) // 2).astype(np.float32), 20)
    expected = np.argsort(-inner_products(queries, documents), axis=1)[:, :20]
    right = [
        {hit.id for hit in hits} == {IDS[n] for n in best} for hits, best in zip(found, expected, strict=True)
    ]
    assert not any(right)
    store.close()


def test_the_graph_with_rescore_finds_what_comparing_all_codes_finds(tmp_path):
    bits, generator = 2, np.random.default_rng(0)
    centres = generator.normal(size=(60, DIMS))
    vectors = (centres[generator.integers(0, 60, 12000)] + generator.normal(size=(12000, DIMS))).astype("f4")
    queries = (centres[:50] + generator.normal(size=(50, DIMS))).astype("f4")
    binarizer = make_binarizer("rotation", vectors[:1000], 128, bits)
    codes = binarizer.encode(vectors)
    store = EdgeStore.open(tmp_path)
    config = StoreConfig(keep_vectors=False, hnsw={"m": 16, "ef_construct": 100})
    physical = collection.create(store, "docs", config, DIMS, {}, CodesSpec.of(binarizer))
    store.upsert(physical, Points(IDS, {"codes": to_rows(codes, bits)}, [{}] * len(IDS)))
    store.optimize(physical)
    assert store.get_collection(physical).indexed_vectors_count == len(IDS)
    rows = query_rows(binarizer, queries)
    found = nearest_by_codes(store, physical, CodedQueries(rows, None, "", 4.0), 10)
    values = to_values(unpack(codes.packed, bits)).astype(np.float32) * codes.scale[:, None]
    exact = np.argsort(-(binarizer.project(queries) @ values.T), axis=1)[:, :10]
    kept = [
        len({hit.id for hit in hits} & {IDS[n] for n in best})
        for hits, best in zip(found, exact, strict=True)
    ]
    assert np.mean(kept) / 10 >= 0.98
    store.close()


@pytest.mark.parametrize("more", [{"vector_name": "codes"}, {"quantization": {"kind": "scalar"}}])
def test_settings_that_codes_leave_no_place_for_are_named(more, tmp_path):
    store = EdgeStore.open(tmp_path)
    with pytest.raises(UsageError, match="with codes"):
        make(store, 2, **more)
    assert not store.get_collections().collections
    store.close()
