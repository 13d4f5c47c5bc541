"""`headwater ingest --executor ray` as processes: with no Ray around, on a running cluster, as a submitted job."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

import documents
import metrics_page
import points
import psutil
import pytest
import runs

from pipeline.config import StoreConfig
from pipeline.stores import open_store

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


class Machine:
    """One machine of a cluster: what `ray start` starts, with ports of its own and no way out."""

    def __init__(self, folder, *arguments):
        self.mark = uuid.uuid4().hex
        self.log = folder / f"{self.mark}.log"
        agent = ["--dashboard-agent-listen-port", free_port(), "--dashboard-agent-grpc-port", free_port()]
        command = [sys.executable, "-c", RAY, "start", "--block", "--num-cpus", 2, *agent, *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=os.environ | {"HW_TEST_MARK": self.mark},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: "--block" in self.log.read_text() or self.process.poll())
        assert self.process.poll() is None, self.log.read_text()

    def kill(self):
        """End all of it at once, as a power cut would."""
        for process in processes(self.mark):
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()


RAY = "from ray.scripts.scripts import main; main()"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head(Machine):
    """A running Ray that takes jobs, too."""

    def __init__(self, folder):
        self.address = f"127.0.0.1:{free_port()}"
        self.dashboard = free_port()
        self.metrics = free_port()
        port = self.address.partition(":")[2]
        ports = ["--dashboard-port", self.dashboard, "--metrics-export-port", self.metrics]
        super().__init__(folder, "--head", "--port", port, *ports)

    def page(self):
        """What Prometheus would read of this machine."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as page:
            return page.read().decode()


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    head = Head(tmp_path_factory.mktemp("head"))
    yield head
    head.kill()


@pytest.fixture
def arguments(source, tiny_model, encoder_cache, tmp_path):
    def make(store, state=tmp_path / "state"):
        return [
            "ingest", source, "--encoder", tiny_model, "--store", store, "--collection", "docs", "--json",
            "--executor", "ray", "--set", "run.lanes=2", "--set", "chunking.max_tokens=48",
            "--set", "run.commit_every_s=0", "--set", "encoder.provider=cpu", "--set", f"run.state={state}",
            "--set", f"encoder.cache={encoder_cache}",
        ]  # fmt: skip

    return make


@pytest.fixture
def marked(monkeypatch):
    """A function that lists the processes started under this test."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("HW_TEST_MARK", mark)

    return lambda: processes(mark)


def processes(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HW_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.02)
    return found


def commits(state):
    return sum(ledger.read_bytes().count(b"\"split\":") for ledger in Path(state).glob("*/*.jsonl"))


def wait_for_commits(process, state, more_than=2):
    """Wait until some splits are committed; the run must still be going on then."""
    try:
        wait_for(lambda: commits(state) > more_than or process.poll() is not None)
        assert process.poll() is None
    except AssertionError:
        process.kill()
        raise AssertionError(process.communicate()) from None


def lanes(processes):
    return [process for process in processes if "LaneActor" in " ".join(process.cmdline())]


def test_with_no_ray_around_a_lane_dies_and_nothing_is_left_behind(
    arguments, encoder_cache, unharmed, tmp_path, marked
):
    process = runs.start(*arguments(f"edge:{tmp_path}/index"), cache=encoder_cache)
    wait_for_commits(process, tmp_path / "state")
    lanes(marked())[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (summary,) = runs.lines(out)  # and nothing but JSON, whatever Ray has to say of a death
    assert summary["indexed"] == 1200
    assert "Traceback" not in err
    points.assert_same(unharmed, stored(tmp_path))
    wait_for(lambda: not marked(), 15)


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
    assert summary["indexed"] == 1200
    points.assert_same(unharmed, stored(tmp_path))
    wait_for(lambda: not marked(), 30)


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
    wait_for(lambda: not marked(), 15)


def is_head(payload):
    return payload["headwater"]["chunk_index"] == 0


def stored(folder):
    return points.contents_of(f"edge:{folder}/index", "docs")


def ready(answer):
    """The answer of a cluster that takes jobs; None while it is still starting."""
    return None if "No available agent" in answer[1] else answer


def test_as_a_job_its_status_is_that_of_the_run(head, arguments, tmp_path):
    headwater = Path(sys.executable).parent / "headwater"
    submit = ["job", "submit", "--address", f"http://127.0.0.1:{head.dashboard}", "--", headwater]

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-c", RAY, *submit, *command],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, log = wait_for(lambda: ready(run(*arguments(f"edge:{tmp_path}/index"))))
    assert code == 0, log
    assert '"indexed": 1200' in log
    assert "succeeded" in log
    broken = arguments(f"edge:{tmp_path}/index")
    broken[1] = tmp_path / "missing.parquet"
    code, log = run(*broken)
    assert code == 1, log
    assert "failed" in log
    assert "missing.parquet" in log
    assert "Traceback" not in log


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
    assert summary["indexed"] == 1200
    points.assert_same(unharmed, stored(tmp_path))


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
    text = head.page()  # at once: Ray has passed on the last numbers of driver and lanes when they ended
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


def test_a_machine_lost_half_way_costs_no_split_an_attempt(
    head, arguments, encoder_cache, unharmed, qdrant, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    machine = Machine(tmp_path, "--address", head.address)
    again = [*arguments(qdrant.grpc_url), "--set", "run.split_attempts=1"]
    again[again.index("docs")] = "lost-machine"
    process = runs.start(*again, cache=encoder_cache)
    wait_for(lambda: lanes(processes(machine.mark)))
    wait_for_commits(process, tmp_path / "state", commits(tmp_path / "state") + 20)
    machine.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    (summary,) = runs.lines(out)
    assert summary["indexed"] == 1200
    store = open_store(StoreConfig(url=qdrant.rest_url, prefer_grpc=False, collection="lost-machine"))
    points.assert_same(unharmed, points.contents(store, "lost-machine"))
    store.close()
