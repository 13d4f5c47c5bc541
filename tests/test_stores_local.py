"""The local store: what survives a killed process, who may hold the folder, and that qdrant-client opens it."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import points as stored
import pytest
from qdrant_client import QdrantClient, models
from stores import ID, points

from pipeline.config import StoreConfig
from pipeline.errors import StoreError, StoreHeld, UsageError
from pipeline.stores import Points, Purpose, collection, folder_of, nearest, open_store, store_exists

WRITER = """
import sys, uuid, numpy as np
from pathlib import Path
from pipeline.config import StoreConfig
from pipeline.stores import Points, Purpose, collection, open_store
store = open_store(StoreConfig(url=f"local:{sys.argv[1]}", collection="docs"), Purpose.INGEST)
if not store.collection_exists("docs"):
    collection.create(store, "docs", StoreConfig(), 8, {"headwater": {"a": 1}})
print("ready", flush=True)
for n in range(int(sys.argv[2])):
    ids = [str(uuid.UUID(int=n * 20 + i)) for i in range(20)]
    rows = np.random.default_rng(n).normal(size=(20, 8)).astype(np.float32)
    store.upsert("docs", Points(ids, {"": rows}, [{"n": n, "i": i} for i in range(20)]))
    print(n, flush=True)
store.close()
"""


def writer(folder, batches) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(batches)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def url(folder) -> StoreConfig:
    return StoreConfig(url=f"local:{folder}")


def test_killed_in_mid_upsert_and_run_again_it_holds_the_points_of_an_unharmed_run(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert writer(whole, 100).wait(60) == 0
    process = writer(killed, 10**6)
    acknowledged = 0
    while acknowledged < 37:
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    found = stored.contents_of(f"local:{killed}", "docs")
    assert len(found) >= (acknowledged + 1) * 20
    store = open_store(url(killed))
    store.delete("docs", list(found.keys() - stored.contents_of(f"local:{whole}", "docs").keys()))
    store.close()
    assert writer(killed, 100).wait(60) == 0
    stored.assert_same(
        stored.contents_of(f"local:{killed}", "docs"), stored.contents_of(f"local:{whole}", "docs")
    )


def test_points_are_synced_when_the_store_is_flushed_and_not_one_by_one(tmp_path):
    store = open_store(url(tmp_path))
    collection.create(store, "docs", StoreConfig(), 4, {})
    (database,) = tmp_path.glob("collection/*/storage.sqlite")
    journal = database.with_name("storage.sqlite-wal")
    store.upsert("docs", points(list(range(40))))
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as reading:
        assert reading.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert reading.execute("SELECT COUNT(*) FROM points").fetchone() == (40,)  # another process sees them
    reading.close()
    assert journal.stat().st_size > 0
    before = database.stat().st_size
    store.flush()
    assert database.stat().st_size > before  # what the log held is in the file, which is synced
    store.close()


def test_another_process_is_told_who_holds_the_folder_and_what_for(tmp_path):
    process = writer(tmp_path, 10**6)
    try:
        with pytest.raises(StoreHeld, match=rf"process {process.pid} .*\(ingest into 'docs'\)") as refused:
            open_store(url(tmp_path))
        assert (refused.value.purpose, refused.value.collection) == ("ingest into", "docs")
        with pytest.raises(RuntimeError, match="already accessed"):
            QdrantClient(path=str(tmp_path))
    finally:
        process.kill()
        process.wait()
    open_store(url(tmp_path)).close()


def test_a_program_that_is_not_ours_may_hold_the_folder(tmp_path):
    other = QdrantClient(path=str(tmp_path))
    for _ in range(2):
        with pytest.raises(StoreHeld, match="held by another process") as refused:
            open_store(url(tmp_path))
        assert refused.value.purpose == ""
    other.close()
    open_store(url(tmp_path)).close()


def test_qdrant_client_opens_what_we_wrote_and_we_what_it_writes(tmp_path):
    store = open_store(url(tmp_path))
    collection.create(store, "docs", StoreConfig(), 4, {"headwater": {"a": [1]}})
    store.upsert("docs", points([1, 2, 3]))
    store.close()
    other = QdrantClient(path=str(tmp_path))
    query = points([2]).vectors[""][0].tolist()
    assert other.query_points("docs", query, limit=1).points[0].id == ID[2]
    other.upsert(
        "docs", [models.PointStruct(id=ID[9], vector=[1.0, 0.0, 0.0, 0.0], payload={"theirs": True})]
    )
    other.close()
    store = open_store(url(tmp_path))
    assert collection.read_metadata(store, collection.resolve(store, "docs")) == {"headwater": {"a": [1]}}
    assert nearest(store, "docs", np.array([[1, 0, 0, 0]], np.float32), 1)[0][0].payload == {"theirs": True}
    assert store.count("docs").count == 4
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count("docs")


def test_its_limits_are_said_once_to_who_fills_it(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        open_store(url(tmp_path), Purpose.SEARCH).close()
        store = open_store(url(tmp_path), Purpose.INGEST)
        collection.create(store, "docs", StoreConfig(), 4, {})
        store.upsert("docs", points([1, 2, 3]))
        store.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "20,000 points" in said
    assert "edge:DIR" in said


def test_folders_are_known_by_their_url(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    known = {f"{kind}:{tmp_path}": tmp_path for kind in ("edge", "local")}
    for text, folder in {
        **known,
        "edge:": None,
        "http://h": None,
        "memory:x": None,
        "other:/x": None,
    }.items():
        assert folder_of(text) == folder
    assert str(folder_of("local:~/x")) == "/home/me/x"
    assert not store_exists(url(tmp_path))
    open_store(url(tmp_path)).close()
    assert store_exists(url(tmp_path))
    assert not store_exists(StoreConfig(url=f"edge:{tmp_path}"))


@pytest.mark.parametrize(("is_", "said"), [("edge", "local"), ("local", "edge")])
def test_a_folder_with_a_store_of_the_other_kind_is_refused(is_, said, tmp_path):
    open_store(StoreConfig(url=f"{is_}:{tmp_path}")).close()
    store = open_store(StoreConfig(url=f"{is_}:{tmp_path}"))
    collection.create(store, "docs", StoreConfig(), 4, {})
    store.close()
    with pytest.raises(UsageError, match=f"{is_}:{tmp_path}"):
        open_store(StoreConfig(url=f"{said}:{tmp_path}"))


def test_a_damaged_folder_is_named(tmp_path):
    open_store(url(tmp_path)).close()
    (tmp_path / "meta.json").write_text("")
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{tmp_path} cannot be read"):
            open_store(url(tmp_path))


def test_many_threads_write_and_search_at_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    store = open_store(url(tmp_path))
    collection.create(store, "docs", StoreConfig(), 4, {})
    query = points([0]).vectors[""]

    def work(n: int) -> int:
        store.upsert("docs", points([n]))
        return len(nearest(store, "docs", query, 50)[0])

    with ThreadPoolExecutor(8) as threads:
        assert max(threads.map(work, range(50))) == 50
    rows = Points([ID[0]], {"": query}, [{"again": 1}])
    store.upsert("docs", rows)
    assert store.count("docs").count == 50
    store.close()
