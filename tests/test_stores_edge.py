"""The edge store: what survives a killed process, who may hold it, and that it answers as a server's model does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models
from stores import ID, points
from test_stores_filters import FILTERS

from pipeline.config import HnswConfig, QuantizationConfig, StoreConfig
from pipeline.errors import StoreError, StoreFull, StoreHeld, UsageError
from pipeline.stores import Points, collection, nearest, open_store, store_exists
from pipeline.stores.edge import EdgeStore, edge_error
from pipeline.stores.edge_folder import CATALOGUE
from pipeline.stores.folder_lock import LOCK, Purpose
from pipeline.stores.local import LocalStore

WRITER = """
import sys, uuid, numpy as np
from pathlib import Path
from qdrant_client import models
from pipeline.stores.edge import EdgeStore
from pipeline.stores.folder_lock import Claim, Purpose
from pipeline.stores.points import Points
store = EdgeStore.open(Path(sys.argv[1]), batch_points=20, claim=Claim(Purpose.INGEST, "häuser"))
if not store.collection_exists("c"):
    store.create_collection("c", models.VectorParams(size=8, distance="Dot"))
print("ready", flush=True)
for n in range(10**6):
    ids = [str(uuid.UUID(int=n * 20 + i)) for i in range(20)]
    store.upsert("c", Points(ids, {"": np.full((20, 8), n + 1, np.float32)}, [{"n": n}] * 20))
    print(n, flush=True)
"""


def start_writer(folder) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def make(store, size=4, distance=models.Distance.COSINE, **extra):
    store.create_collection("c", models.VectorParams(size=size, distance=distance), **extra)


def test_what_was_acknowledged_survives_kill_9_in_mid_upsert(tmp_path):
    process = start_writer(tmp_path)
    acknowledged = [process.stdout.readline() for _ in range(30)]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().splitlines()
    process.wait()
    done = max(int(line) for line in acknowledged if line.strip().isdigit())
    store = EdgeStore.open(tmp_path)
    try:
        found = store.count("c").count
        assert found >= (done + 1) * 20
        assert found % 20 == 0  # an upsert of the engine is there as a whole or not at all
        (record,) = store.retrieve("c", [str(uuid.UUID(int=0))], with_vectors=True)
        assert (record.payload, record.vector) == ({"n": 0}, [1.0] * 8)
    finally:
        store.close()


def test_another_process_is_told_who_holds_the_folder(tmp_path):
    process = start_writer(tmp_path)
    try:
        with pytest.raises(StoreHeld) as refused:
            open_store(StoreConfig(url=f"edge:{tmp_path}"), Purpose.SEARCH)
        assert f"process {process.pid} on {os.uname().nodename} (ingest into 'häuser')" in refused.value.got
        assert (refused.value.purpose, refused.value.collection) == (Purpose.INGEST, "häuser")
        assert str(tmp_path) in refused.value.got
        assert "Wait for it" in refused.value.do
    finally:
        process.kill()
        process.wait()
    open_store(StoreConfig(url=f"edge:{tmp_path}")).close()  # a killed process holds nothing


def test_the_same_process_cannot_open_it_twice_but_again(tmp_path):
    store = EdgeStore.open(tmp_path)
    with pytest.raises(StoreError, match=str(os.getpid())):
        EdgeStore.open(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.count("c")
    EdgeStore.open(tmp_path).close()


def test_everything_is_found_again(tmp_path):
    config = StoreConfig(
        url=f"edge:{tmp_path / 'deep' / 'store'}",
        vector_name="dense",
        sparse_vector="sparse",
        payload_indexes={"n": "integer"},
        hnsw=HnswConfig(m=8),
        on_disk_vectors=True,
        on_disk_payload=True,
    )
    assert not store_exists(config)
    store = open_store(config)
    physical = collection.create(store, "docs", config, 4, {"headwater": {"a": [1]}})
    store.upsert("docs", points(list(range(10)), name="dense"))
    info = store.get_collection("docs")
    store.close()

    assert store_exists(config)
    store = open_store(config)
    assert collection.resolve(store, "docs") == physical
    assert collection.read_metadata(store, physical) == {"headwater": {"a": [1]}}
    collection.check_vectors(store, physical, config, 4)
    assert store.get_collection("docs") == info
    assert set(info.payload_schema) == {*collection.OUR_INDEXES, "metadata.n"}
    assert info.config.hnsw_config.m == 8
    assert store.count("docs").count == 10
    store.close()


@pytest.mark.parametrize(
    "quantization",
    [
        QuantizationConfig(kind="scalar", quantile=0.99, always_ram=True),
        QuantizationConfig(kind="product", compression="x4"),
        QuantizationConfig(kind="binary", bits=2),
        QuantizationConfig(kind="turbo", bits=4),
        QuantizationConfig(kind="binary"),
    ],
    ids=lambda q: q.kind,
)
def test_quantized_collections_still_find(tmp_path, quantization):
    config = StoreConfig(url=f"edge:{tmp_path}", quantization=quantization)
    store = open_store(config)
    collection.create(store, "docs", config, 16, {})
    store.upsert("docs", points(list(range(40)), dims=16))
    store.optimize("docs")
    store.flush()
    query = points([7], dims=16).vectors[""]
    assert nearest(store, "docs", query, 1)[0][0].id == ID[7]
    found = store.get_collection("docs").config.quantization_config
    assert quantization.kind in found.model_dump(exclude_none=True)
    store.close()


def test_optimizing_builds_a_graph_that_finds_the_same(tmp_path):
    store = EdgeStore.open(tmp_path)
    make(store, size=256, hnsw_config=models.HnswConfigDiff(full_scan_threshold=10))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12000, 256)).astype(np.float32)
    ids = [f"00000000-0000-0000-0000-{n:012d}" for n in range(len(vectors))]
    store.upsert("c", Points(ids, {"": vectors}, [{}] * len(ids)))
    assert store.get_collection("c").indexed_vectors_count == 0
    store.optimize("c")
    assert store.get_collection("c").indexed_vectors_count == len(ids)
    assert [hits[0].id for hits in nearest(store, "c", vectors[:5], 1)] == ids[:5]
    store.close()


def test_a_damaged_catalogue_is_named(tmp_path):
    EdgeStore.open(tmp_path).close()
    (tmp_path / CATALOGUE).write_text('{"collections": [')
    with pytest.raises(StoreError, match=CATALOGUE):
        EdgeStore.open(tmp_path)
    (tmp_path / CATALOGUE).unlink()
    EdgeStore.open(tmp_path).close()  # the lock was let go of


def test_a_place_that_is_no_folder_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        EdgeStore.open(tmp_path / "file")


def test_names_cannot_leave_the_folder_or_take_what_is_there(tmp_path):
    store = EdgeStore.open(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    for name in ("", ".", "..", "../x", "a/b", CATALOGUE, LOCK, "mine", "x" * 256):
        with pytest.raises(StoreError):
            store.create_collection(name, models.VectorParams(size=4, distance="Dot"))
        assert not store.delete_collection(name)
    assert (tmp_path / "mine" / "precious").read_text() == "x"
    store.close()


def test_a_crash_before_the_catalogue_is_written_leaves_no_collection(tmp_path, monkeypatch):
    store = EdgeStore.open(tmp_path)

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.stores.edge_folder.os.fsync", fails)
        with pytest.raises(StoreFull, match="Free some space"):
            collection.create(store, "docs", StoreConfig(), 4, {})
    assert store.get_collections().collections == []
    store.close()
    store = EdgeStore.open(tmp_path)
    assert store.get_collections().collections == []
    physical = collection.create(store, "docs", StoreConfig(), 4, {})
    assert collection.resolve(store, "docs") == physical
    store.close()


def test_a_full_disk_has_an_error_of_its_own():
    full = edge_error(
        Exception("Service runtime error: IO Error: No space left on device (os error 28)"), "upsert"
    )
    assert isinstance(full, StoreFull)
    assert not isinstance(edge_error(Exception("Vector dimension error"), "upsert"), StoreFull)


def test_a_disk_that_is_nearly_full_is_an_error_before_the_engine_dies_of_it(tmp_path, monkeypatch):
    def free(mebibytes):
        left = SimpleNamespace(free=mebibytes << 20)
        monkeypatch.setattr("pipeline.stores.edge.shutil.disk_usage", lambda _: left)

    def put(number, text):
        store.upsert("c", Points([ID[number]], {"": np.ones((1, 4), np.float32)}, [{"text": text}]))

    store = EdgeStore.open(tmp_path)
    make(store)
    free(40)
    put(1, "short")
    with pytest.raises(StoreFull, match=r"40 MiB left.*Free some space"):
        put(2, "x" * (4 << 20))
    free(1)
    with pytest.raises(StoreFull):
        put(2, "short")
    with pytest.raises(StoreFull):
        store.create_collection("d", models.VectorParams(size=4, distance=models.Distance.DOT))
    assert store.count("c").count == 1
    store.delete("c", [ID[1]])  # what makes room is not refused
    store.close()


def test_the_engine_is_asked_nothing_it_does_not_know(tmp_path):
    store = EdgeStore.open(tmp_path)
    make(store)
    odd = [
        models.Filter(must=[models.HasVectorCondition(has_vector="x")]),
        models.Filter(
            must=[
                models.FieldCondition(
                    key="x", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=0, lat=0), radius=1)
                )
            ]
        ),
    ]
    for where in odd:
        with pytest.raises(StoreError, match="edge store cannot take"):
            store.count("c", where)
    store.close()


STEP = st.one_of(
    st.tuples(
        st.just("upsert"),
        st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True),
        st.integers(0, 9),
    ),
    st.tuples(
        st.just("delete"), st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), st.none()
    ),
    st.tuples(
        st.just("filter"),
        st.sampled_from(["match text", "match true", "range", "count", "must not"]),
        st.none(),
    ),
    st.tuples(st.just("reopen"), st.none(), st.none()),
)


def fields(n, salt):
    return {
        "metadata": {
            "n": n,
            "f": (n + salt) / 2,
            "even": (n + salt) % 2 == 0,
            "lang": "en" if (n + salt) % 3 else "de",
            "tags": ["a", "b"][: salt % 3],
        }
    }


@given(st.lists(STEP, max_size=12))
@settings(max_examples=15)
def test_it_answers_as_the_memory_store_does(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("edge")
    edge, memory = EdgeStore.open(folder, batch_points=5), LocalStore.in_memory()
    for store in (edge, memory):
        make(store)
    for kind, what, salt in steps:
        if kind == "reopen":
            edge.close()
            edge = EdgeStore.open(folder, batch_points=5)
        for store in (edge, memory):
            if kind == "upsert":
                store.upsert("c", points(what, payload=lambda n, salt=salt: fields(n, salt)))
            elif kind == "delete":
                store.delete("c", [ID[n] for n in what])
            elif kind == "filter":
                store.delete("c", FILTERS[what][0])
        assert snapshot(edge) == snapshot(memory)
    edge.close()


def snapshot(store):
    records, _ = store.scroll("c", limit=100, with_vectors=True)
    kept = {r.id: (json.dumps(r.payload, sort_keys=True), np.round(r.vector, 5).tolist()) for r in records}
    hits = nearest(store, "c", points([40, 41]).vectors[""], 5)
    return kept, store.count("c").count, [[hit.id for hit in one] for one in hits]
