"""What is scraped during a run adds up to the run's summary."""

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import documents
import pyarrow.parquet as pq
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st
from metrics_page import Kept, counted, done, read, reasons, scrape

from pipeline import metrics
from pipeline.config import load
from pipeline.errors import UsageError
from pipeline.ingest import ingest
from pipeline.local import LocalExecutor
from pipeline.schemas import Counts, Rejected, SplitAck


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = documents.rows(120)
    for number in (3, 47, 48):
        rows[number]["text"] = ""
    rows[90]["id"] = None
    rows[100]["id"] = rows[101]["id"]
    return documents.write(tmp_path_factory.mktemp("source") / "docs.parquet", rows, row_group=10)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path, port):
    def make(store=f"edge:{tmp_path}/index", **more):
        return runs.settings(tiny_model, encoder_cache, store, run__metrics_port=port, **more)

    return make


class Watched(LocalExecutor):
    """Calls `act(trailers so far)` each time the run has booked a trailer."""

    def __init__(self, act):
        super().__init__()
        self._act = act

    def run(self, job, splits, stop):
        seen = []
        for split, ack in super().run(job, splits, stop):
            yield split, ack
            seen.append(ack)
            self._act(seen)


def test_every_scrape_is_what_the_trailers_add_up_to_and_the_last_one_is_the_summary(source, to, port):
    pages = []

    def look(acks):
        page = scrape(port)
        assert counted(page) == sum((ack.counts for ack in acks), Counts()).as_dict()
        assert page["splits_done"] == len(acks)
        pages.append(page)

    with metrics.published(to().run, "docs"):
        summary = runs.run(source, to(), Watched(look))
        page = scrape(port)
    assert len(pages) == 12
    for before, after in zip([{}, *pages], [*pages, page], strict=True):
        assert all(value <= after[key] for key, value in before.items())
    assert counted(page) == summary.counts.as_dict()
    assert page["source_documents"] == summary.counts.read == 120
    assert page["splits"] == page["splits_done"] == 12
    file = Counter(pq.read_table(summary.dead_letter).column("reason").to_pylist())
    assert reasons(page) == file == {"empty_text": 3, "null_id": 1, "duplicate": 1}
    assert page["encoder_tokens_total/text"] == summary.counts.tokens
    assert 0 <= page["encoder_tokens_total/padding"] < summary.counts.tokens / 4
    assert page["encoder_seconds_count"] >= 12
    assert page["upsert_seconds_count"] >= 12
    assert 0 < page["upsert_seconds_sum"] < summary.seconds
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_resumed_run_counts_what_this_attempt_did(source, to, port):
    stop = threading.Event()
    executor = Watched(lambda acks: stop.set() if len(acks) == 3 else None)
    first = ingest(str(source), to(), executor, stop)
    assert first.interrupted
    with metrics.published(to().run, "docs"):
        second = runs.run(source, to())
        page = scrape(port)
    assert 3 <= second.resumed_splits < 12
    assert second.counts.read == 120
    assert 0 < second.earlier.read < 120
    assert counted(page) == done(second.as_dict())
    assert page["splits_done"] == page["splits"] == 12


def test_the_command_line_shows_a_run_while_it_lasts_and_leaves_a_file(
    source, tiny_model, encoder_cache, tmp_path, port
):
    file = tmp_path / "run.prom"
    process = runs.start(
        "ingest", source, "--encoder", tiny_model, "--store", f"edge:{tmp_path}/index", "--collection", "docs",
        "--json", "--set", f"run.metrics_port={port}", "--set", f"run.metrics_file={file}",
        "--set", "encoder.provider=cpu",
        cache=encoder_cache,
    )  # fmt: skip
    pages = []
    while process.poll() is None:
        try:
            pages.append(scrape(port))
        except OSError:
            time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode == 3, err
    (summary,) = runs.lines(out)
    assert len(pages) > 3
    for before, after in pairwise(pages):
        assert all(value <= after[key] for key, value in before.items())
    last = read(file.read_text())
    assert all(value <= last[key] for key, value in pages[-1].items())
    assert counted(last) == done(summary)
    assert sum(reasons(last).values()) == summary["rejected"] == 5
    assert abs(time.time() - last["run_finished_timestamp_seconds"]) < 60
    assert not list(tmp_path.glob("run.prom.*"))


def test_a_port_that_is_taken_is_said_before_anything_begins(
    source, tiny_model, encoder_cache, tmp_path, port
):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        done = runs.command(
            "ingest", source, "--encoder", tiny_model, "--store", f"edge:{tmp_path}/index", "--collection", "docs",
            "--set", f"run.metrics_port={port}", cache=encoder_cache,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"run.metrics_port {port} cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "index").exists()


def test_a_file_that_cannot_be_written_is_said_before_anything_begins(tmp_path):
    config = load(None, {"run.metrics_file": str(tmp_path / "no" / "run.prom")}).run
    with (
        pytest.raises(UsageError, match="cannot be written: No such file"),
        metrics.published(config, "docs"),
    ):
        pytest.fail("began")


def test_a_file_that_can_no_longer_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "there").mkdir()
    config = load(None, {"run.metrics_file": str(tmp_path / "there" / "run.prom")}).run
    with metrics.published(config, "docs"):
        (tmp_path / "there" / "run.prom").unlink()
        (tmp_path / "there").rmdir()
    assert "metrics_not_written" in caplog.text


def test_the_file_is_kept_up_while_the_run_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "WRITE_EVERY_S", 0.01)
    file = tmp_path / "run.prom"
    with metrics.published(load(None, {"run.metrics_file": str(file)}).run, "docs"):
        assert read(file.read_text())["documents_total/indexed"] == 0
        metrics.record(metrics.DOCUMENTS, 7, "indexed")
        deadline = time.monotonic() + 10
        while read(file.read_text())["documents_total/indexed"] != 7:
            assert time.monotonic() < deadline


def test_with_neither_port_nor_file_nothing_is_counted():
    with metrics.published(load().run, "docs"):
        assert metrics._sink is None
        metrics.record(metrics.CHUNKS, 1)


def test_after_an_error_nothing_is_counted_any_more(port):
    with (
        pytest.raises(ZeroDivisionError),
        metrics.published(load(None, {"run.metrics_port": port}).run, "docs"),
    ):
        raise ZeroDivisionError
    assert metrics._sink is None


@contextmanager
def kept():
    metrics.send_to(sink := Kept())
    try:
        yield sink.total
    finally:
        metrics.send_to(None)


amounts = st.integers(0, 1000)
trailers = st.builds(
    SplitAck,
    st.just("split"),
    st.builds(Counts, *[amounts] * 11),
    st.lists(
        st.builds(
            Rejected, st.none(), st.just("uri"), amounts, st.just("read"), st.sampled_from("abc"), st.just("")
        ),
        max_size=5,
    ).map(tuple),
)


@given(st.lists(trailers, max_size=5))
def test_trailers_add_up_in_any_number(acks):
    with kept() as total:
        for ack in acks:
            metrics.record_trailer(ack)
    counts = sum((ack.counts for ack in acks), Counts()).as_dict()
    said = {name: total[f"headwater_documents/{name}"] for name in metrics.OUTCOMES}
    assert said == {name: counts[name] for name in metrics.OUTCOMES}
    for name, metric in [("chunks", "chunks"), ("points", "points"), ("tokens", "tokens")]:
        assert total[f"headwater_{metric}"] == counts[name]
    by_reason = Counter(rejected.reason for ack in acks for rejected in ack.rejected)
    assert {reason: total[f"headwater_documents_rejected/{reason}"] for reason in by_reason} == by_reason


def test_retries_of_the_store_are_counted_by_cause(qdrant):
    from pipeline.config import StoreConfig
    from pipeline.errors import StoreUnavailable
    from pipeline.stores import open_store

    store = open_store(StoreConfig(url="http://127.0.0.1:9", prefer_grpc=False, retries=2))
    with kept() as total, pytest.raises(StoreUnavailable):
        store.get_collections()
    assert total == {"headwater_retries/StoreUnavailable": 2}


def test_every_metric_is_documented():
    text = (Path(__file__).parent.parent / "deploy" / "README.md").read_text()
    for metric in metrics.ALL:
        assert f"`{metric.name}" in text, metric.name
