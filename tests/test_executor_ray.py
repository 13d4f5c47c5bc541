"""Lanes on a real Ray: placed on GPUs, killed, hung, poisoned."""

import os
import signal
import threading
import time

import documents
import points
import pytest
import runs

from pipeline.ingest import ingest
from workers.executor import RayExecutor

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return documents.write(
        tmp_path_factory.mktemp("source") / "docs.parquet", documents.rows(200), row_group=5
    )


@pytest.fixture(scope="module")
def unharmed(source, tiny_model, encoder_cache, tmp_path_factory):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path_factory.mktemp('unharmed')}/index")
    runs.run(source, to)
    return points.contents_of(to.store.url, "docs")


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    return runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", run__lanes=2)


def when_indexing(act, after=1):
    """An observer that calls `act` once, when documents are being indexed."""
    done = threading.Event()

    def observe(progress):
        if progress.stage == "indexing" and progress.documents >= after and not done.is_set():
            done.set()
            act()

    return observe, done


def test_a_killed_lane_is_replaced_and_nothing_is_lost_or_doubled(local_ray, source, unharmed, to):
    victims = []

    def kill():
        victims.append(executor.places()[0].pid)
        os.kill(victims[0], signal.SIGKILL)

    executor = RayExecutor(to)
    observe, killed = when_indexing(kill)
    summary = ingest(str(source), to, executor, threading.Event(), observe)
    assert killed.is_set()
    assert summary.exit_code == 0
    assert summary.counts.read == summary.counts.indexed == 200
    points.assert_same(unharmed, points.contents_of(to.store.url, "docs"))


def test_a_hung_lane_is_replaced_after_its_deadline(
    local_ray, source, unharmed, to, tiny_model, encoder_cache
):
    to = runs.settings(
        tiny_model, encoder_cache, to.store.url, run__lanes=2, run__split_deadline_s=5, run__split_attempts=5
    )

    def hang():
        os.kill(executor.places()[0].pid, signal.SIGSTOP)

    executor = RayExecutor(to)
    observe, done = when_indexing(hang)
    began = time.monotonic()
    summary = ingest(str(source), to, executor, threading.Event(), observe)
    assert done.is_set()
    assert time.monotonic() - began > 5
    assert summary.exit_code == 0
    points.assert_same(unharmed, points.contents_of(to.store.url, "docs"))


def test_lanes_land_one_per_gpu(local_ray, source, unharmed, tiny_model, encoder_cache, tmp_path):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", encoder__provider="auto")
    executor = RayExecutor(to)
    seen = set()

    def observe(progress):
        seen.update((place.pid, place.gpus) for place in executor.places())

    summary = ingest(str(source), to, executor, threading.Event(), observe)
    assert summary.exit_code == 0
    assert sorted(gpus for _, gpus in seen) == ["0", "1"]
    points.assert_same(unharmed, points.contents_of(to.store.url, "docs"))


def test_a_stopped_run_drains_and_the_next_one_finishes_it(local_ray, source, unharmed, to):
    stop = threading.Event()
    observe, _ = when_indexing(stop.set)
    halted = ingest(str(source), to, RayExecutor(to), stop, observe)
    assert halted.exit_code == 130
    assert halted.counts.read < 200
    finished = ingest(str(source), to, RayExecutor(to), threading.Event())
    assert finished.exit_code == 0
    assert finished.counts.read == 200
    points.assert_same(unharmed, points.contents_of(to.store.url, "docs"))
