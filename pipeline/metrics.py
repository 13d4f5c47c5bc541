"""What a run counts for Prometheus, and where it goes.

Metrics are values, declared once below. `record` sends a number to the process's one sink: nowhere at first, to
Prometheus while `published`, to Ray in the processes of a cluster (`workers/metrics.py`). It is called once a batch,
request or split, never for single documents. Nothing is counted twice or remembered over a crash: what the numbers
add up to is this attempt's part of the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import prometheus_client as prometheus

from pipeline import logs
from pipeline.config import RunConfig
from pipeline.errors import UsageError
from pipeline.schemas import Counts, SplitAck

WRITE_EVERY_S = 10.0
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


log = logs.logger(__name__)


@dataclass(frozen=True)
class Metric:
    """A counter is added to, a gauge is set, a histogram observes; every one has the label `collection`, too.

    Prometheus appends `_total` to a counter's name.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


# Counted by the driver from trailers, so that a split that ran twice counts once.
DOCUMENTS = Metric("headwater_documents", "counter", "Documents read, by what became of them.", ("outcome",))
REJECTED = Metric("headwater_documents_rejected", "counter", "Rejected documents, by reason.", ("reason",))
CHUNKS = Metric("headwater_chunks", "counter", "Chunks made.")
POINTS = Metric("headwater_points", "counter", "Points the store acknowledged.")
REMOVED = Metric("headwater_documents_removed", "counter", "Documents removed because a snapshot lacks them.")
POINTS_REMOVED = Metric("headwater_points_removed", "counter", "Points removed from the store.")
TRUNCATED = Metric("headwater_documents_truncated", "counter", "Documents whose end was left out.")
TOKENS = Metric("headwater_tokens", "counter", "Tokens of the chunks.")
SOURCE_DOCUMENTS = Metric("headwater_source_documents", "gauge", "Documents of the source, where it says.")
SPLITS = Metric("headwater_splits", "gauge", "Splits of the source.")
SPLITS_DONE = Metric("headwater_splits_done", "gauge", "Splits done, by earlier attempts of the run too.")
FINISHED = Metric("headwater_run_finished_timestamp_seconds", "gauge", "When the run came to its end.")

# Of sources without an end.
WATCH_LAG = Metric("headwater_watch_lag_seconds", "histogram", "Seconds from a file's change to searchable.")
WATERMARK = Metric("headwater_watermark_timestamp_seconds", "gauge", "What changed until then is searchable.")

# Counted where it happens, so a split that ran twice counts twice.
ENCODER_TOKENS = Metric("headwater_encoder_tokens", "counter", "Tokens the encoder ran over.", ("kind",))
ENCODER_SECONDS = Metric("headwater_encoder_seconds", "histogram", "Seconds the encoder took for a batch.")
UPSERT_SECONDS = Metric("headwater_upsert_seconds", "histogram", "Seconds until an upsert was acknowledged.")
RETRIES = Metric("headwater_retries", "counter", "What was tried again, by cause.", ("cause",))

ALL = (
    *(DOCUMENTS, REJECTED, CHUNKS, POINTS, REMOVED, POINTS_REMOVED, TOKENS, TRUNCATED),
    *(SOURCE_DOCUMENTS, SPLITS, SPLITS_DONE, FINISHED),
    *(WATCH_LAG, WATERMARK),
    *(ENCODER_TOKENS, ENCODER_SECONDS, UPSERT_SECONDS, RETRIES),
)
OUTCOMES = ("indexed", "unchanged", "patched", "deleted", "stale", "rejected")


class Sink(Protocol):
    """Where a process's numbers go. Thread-safe, and quick: lanes call it."""

    def record(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None:
        """Add, set or observe, as the metric's kind asks; `labels` are the values of `metric.labels`."""


_sink: Sink | None = None


def send_to(sink: Sink | None) -> None:
    """Send this process's numbers there from now on; None: nowhere."""
    global _sink
    _sink = sink


def record(metric: Metric, value: float, *labels: str) -> None:
    """Add to a counter, set a gauge, or observe in a histogram."""
    if _sink is not None:
        _sink.record(metric, value, labels)


def record_trailer(ack: SplitAck) -> None:
    """Count what a split did."""
    if _sink is None:
        return
    record_counts(ack.counts)
    reasons = [rejected.reason for rejected in ack.rejected]
    for reason in dict.fromkeys(reasons):
        record(REJECTED, reasons.count(reason), reason)


def record_counts(counts: Counts) -> None:
    """Count these documents, chunks, points and tokens."""
    for outcome in OUTCOMES:
        record(DOCUMENTS, getattr(counts, outcome), outcome)
    record(CHUNKS, counts.chunks)
    record(POINTS, counts.points)
    record(REMOVED, counts.removed)
    record(POINTS_REMOVED, counts.points_removed)
    record(TOKENS, counts.tokens)
    record(TRUNCATED, counts.truncated)


@contextmanager
def timed(metric: Metric) -> Iterator[None]:
    """Observe the seconds that the block takes, if it ends without an error."""
    since = time.perf_counter()
    yield
    record(metric, time.perf_counter() - since)


class PrometheusSink:
    """Numbers from 0 on, in a registry of their own."""

    def __init__(self, collection: str) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._collection = collection
        self._made = {metric: _make(metric, self.registry) for metric in ALL}
        for outcome in OUTCOMES:
            self.record(DOCUMENTS, 0, (outcome,))  # a rate over a counter needs its 0

    def record(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None:
        """See `Sink`."""
        made = self._made[metric].labels(self._collection, *labels)
        match made:
            case prometheus.Counter():
                made.inc(value)
            case prometheus.Gauge():
                made.set(value)
            case prometheus.Histogram():
                made.observe(value)


def _make(
    metric: Metric, registry: prometheus.CollectorRegistry
) -> prometheus.Counter | prometheus.Gauge | prometheus.Histogram:
    labels = ("collection", *metric.labels)
    match metric.kind:
        case "counter":
            return prometheus.Counter(metric.name, metric.help, labels, registry=registry)
        case "gauge":
            return prometheus.Gauge(metric.name, metric.help, labels, registry=registry)
        case "histogram":
            return prometheus.Histogram(metric.name, metric.help, labels, registry=registry, buckets=BUCKETS)


@contextmanager
def published(config: RunConfig, collection: str) -> Iterator[None]:
    """Count while the block lasts, and show it on `run.metrics_port` and in `run.metrics_file` if they are set.

    The file is written when the block begins, every ten seconds and when it ends, each time whole or not at all: after
    a crash it is at most ten seconds old. Raises UsageError where the port is taken or the file cannot be written.
    """
    if not (config.metrics_port or config.metrics_file):
        yield
        return
    prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every one of ours
    sink = PrometheusSink(collection)
    with ExitStack() as stack:
        if config.metrics_port:
            stack.enter_context(_served(sink.registry, config.metrics_port))
        if config.metrics_file:
            stack.enter_context(_written(sink.registry, Path(config.metrics_file).expanduser()))
        send_to(sink)
        stack.callback(send_to, None)
        yield


@contextmanager
def _served(registry: prometheus.CollectorRegistry, port: int) -> Iterator[None]:
    try:
        server, thread = prometheus.start_http_server(port, registry=registry)
    except OSError as error:
        raise UsageError(
            f"run.metrics_port {port} cannot be listened on: {error.strerror}",
            "A free port of this machine",
            "Set another one, or 0 for none",
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _written(registry: prometheus.CollectorRegistry, file: Path) -> Iterator[None]:
    if file.exists() and not file.is_file():
        raise UsageError(
            f"run.metrics_file {file} is no file, and would be replaced by one",
            "A file, or a name that is free",
            "Name another one",
        )
    try:
        prometheus.write_to_textfile(str(file), registry)
    except OSError as error:
        raise UsageError(
            f"run.metrics_file {file} cannot be written: {error.strerror}",
            "A file in a folder that exists",
            "Make the folder, or name another file",
        ) from None
    over = threading.Event()

    def write() -> None:
        while not over.wait(WRITE_EVERY_S):
            _write(file, registry)

    writer = threading.Thread(target=write, name="metrics", daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()
        _write(file, registry)


def _write(file: Path, registry: prometheus.CollectorRegistry) -> None:
    try:
        prometheus.write_to_textfile(str(file), registry)
    except OSError as error:  # the run is worth more than its numbers
        log.warning("metrics_not_written", file=str(file), error=str(error))
