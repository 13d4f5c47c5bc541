"""Lanes on a real Ray that die, hang, never start or find no room.

Nothing is forwarded from one lane to another, so a reference that a death poisoned cannot be passed on; a trailer is
one answer, so a run cannot end early and look complete.
"""

import logging
import os
import re
import signal
import threading
import time
from pathlib import Path

import documents
import faulty
import metrics_page
import points
import pyarrow.parquet as pq
import pytest
import ray
import runs

from pipeline import errors
from pipeline.ingest import ingest
from workers import pool
from workers.executor import RayExecutor

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return documents.write(
        tmp_path_factory.mktemp("source") / "docs.parquet", documents.rows(60), row_group=5
    )


@pytest.fixture(scope="module")
def unharmed(source, tiny_model, encoder_cache, tmp_path_factory):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path_factory.mktemp('unharmed')}/index")
    runs.run(source, to)
    return points.contents_of(to.store.url, "docs")


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    def make(store=f"edge:{tmp_path}/index", **more):
        return runs.settings(
            tiny_model, encoder_cache, store, **{"run__lanes": 2, "run__state": str(tmp_path), **more}
        )

    return make


def test_documents_that_kill_lanes_are_rejected_alone_and_what_was_stored_of_them_stays(
    local_ray, to, tmp_path, monkeypatch
):
    good = documents.rows(24)
    runs.run(documents.write(tmp_path / "docs.parquet", good[:12], row_group=4), to())
    before = points.contents_of(to().store.url, "docs")
    bad = [
        {**row, "text": f"zebra {row['text']}"} if row["id"] in ("doc-1", "doc-20") else row for row in good
    ]
    source = documents.write(tmp_path / "docs.parquet", bad, row_group=4)

    monkeypatch.setattr(pool, "LaneActor", faulty.DiesOfZebras)
    counted = metrics_page.Kept()
    monkeypatch.setattr("workers.executor.RaySink", lambda _: counted)
    settings = to(run__split_attempts=1)
    summary = runs.run(source, settings, RayExecutor(settings))

    assert (summary.exit_code, summary.failed) == (3, ())
    assert (summary.counts.read, summary.counts.rejected) == (24, 2)
    assert summary.counts.indexed + summary.counts.unchanged == 22
    rejected = pq.read_table(summary.dead_letter).to_pylist()
    assert [(row["document_id"], row["row"], row["stage"], row["reason"]) for row in rejected] == [
        ("doc-1", 1, "lane", "kills_lane"),
        ("doc-20", 20, "lane", "kills_lane"),
    ]
    assert "died or hung on this document alone" in rejected[0]["message"]
    assert "died unexpectedly" in rejected[0]["message"]
    # three deaths corner a document, and one more where its lane had another split waiting
    assert 2 * 3 <= counted.total["headwater_retries/LaneDied"] <= 2 * 4
    assert counted.total["headwater_documents/rejected"] == 2

    after = points.contents_of(to().store.url, "docs")
    texts = {id: payload["text"] for id, (payload, _) in after.items()}
    assert {id: texts[id] for id in before} == {id: payload["text"] for id, (payload, _) in before.items()}
    stored = [payload["headwater"] for payload, _ in after.values()]
    assert {ours["document_id"] for ours in stored} == {row["id"] for row in good} - {"doc-20"}
    assert [ours["document_id"] for ours in stored if ours.get("rejected") == "kills_lane"] == ["doc-1"]


def test_a_document_on_which_lanes_hang_is_rejected_too(local_ray, to, tmp_path, monkeypatch):
    rows = documents.rows(7)
    rows[6]["text"] = "okapi"
    monkeypatch.setattr(pool, "LaneActor", faulty.DiesOfZebras)
    settings = to(run__split_deadline_s=5, run__split_attempts=1)
    source = documents.write(tmp_path / "docs.parquet", rows, row_group=6)
    summary = runs.run(source, settings, RayExecutor(settings))
    (rejected,) = pq.read_table(summary.dead_letter).to_pylist()
    assert (rejected["document_id"], rejected["reason"]) == ("doc-6", "kills_lane")
    assert "no document done and no trailer within 5 s" in rejected["message"]
    assert (summary.exit_code, summary.counts.indexed + summary.counts.unchanged) == (3, 6)


def test_an_error_that_passes_is_tried_again(local_ray, source, to, monkeypatch):
    monkeypatch.setattr(pool, "LaneActor", faulty.StoreAwayOnce)
    counted = metrics_page.Kept()
    monkeypatch.setattr("workers.executor.RaySink", lambda _: counted)
    summary = runs.run(source, to(), RayExecutor(to()))
    assert counted.total["headwater_retries/StoreUnavailable"] == 1
    assert summary.exit_code == 0
    assert summary.counts.indexed + summary.counts.unchanged == 60


def test_a_lane_that_finds_no_model_ends_the_run_with_its_own_error(local_ray, source, to, monkeypatch):
    monkeypatch.setattr(pool, "LaneActor", faulty.FindsNoModel)
    with pytest.raises(errors.EncoderError) as caught:
        runs.run(source, to(), RayExecutor(to()))
    assert type(caught.value) is errors.EncoderError
    assert caught.value.do == "Install it"


def test_lanes_that_all_die_at_start_end_the_run(local_ray, source, to, monkeypatch):
    monkeypatch.setattr(pool, "LaneActor", faulty.DiesAtStart)
    settings = to(run__lanes=1, run__split_attempts=1)
    with pytest.raises(errors.LaneDied, match="4 lanes died one after another"):
        runs.run(source, settings, RayExecutor(settings))


def when_indexing(act):
    """An observer that calls `act` once, when documents are being indexed."""
    done = threading.Event()

    def observe(progress):
        if progress.stage == "indexing" and progress.documents and not done.is_set():
            done.set()
            act()

    return observe, done


def test_lanes_that_hang_are_replaced_after_their_deadline(local_ray, source, to, unharmed, monkeypatch):
    monkeypatch.setattr(pool, "LaneActor", faulty.HangsOnceAtStart)
    settings = to(run__split_deadline_s=5, run__split_attempts=5)
    executor = RayExecutor(settings)
    observe, hung = when_indexing(lambda: os.kill(executor.places()[0].pid, signal.SIGSTOP))
    began = time.monotonic()
    summary = ingest(str(source), settings, executor, threading.Event(), observe)
    assert hung.is_set()
    assert time.monotonic() - began > 5
    assert summary.exit_code == 0
    points.assert_same(unharmed, points.contents_of(settings.store.url, "docs"))


def test_lanes_land_one_per_gpu(local_ray, source, to, unharmed, monkeypatch):
    monkeypatch.setattr(pool, "LaneActor", faulty.TwoOpenTogether)
    settings = to(run__lanes=0, encoder__provider="auto")
    executor = RayExecutor(settings)
    seen = set()
    summary = ingest(
        str(source), settings, executor, threading.Event(), lambda _: seen.update(executor.places())
    )
    assert summary.exit_code == 0
    assert sorted(place.gpus for place in seen) == ["0", "1"]
    points.assert_same(unharmed, points.contents_of(settings.store.url, "docs"))


@pytest.fixture
def occupied(local_ray):
    """Other work on the cluster, which leaves one CPU of four."""

    class Other:
        def here(self):
            return True

    other = ray.remote(Other).options(num_cpus=3).remote()
    ray.get(other.here.remote())
    yield
    ray.kill(other)


def test_fewer_lanes_than_wanted_do_all_of_it_and_say_so(occupied, source, to, monkeypatch, caplog):
    monkeypatch.setattr(pool, "PLACED_S", 0.5)
    settings = to(run__lanes=4)
    with caplog.at_level(logging.WARNING):
        assert runs.run(source, settings, RayExecutor(settings)).counts.indexed == 60
    assert re.search("[34] of 4 lanes wait for room", caplog.text)
    assert caplog.text.count("wait for room") == 1


def test_no_room_for_any_lane_is_an_error_after_the_deadline(occupied, source, to, monkeypatch):
    monkeypatch.setattr(pool, "PLACED_S", 0.1)
    settings = to(run__lanes=2, run__split_deadline_s=1)  # a lane takes two CPUs
    with pytest.raises(errors.LaneDied, match="a lane takes 2 CPUs and 0 GPUs of one machine, and 1 CPUs"):
        runs.run(source, settings, RayExecutor(settings))


def test_the_stores_process_killed_loses_no_acknowledged_point(local_ray, source, to, unharmed):
    settings = to(run__commit_every_s=0)
    executor = RayExecutor(settings)
    observe, killed = when_indexing(lambda: os.kill(executor.store_process(), signal.SIGKILL))
    summary = ingest(str(source), settings, executor, threading.Event(), observe)
    assert killed.is_set()
    assert summary.exit_code == 0
    assert summary.counts.indexed + summary.counts.unchanged == 60
    points.assert_same(unharmed, points.contents_of(settings.store.url, "docs"))


def test_lanes_killed_through_ray_are_replaced(local_ray, source, to, unharmed):
    executor = RayExecutor(to())
    observe, killed = when_indexing(lambda: [ray.kill(lane.actor) for lane in executor._pool._lanes])
    summary = ingest(str(source), to(), executor, threading.Event(), observe)
    assert killed.is_set()
    assert summary.exit_code == 0
    assert summary.counts.indexed + summary.counts.unchanged == 60
    points.assert_same(unharmed, points.contents_of(to().store.url, "docs"))


ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_keep_their_type_and_parts_over_ray(local_ray, kind):
    from workers.store import cause

    @ray.remote(max_retries=0)
    def fail():
        raise kind("got", "need", "do", **({"retry_after_s": 3.5} if kind is errors.StoreOverloaded else {}))

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    error = cause(caught.value)
    assert type(error) is kind
    assert (error.got, error.need, error.do) == ("got", "need", "do")
    assert getattr(error, "retry_after_s", 3.5) == 3.5


def test_a_key_is_in_no_log_of_ray(local_ray, source, to, tmp_path):
    from qdrant_server import running

    key = f"secret-{time.time_ns()}"
    with running(tmp_path / "qdrant", key) as server:
        settings = to(server.rest_url, store__api_key=key, store__prefer_grpc=False)
        assert runs.run(source, settings, RayExecutor(settings)).exit_code == 0
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    files = [file for file in logs.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if key.encode() in file.read_bytes()]
