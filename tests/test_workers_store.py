"""The process that holds an edge store for lanes on Ray: killed or frozen, it is replaced, and the run goes on."""

import os
import signal
import threading
import time

import documents
import points
import psutil
import pytest
import runs
from waiting import wait_for

from pipeline.ingest import ingest
from workers import store as module
from workers.executor import RayExecutor

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
def test_a_holder_in_mid_run_that_is_frozen_or_dead_is_replaced(
    blow, local_ray, tiny_model, encoder_cache, tmp_path, caplog
):
    source = documents.write(tmp_path / "docs.parquet", documents.rows(60), row_group=5)
    plain = runs.settings(tiny_model, encoder_cache, f"memory:{tmp_path}", run__state=f"{tmp_path}/plain")
    runs.run(source, plain)
    more = {"run__lanes": 1, "run__state": str(tmp_path), "store__timeout_s": 3, "run__lease_s": 60}
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", **more)
    executor, struck = RayExecutor(to), []

    def strike(state):
        if state.documents and not struck:
            struck.append(executor.store_process())
            os.kill(struck[0], blow)

    summary = ingest(str(source), to, executor, threading.Event(), strike)
    assert (summary.exit_code, summary.counts.read) == (0, 60)
    assert struck
    wait_for(lambda: gone(struck[0]))
    points.assert_same(points.contents_of(plain.store.url, "docs"), points.contents_of(to.store.url, "docs"))
    if blow == signal.SIGSTOP:  # one that died is silent, too, where Ray is slow to start another
        assert "store_silent" in caplog.text


def test_a_frozen_holder_does_not_keep_a_run_from_ending(local_ray, tiny_model, encoder_cache, tmp_path):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", store__timeout_s=1)
    executor = RayExecutor(to)
    executor.open_store(to.store).get_collections()
    time.sleep(2 * module._SIGN_S)
    holder = executor.store_process()
    os.kill(holder, signal.SIGSTOP)
    executor.close()
    assert gone(holder)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
