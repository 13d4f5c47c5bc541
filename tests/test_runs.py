"""Runs by name, one at a time, and what is remembered of them."""

import signal
import threading
import time

import documents
import points
import pytest
import runs

from pipeline.config import StoreConfig
from pipeline.errors import CollectionHeld, LeaseLost, StoreUnavailable, UsageError
from pipeline.ingest import RUN_KEY, history, ingest
from pipeline.local import LocalExecutor
from pipeline.stores import Lease, Purpose, collection, open_store


@pytest.fixture
def source(tmp_path):
    return documents.write(tmp_path / "docs.parquet", documents.rows(40), row_group=5)


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    return lambda **more: runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", **more)


class StopsAfter(LocalExecutor):
    """Stops the run after so many splits."""

    def __init__(self, splits, stop):
        super().__init__()
        self._left, self._halt = splits, stop

    def run(self, job, splits, stop):
        for done in super().run(job, splits, stop):
            yield done
            self._left -= 1
            if not self._left:
                self._halt()


def interrupt(source, settings, after=3):
    stop = threading.Event()
    return ingest(str(source), settings, StopsAfter(after, stop.set), stop)


def test_a_named_run_resumes_and_then_says_that_it_is_done(source, to):
    named = to(run__id="nightly-1")
    first = interrupt(source, named)
    assert first.exit_code == 130
    second = runs.run(source, named)
    assert second.run == "nightly-1"
    assert second.resumed_splits >= 3
    assert second.earlier == first.counts
    assert second.counts.indexed + second.counts.unchanged == 40
    assert not second.finished_at
    third = runs.run(source, named)
    assert third.finished_at
    assert third.counts == second.counts
    assert third.exit_code == 0


def test_a_finished_name_stays_finished_and_another_name_runs_again(source, to):
    runs.run(source, to(run__id="monday"))
    tuesday = runs.run(source, to(run__id="tuesday"))
    assert not tuesday.finished_at
    assert tuesday.resumed_splits == 0
    assert runs.run(source, to(run__id="monday")).finished_at
    with pytest.raises(UsageError, match="monday"):
        runs.run(source, to(run__id="monday", source__metadata=()))


def test_history_tells_of_every_run(source, to):
    interrupt(source, to(run__id="a"))
    runs.run(source, to(run__id="b"))
    b, a = history(to())
    assert (a.header.run, a.state) == ("a", "interrupted")
    assert (b.header.run, b.state, b.splits_done) == ("b", "finished", 8)
    assert b.summary["read"] == b.committed.read == b.header.documents == 40
    assert history(to(store__collection="others")) == []


class TakenOver(LocalExecutor):
    """After its first split, another run takes the collection over, as after a long pause of this machine."""

    def open_store(self, config, purpose=""):
        self.store = super().open_store(config, purpose)
        return self.store

    def run(self, job, splits, stop):
        for number, done in enumerate(super().run(job, splits, stop)):
            yield done
            if number == 0:
                thief = threading.Thread(target=take_over, args=(self.store, stop))
                thief.start()
                thief.join()


def take_over(store, stop):
    from dataclasses import replace

    from pipeline.stores import lease

    while True:
        seen = lease._read(store, "docs")
        if lease._swap(store, seen, replace(seen, epoch=seen.epoch + 1, beat=0, token="thief", run="thief")):
            break
    store.update_collection(collection.resolve(store, "docs"), metadata={RUN_KEY: "thief"})
    assert stop.wait(10)


def test_a_run_that_lost_its_lease_stops_and_does_not_resume_over_the_other(source, to):
    with pytest.raises(LeaseLost, match="taken over"):
        ingest(str(source), to(run__lease_s=0.5), TakenOver(), threading.Event())
    assert history(to())[0].state == "running"  # this very process; nobody wrote that it ended
    again = runs.run(source, to())
    assert again.resumed_splits == 0
    assert again.counts.indexed + again.counts.unchanged == 40


class Breaks(LocalExecutor):
    """Fails after its first split."""

    def run(self, job, splits, stop):
        yield next(super().run(job, splits, stop))
        raise StoreUnavailable("the store is gone")


def test_a_run_that_an_error_ended_has_failed_and_resumes(source, to):
    with pytest.raises(StoreUnavailable):
        ingest(str(source), to(), Breaks(), threading.Event())
    (run,) = history(to())
    assert (run.state, run.error) == ("failed", "the store is gone.")
    assert runs.run(source, to()).resumed_splits == 1


def test_on_a_server_the_second_run_says_that_the_first_works(source, to, qdrant, tmp_path):
    settings = to(store__url=qdrant.grpc_url, store__collection="leased", run__state=str(tmp_path / "state"))
    store = open_store(settings.store)
    held = Lease.take(store, "leased", "nightly", 30.0, threading.Event())
    beating = threading.Event()

    def beat():
        while not beating.wait(0.5):
            held.beat()

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(CollectionHeld, match="nightly"):
            runs.run(source, settings)
        assert not store.collection_exists("leased")  # nothing was done
    finally:
        beating.set()
        heart.join()
        held.release()
    assert runs.run(source, settings).counts.indexed == 40
    store.close()


def wait_for_a_split(folder):
    """Until a run that keeps its state in `folder` has written down its first split."""
    deadline = time.monotonic() + 60
    while not any(b'"split":' in ledger.read_bytes() for ledger in folder.glob("*/run-*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_runs_as_two_commands(tiny_model, encoder_cache, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(300, most_words=80), row_group=5)
    command = [
        "ingest", file, "--encoder", tiny_model, "--store", f"edge:{tmp_path}/index", "--collection", "docs",
        "--json", "--set", "run.commit_every_s=0", "--set", "chunking.max_tokens=48",
    ]  # fmt: skip
    first = runs.start(*command, "--run-id", "first", cache=encoder_cache)
    wait_for_a_split(tmp_path / "index" / ".headwater")
    first.send_signal(signal.SIGSTOP)  # it is at work for as long as the others take to start
    status = ["status", "--store", f"edge:{tmp_path}/index", "--json"]
    (listed,) = runs.lines(runs.command(*status, cache=encoder_cache).stdout)
    assert (listed[0]["run"], listed[0]["state"]) == ("first", "running")
    second = runs.command(*command, cache=encoder_cache)
    assert second.returncode == 0, second.stderr
    (said,) = runs.lines(second.stdout)
    assert "ingest into 'docs'" in said["held"]
    assert str(first.pid) in said["held"]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (listed,) = runs.lines(runs.command(*status, cache=encoder_cache).stdout)
    assert listed[0]["state"] == "lost"
    resumed = runs.command(*command, "--run-id", "first", cache=encoder_cache)
    assert resumed.returncode == 0, resumed.stderr
    assert runs.lines(resumed.stdout)[0]["resumed_splits"] > 0
    table = runs.command(
        "status", "--store", f"edge:{tmp_path}/index", "--collection", "docs", cache=encoder_cache
    )
    assert "finished" in table.stdout
    assert len(points.contents_of(f"edge:{tmp_path}/index", "docs")) >= 300


def test_a_folder_held_for_another_purpose_is_an_error(source, to, tmp_path):
    store = open_store(StoreConfig(url=f"edge:{tmp_path}/index"), Purpose.SEARCH)
    done = runs.command(
        "ingest", source, "--store", f"edge:{tmp_path}/index", "--collection", "docs", cache=tmp_path
    )
    store.close()
    assert done.returncode == 1
    assert "search" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_was_stopped_past_its_lease_writes_nothing_over_the_next_one(
    tiny_model, encoder_cache, qdrant, tmp_path
):
    """As when a machine freezes: SIGSTOP, another run with newer texts takes over and ends, SIGCONT."""
    rows = documents.rows(600, most_words=80)
    old = documents.write(tmp_path / "old.parquet", rows, row_group=5)
    newer = [{**row, "text": f"Newer. {row['text']}"} for row in rows]
    new = documents.write(tmp_path / "new.parquet", newer, row_group=50)

    def command(source):
        return [
            "ingest", source, "--encoder", tiny_model, "--store", qdrant.grpc_url, "--collection", "frozen",
            "--json", "--set", "run.commit_every_s=0", "--set", "chunking.max_tokens=48",
            "--set", "run.lease_s=1.5", "--set", f"run.state={tmp_path}/state",
        ]  # fmt: skip

    frozen = runs.start(*command(old), cache=encoder_cache)
    wait_for_a_split(tmp_path / "state")
    frozen.send_signal(signal.SIGSTOP)
    following = runs.command(*command(new), cache=encoder_cache)
    assert following.returncode == 0, following.stderr
    store = open_store(StoreConfig(url=qdrant.grpc_url))
    after = points.contents(store, "frozen")
    frozen.send_signal(signal.SIGCONT)
    _, err = frozen.communicate(timeout=60)
    assert frozen.returncode == 1
    assert "taken over" in err
    points.assert_same(after, points.contents(store, "frozen"))
    assert all(payload["text"].startswith("Newer") for payload, _ in after.values() if is_head(payload))
    store.close()


def is_head(payload):
    return payload["headwater"]["chunk_index"] == 0
