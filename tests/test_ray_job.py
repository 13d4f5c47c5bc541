"""`ray job submit` on a real cluster of two machines: status, loss of a machine, submitted again."""

import sys
from pathlib import Path

import documents
import points
import pytest
import runs
from cluster import Machine, commits, ingest_arguments, lanes, processes
from ray.job_submission import JobStatus, JobSubmissionClient
from waiting import wait_for

from pipeline.config import StoreConfig
from pipeline.stores import open_store

pytestmark = pytest.mark.ray

HEADWATER = Path(sys.executable).parent / "headwater"
DOCUMENTS = 800


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = documents.rows(DOCUMENTS, most_words=80)
    return documents.write(tmp_path_factory.mktemp("source") / "docs.parquet", rows, row_group=5)


@pytest.fixture(scope="module")
def jobs(head):
    """A client of the cluster's jobs; a head that has just started takes none for a while."""

    def ready():
        try:
            client = JobSubmissionClient(f"http://127.0.0.1:{head.dashboard}")
            job = client.submit_job(entrypoint="true")
            return client if ended(client, job) else None
        except (RuntimeError, ConnectionError):
            return None

    return wait_for(ready)


def ended(jobs, job, seconds=120.0):
    wait_for(lambda: jobs.get_job_status(job).is_terminal(), seconds=seconds)
    return jobs.get_job_status(job)


def entrypoint(arguments):
    return " ".join(str(part) for part in [HEADWATER, *arguments])


def test_a_jobs_status_is_that_of_the_run(jobs, source, tiny_model, encoder_cache, tmp_path):
    arguments = ingest_arguments(
        source, tiny_model, encoder_cache, f"edge:{tmp_path}/index", tmp_path / "state"
    )
    good = jobs.submit_job(entrypoint=entrypoint(arguments))
    missing = ["ingest", tmp_path / "missing.parquet", *arguments[2:]]
    bad = jobs.submit_job(entrypoint=entrypoint(missing))
    assert ended(jobs, good) == JobStatus.SUCCEEDED, jobs.get_job_logs(good)
    assert f'"indexed": {DOCUMENTS}' in jobs.get_job_logs(good)
    assert ended(jobs, bad) == JobStatus.FAILED
    log = jobs.get_job_logs(bad)
    assert "missing.parquet" in log
    assert "Traceback" not in log


def test_machine_and_driver_lost_the_job_submitted_again_under_its_name_finishes_then_is_done(
    head, jobs, source, tiny_model, encoder_cache, qdrant, tmp_path
):
    """Offline: nothing is installed by a runtime environment. One attempt a split: a lost machine costs none."""
    state = tmp_path / "state"
    arguments = ingest_arguments(source, tiny_model, encoder_cache, qdrant.grpc_url, state)
    arguments[arguments.index("docs")] = "nightly"
    command = entrypoint([*arguments, "--run-id", "nightly-1", "--set", "run.split_attempts=1"])
    machine = Machine(tmp_path, "--address", head.address)
    first = jobs.submit_job(entrypoint=command, submission_id="nightly-1-attempt-1")
    wait_for(lambda: lanes(processes(machine.mark)))
    wait_for(lambda: commits(state) > 20)
    machine.kill()
    before = commits(state)
    wait_for(lambda: commits(state) > before + 10)  # the run outlives the machine, on the one that is left
    assert jobs.get_job_status(first) == JobStatus.RUNNING
    (driver,) = [p for p in processes(head.mark) if "nightly-1" in p.cmdline() and "ingest" in p.cmdline()]
    driver.kill()
    assert ended(jobs, first) == JobStatus.FAILED

    second = jobs.submit_job(entrypoint=command, submission_id="nightly-1-attempt-2")
    assert ended(jobs, second) == JobStatus.SUCCEEDED, jobs.get_job_logs(second)
    (summary,) = [line for line in jobs.get_job_logs(second).splitlines() if line.startswith("{")]
    summary = runs.lines(summary)[0]
    assert summary["run"] == "nightly-1"
    assert summary["resumed_splits"] > 20
    assert summary["indexed"] + summary["unchanged"] == DOCUMENTS
    third = jobs.submit_job(entrypoint=command, submission_id="nightly-1-attempt-3")
    assert ended(jobs, third) == JobStatus.SUCCEEDED, jobs.get_job_logs(third)
    assert "nothing was left to do" in jobs.get_job_logs(third)

    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/unharmed")
    runs.run(source, to)
    store = open_store(StoreConfig(url=qdrant.grpc_url))
    points.assert_same(points.contents_of(to.store.url, "docs"), points.contents(store, "nightly"))
    store.close()
