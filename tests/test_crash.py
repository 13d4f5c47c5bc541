"""Processes killed with SIGKILL in the middle of a run; run again, the collection is that of an unharmed run."""

import os
import signal
import time

import documents
import points
import pytest
import runs

COUNT = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return documents.write(
        tmp_path_factory.mktemp("source") / "docs.parquet", documents.rows(COUNT), row_group=10
    )


@pytest.fixture(scope="module")
def unharmed(source, tiny_model, encoder_cache, tmp_path_factory):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path_factory.mktemp('unharmed')}/index")
    assert runs.run(source, to).exit_code == 0
    return points.contents_of(to.store.url, "docs")


def arguments(source, model, url, *more):
    return [
        "ingest", source, "--encoder", model, "--store", url, "--collection", "docs", "--json",
        "--set", "chunking.max_tokens=48", "--set", "run.commit_every_s=0", "--set", "encoder.provider=cpu", *more,
    ]  # fmt: skip


def wait_for_commits(process, index, at_least):
    """Wait until some splits are committed; the run must still be going on then."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ledgers = list(index.glob(".headwater/*/*.jsonl"))
        if ledgers and ledgers[0].read_bytes().count(b'"split":') >= at_least:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("nothing was committed")


@pytest.mark.parametrize("commits", [1, 7])
def test_a_killed_driver_loses_and_doubles_nothing(
    commits, source, unharmed, tiny_model, encoder_cache, tmp_path
):
    url = f"edge:{tmp_path}/index"
    process = runs.start(*arguments(source, tiny_model, url), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "index", commits)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = runs.command(*arguments(source, tiny_model, url), cache=encoder_cache)
    assert again.returncode == 0, again.stderr
    summary = runs.lines(again.stdout)[0]
    assert summary["resumed_splits"] >= commits
    assert summary["read"] == summary["indexed"] + summary["unchanged"] == COUNT
    points.assert_same(unharmed, points.contents_of(url, "docs"))


def test_interrupted_by_ctrl_c_it_drains_and_exits_130(source, unharmed, tiny_model, encoder_cache, tmp_path):
    url = f"edge:{tmp_path}/index"
    process = runs.start(*arguments(source, tiny_model, url), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "index", 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    summary = runs.lines(out)[0]
    assert summary["interrupted"]
    assert 0 < summary["read"] < COUNT
    assert runs.command(*arguments(source, tiny_model, url), cache=encoder_cache).returncode == 0
    points.assert_same(unharmed, points.contents_of(url, "docs"))
