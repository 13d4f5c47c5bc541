"""`headwater ingest --executor ray` as processes: with no Ray around, on a running cluster."""

import json
import os
import re
import signal
import uuid
from pathlib import Path

import documents
import metrics_page
import points
import pytest
import runs
from cluster import ingest_arguments, lanes, processes, wait_for_commits
from waiting import wait_for

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return documents.write(
        tmp_path_factory.mktemp("source") / "docs.parquet", documents.rows(1200, most_words=80), row_group=5
    )


@pytest.fixture(scope="module")
def unharmed(source, tiny_model, encoder_cache, tmp_path_factory):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path_factory.mktemp('unharmed')}/index")
    runs.run(source, to)
    return points.contents_of(to.store.url, "docs")


@pytest.fixture
def arguments(source, tiny_model, encoder_cache, tmp_path):
    return lambda store: ingest_arguments(source, tiny_model, encoder_cache, store, tmp_path / "state")


@pytest.fixture
def marked(monkeypatch):
    """A function that lists the processes started under this test."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("HW_TEST_MARK", mark)

    return lambda: processes(mark)


def test_with_no_ray_around_a_lane_dies_and_nothing_is_left_behind(
    arguments, encoder_cache, unharmed, tmp_path, marked
):
    process = runs.start(*arguments(f"edge:{tmp_path}/index"), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "state")
    lanes(marked())[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (summary,) = runs.lines(out)  # and nothing but JSON, whatever Ray has to say of a death
    assert summary["indexed"] + summary["unchanged"] == 1200  # a split run again finds what it wrote before
    assert "Traceback" not in err
    points.assert_same(unharmed, stored(tmp_path))
    wait_for(lambda: not marked(), seconds=15)


def test_after_kill_9_of_the_driver_the_next_run_finishes_it(
    arguments, encoder_cache, unharmed, tmp_path, marked
):
    process = runs.start(*arguments(f"edge:{tmp_path}/index"), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "state")
    process.kill()
    process.communicate()
    again = runs.command(*arguments(f"edge:{tmp_path}/index"), cache=encoder_cache)
    assert again.returncode == 0, again.stderr
    (summary,) = runs.lines(again.stdout)
    assert summary["resumed_splits"] > 0
    assert summary["indexed"] + summary["unchanged"] == 1200  # a split run again finds what it wrote before
    points.assert_same(unharmed, stored(tmp_path))
    wait_for(lambda: not marked(), seconds=30)


def test_ctrl_c_in_a_terminal_drains_the_lanes(arguments, encoder_cache, tmp_path, marked):
    process = runs.start(*arguments(f"edge:{tmp_path}/index"), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "state")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Ray's own processes get it, too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (summary,) = runs.lines(out)
    assert summary["interrupted"]
    assert 0 < summary["read"] < 1200
    heads = {
        payload["headwater"]["document_id"] for payload, _ in stored(tmp_path).values() if is_head(payload)
    }
    assert len(heads) >= summary["indexed"]
    assert "Traceback" not in err
    wait_for(lambda: not marked(), seconds=15)


def is_head(payload):
    return payload["headwater"]["chunk_index"] == 0


def stored(folder):
    return points.contents_of(f"edge:{folder}/index", "docs")


def test_a_driver_killed_on_a_running_cluster_takes_its_lanes_with_it(
    head, arguments, encoder_cache, unharmed, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    monkeypatch.chdir(tmp_path)  # not the folder Ray was started in: relative paths are the driver's
    process = runs.start(*arguments("edge:./index"), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "state")
    process.kill()
    process.communicate()
    again = runs.command(*arguments("edge:./index"), cache=encoder_cache)
    assert again.returncode == 0, again.stderr
    (summary,) = runs.lines(again.stdout)
    assert summary["resumed_splits"] > 0
    assert summary["indexed"] + summary["unchanged"] == 1200  # a split run again finds what it wrote before
    points.assert_same(unharmed, stored(tmp_path))


def whole_page(head, summary):
    """The page once it has the last numbers of the lanes, which a busy machine passes on late."""
    text = head.page()
    counted = metrics_page.read(text, "ray_headwater_", "counted")
    return text if counted.get("encoder_tokens_total/text") == summary["tokens"] else ""


def test_the_driver_and_the_lanes_add_up_on_rays_metrics_endpoint_and_lanes_name_run_and_split(
    head, arguments, encoder_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    command = arguments(f"edge:{tmp_path}/index")
    command[command.index("docs")] = "counted"
    command[1] = documents.write(tmp_path / "docs.parquet", documents.rows(200), row_group=5)
    done = runs.command(
        *command, "--set", "run.log=json", "--set", "run.log_level=debug", cache=encoder_cache
    )
    assert done.returncode == 0, done.stderr
    (summary,) = runs.lines(done.stdout)
    text = wait_for(lambda: whole_page(head, summary), "the page lacks tokens of the lanes", 30)
    page = metrics_page.read(text, "ray_headwater_", "counted")
    assert metrics_page.counted(page) == metrics_page.done(summary)
    assert summary["indexed"] == 200
    assert page["encoder_tokens_total/text"] == summary["tokens"]
    assert page["encoder_seconds_count"] >= summary["chunks"] / 64
    assert page["upsert_seconds_count"] >= 40
    lanes = set(
        re.findall(r'ray_headwater_encoder_tokens_total.*collection="counted".*WorkerId="(\w+)"', text)
    )
    lanes |= set(
        re.findall(r'ray_headwater_encoder_tokens_total.*WorkerId="(\w+)".*collection="counted"', text)
    )
    assert len(lanes) == 2
    session = re.search(r'SessionName="([^"]+)"', text).group(1)
    logs = Path("/tmp/ray", session, "logs").glob("worker-*.err")
    said = [
        json.loads(line) for log in logs for line in log.read_text().splitlines() if "split_begun" in line
    ]
    of_run = [line for line in said if line["run"] == summary["run"]]
    assert len({line["split"] for line in of_run}) == 40
    assert all(line["event"] for line in runs.lines(done.stderr))  # and nothing that is no log line
