"""A watched folder: whatever happens to its files, the collection is what they say; real processes, also killed."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import documents
import points
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from waiting import wait_for

from pipeline.config import StoreConfig
from pipeline.errors import UsageError
from pipeline.ingest import history
from pipeline.local import LocalExecutor
from pipeline.stores import open_store
from pipeline.streams import watch

DEADLINE = 60


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def put(file, rows):
    """Write a file as one should: under another name, then renamed."""
    fresh = file.with_name(f".{file.name}.new")
    documents.write(fresh, rows)
    fresh.replace(file)


class Here:
    """`watch` in a thread of this process, which costs a fraction of a process of its own."""

    def __init__(self, folder, index, model, cache, max_deletes="100%"):
        self.index, self.summary = index, None
        to = runs.settings(
            model, cache, f"edge:{index}", watch__max_latency_s=0.2, source__max_deletes=max_deletes
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder, to))

    def _run(self, folder, to):
        self.summary = watch(str(folder), to, LocalExecutor(), self._stop)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.drained()

    def settled(self, done):
        settled(self.index, done, lambda: self._thread.is_alive())

    def drained(self):
        self._stop.set()
        self._thread.join(DEADLINE)
        return self.summary


def settled(index, done, alive):
    """Wait until the manifest says that all is done, of these files alone."""
    wanted = {(name, 1) for name in done}
    wait_for(lambda: manifest(index) == wanted or not alive(), f"not {wanted}")
    assert alive()


class Watch:
    """`headwater watch` in a process of its own, to be killed."""

    def __init__(self, folder, index, model, cache, *more):
        self.index = index
        self.process = runs.start(
            "watch", folder, "--encoder", model, "--store", f"edge:{index}", "--collection", "docs", "--json",
            "--max-latency", "200ms", "--max-deletes", "100%", "--set", "chunking.max_tokens=48",
            "--set", "encoder.provider=cpu", "--set", "run.log=json", "--set", "run.log_level=info", *more, cache=cache,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def settled(self, done):
        settled(self.index, done, lambda: self.process.poll() is None)

    def drained(self):
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return runs.lines(out)[0], runs.lines(err)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def manifest(index):
    """(name, done) of each file, None while something is still due; empty before there is a manifest."""
    found = set()
    for file in index.glob(".headwater/*/watch-*.sqlite"):
        try:
            database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
            found |= {
                (uri.rpartition("/")[2], done) for uri, done in database.execute("select uri, done from file")
            }
            if database.execute("select count(*) from due").fetchone()[0]:
                return None
        except sqlite3.DatabaseError:  # being made, or made anew
            return None
        finally:
            database.close()
    return found


def expected(folder, tiny_model, encoder_cache, tmp_path):
    """What a run over the folder as it is makes of an empty store."""
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/oracle-{time.monotonic_ns()}")
    assert runs.run(folder, to).exit_code in (0, 3)
    return points.contents_of(to.store.url, "docs")


def check(index, folder, tiny_model, encoder_cache, tmp_path):
    found = points.contents_of(f"edge:{index}", "docs")
    points.assert_same(expected(folder, tiny_model, encoder_cache, tmp_path), found)


def test_files_that_come_change_move_and_go(folder, tiny_model, encoder_cache, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="pipeline.streams.watch")
    rows = documents.rows(60)
    put(folder / "a.parquet", rows[:20])
    index = tmp_path / "index"
    with Here(folder, index, tiny_model, encoder_cache) as here:
        here.settled(["a.parquet"])
        put(folder / "b.parquet", rows[20:40])
        here.settled(["a.parquet", "b.parquet"])
        put(folder / "c.parquet", [{**rows[3], "text": "it wins over a's."}, *rows[40:50]])
        here.settled(["a.parquet", "b.parquet", "c.parquet"])
        put(folder / "b.parquet", [*rows[25:40], *rows[50:60]])  # lost five, got ten
        time.sleep(0.1)
        (folder / "c.parquet").unlink()  # a's version of the document is the best again
        here.settled(["a.parquet", "b.parquet"])
        (folder / "b.parquet").rename(folder / "d.parquet")
        here.settled(["a.parquet", "d.parquet"])
        summary = here.drained().as_dict()
    assert summary["removed"] == 15
    assert summary["read"] == sum(
        summary[outcome] for outcome in ("indexed", "unchanged", "patched", "deleted", "stale", "rejected")
    )
    told = [record.msg for record in caplog.records if record.msg["event"] == "file_searchable"]
    assert {event["uri"].rpartition("/")[2] for event in told} == {
        "a.parquet", "b.parquet", "c.parquet", "d.parquet",
    }  # fmt: skip
    check(index, folder, tiny_model, encoder_cache, tmp_path)


def test_killed_at_any_moment_and_started_again_it_is_right(folder, tiny_model, encoder_cache, tmp_path):
    """The file that was being indexed changes and loses documents while nobody watches."""
    index = tmp_path / "index"
    rows = documents.rows(2000)
    put(folder / "a.parquet", rows[:100])
    with Watch(folder, index, tiny_model, encoder_cache) as watch:
        watch.settled(["a.parquet"])
        put(folder / "b.parquet", rows[50:])
        wait_for(lambda: manifest(index) and ("b.parquet", 0) in manifest(index))
        time.sleep(0.4)
        watch.kill()
    assert ("b.parquet", 0) in manifest(index)
    put(folder / "b.parquet", rows[200:220])
    (folder / "a.parquet").unlink()
    with Watch(folder, index, tiny_model, encoder_cache) as watch:
        watch.settled(["b.parquet"])
        summary, _ = watch.drained()
    assert summary["removed"] >= 100  # a's, and what came of the first b
    check(index, folder, tiny_model, encoder_cache, tmp_path)


def test_without_its_manifest_it_compares_everything(folder, tiny_model, encoder_cache, tmp_path):
    index = tmp_path / "index"
    rows = documents.rows(60)
    put(folder / "a.parquet", rows[:40])
    put(folder / "b.parquet", rows[40:])
    with Here(folder, index, tiny_model, encoder_cache) as here:
        here.settled(["a.parquet", "b.parquet"])
    for file in index.glob(".headwater/*/watch-*"):
        file.write_bytes(b"damaged")
    (folder / "b.parquet").unlink()
    with Here(folder, index, tiny_model, encoder_cache) as here:
        here.settled(["a.parquet"])
    counts = here.summary.counts
    assert (counts.removed, counts.unchanged, counts.indexed) == (20, 40, 0)
    check(index, folder, tiny_model, encoder_cache, tmp_path)


def test_half_a_file_waits_and_too_many_deletes_are_refused(folder, tiny_model, encoder_cache, tmp_path):
    index = tmp_path / "index"
    rows = documents.rows(60)
    put(folder / "a.parquet", rows[:40])
    whole = documents.write(tmp_path / "whole.parquet", rows[40:]).read_bytes()
    with Here(folder, index, tiny_model, encoder_cache, "10%") as here:
        here.settled(["a.parquet"])
        (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
        time.sleep(1)
        assert manifest(index) == {("a.parquet", 1)}
        (folder / "b.parquet").write_bytes(whole)
        here.settled(["a.parquet", "b.parquet"])
        (folder / "a.parquet").unlink()
        wait_for(lambda: manifest(index) is None)
        time.sleep(0.5)
    assert here.summary.exit_code == 1
    assert "40 of 60 documents are in no file any more" in here.summary.refused
    assert len(ids(f"edge:{index}")) == 60


def test_status_tells_up_to_when_files_are_searchable(folder, tiny_model, encoder_cache, tmp_path):
    index = tmp_path / "index"
    put(folder / "a.parquet", [*documents.rows(3), {**documents.rows(1)[0], "id": "blank", "text": " "}])
    os.utime(folder / "a.parquet", (1_800_000_000, 1_800_000_000))
    with Here(folder, index, tiny_model, encoder_cache) as here:
        here.settled(["a.parquet"])
        wait_for(lambda: b"watched" in next(index.glob(".headwater/*/run-*.jsonl")).read_bytes())
        (run,) = history(runs.settings(tiny_model, encoder_cache, f"edge:{index}"))
        assert run.state == "running"
    assert (run.watermark, run.committed.indexed) == ("2027-01-15T08:00:00.000+00:00", 3)
    assert here.summary.exit_code == 3  # one document is rejected
    assert here.summary.dead_letter


def test_what_cannot_be_watched_is_a_mistake_of_the_user(folder, tiny_model, encoder_cache, tmp_path):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index")
    with pytest.raises(UsageError, match="does not exist"):
        watch(str(folder / "none"), to, LocalExecutor(), threading.Event())
    put(folder / "a.parquet", [{"name": "x", "text": "a text"}])
    with pytest.raises(UsageError, match="no column 'id'"):
        watch(str(folder), to, LocalExecutor(), threading.Event())
    with pytest.raises(UsageError, match="one lane"):
        watch(
            str(folder),
            runs.settings(tiny_model, encoder_cache, "memory:", run__executor="ray"),
            LocalExecutor(),
            threading.Event(),
        )


def ids(url):
    return {payload["headwater"]["document_id"] for payload, _ in points.contents_of(url, "docs").values()}


def test_a_stream_on_stdin_is_searchable_while_it_goes_on(qdrant, tiny_model, encoder_cache, tmp_path):
    rows = documents.rows(12)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pipeline.cli", "watch", "-", "--encoder", str(tiny_model), "--max-latency", "200ms",
            "--store", qdrant.grpc_url, "--collection", "streamed", "--json", "--set", f"run.state={tmp_path}",
        ],
        env={**os.environ, "HEADWATER_ENCODER__CACHE": str(encoder_cache)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    store = open_store(StoreConfig(url=qdrant.grpc_url))
    try:
        with pa.ipc.new_stream(process.stdin, pa.Table.from_pylist(rows).schema) as writer:

            def send(some):
                writer.write_table(pa.Table.from_pylist(some, schema=pa.Table.from_pylist(rows).schema))
                process.stdin.flush()

            send(rows[:5])
            wait_for(lambda: store.collection_exists("streamed") and documents_of(store) == set(range(5)))
            again = {**rows[1], "text": "what overtakes it."}
            send([*rows[5:], {**rows[0], "id": "", "text": "nobody"}, rows[1], again])
            wait_for(lambda: documents_of(store) == set(range(12)))
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3, err
    summary = runs.lines(out.decode())[0]
    assert (summary["read"], summary["indexed"], summary["stale"], summary["rejected"]) == (15, 13, 1, 1)
    assert pq.read_table(summary["dead_letter"]).select(["row", "reason"]).to_pylist() == [
        {"row": 12, "reason": "null_id"}
    ]
    texts = {payload["text"] for payload, _ in points.contents(store, "streamed").values()}
    assert "what overtakes it." in texts
    store.close()


def documents_of(store):
    return {
        int(payload["headwater"]["document_id"][4:])
        for payload, _ in points.contents(store, "streamed").values()
    }
