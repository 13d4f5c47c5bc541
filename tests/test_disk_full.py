"""Disks fill up: the message says which and what to do, nothing is lost, and with room again the run is finished."""

import resource
import threading
from types import SimpleNamespace

import documents
import points
import pytest
import runs

from pipeline.errors import StoreError, StoreFull
from pipeline.ingest import history, ingest, state_folder
from pipeline.local import LocalExecutor
from pipeline.schemas import Rejected
from pipeline.sync import write_rejected


@pytest.fixture
def source(tmp_path):
    return documents.write(tmp_path / "docs.parquet", documents.rows(40, most_words=60), row_group=4)


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    def make(store, state="state"):
        return runs.settings(tiny_model, encoder_cache, store, run__state=f"{tmp_path}/{state}")

    return make


@pytest.fixture
def unharmed(to, source, tmp_path):
    settings = to(f"memory:{tmp_path}/unharmed", "unharmed")
    runs.run(source, settings)
    return points.contents_of(settings.store.url, "docs")


def check_again(source, settings, unharmed):
    summary = runs.run(source, settings)
    assert (summary.exit_code, summary.counts.read, summary.counts.rejected) == (0, 40, 0)
    points.assert_same(points.contents_of(settings.store.url, "docs"), unharmed)
    return summary


def test_a_ledger_that_is_cut_in_the_middle_of_a_line(to, source, tmp_path, unharmed):
    settings = to(f"memory:{tmp_path}/c")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(state):
        if state.documents:  # no file of this process may grow past this
            (ledger,) = state_folder(settings).glob("*/run-*.jsonl")
            resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.stat().st_size + 60, limits[1]))

    try:
        with pytest.raises(StoreError) as failed:
            ingest(str(source), settings, LocalExecutor(), threading.Event(), fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "what the run remembers cannot be written" in failed.value.got
    assert "room on its disk" in failed.value.need
    assert "nothing is lost" in failed.value.do
    (ledger,) = state_folder(settings).glob("*/run-*.jsonl")
    assert not ledger.read_bytes().endswith(b"\n")  # torn by the limit
    check_again(source, settings, unharmed)


def test_an_edge_store_that_runs_out_of_room(to, source, tmp_path, unharmed, monkeypatch):
    settings = to(f"edge:{tmp_path}/index")
    asked = []

    def usage(_):
        asked.append(1)
        return SimpleNamespace(free=(1 << 40) if len(asked) < 20 else (40 << 20) - len(asked))

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.stores.edge.shutil.disk_usage", usage)
        patched.setattr("pipeline.stores.edge._BYTES_PER_BYTE", 4000)
        with pytest.raises(StoreFull, match=r"MiB left.*Free some space"):
            runs.run(source, settings)
    (first,) = history(settings)
    assert first.state == "failed"
    assert 0 < len(points.contents_of(settings.store.url, "docs")) < len(unharmed)
    check_again(source, settings, unharmed)


def test_a_list_of_rejected_documents_that_has_no_place(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_rejected(tmp_path / "none" / "x.parquet", [Rejected("a", "u", 0, "read", "null_id", "m")])
