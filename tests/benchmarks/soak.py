"""A million small documents into an edge store, then the same again unchanged: `python tests/benchmarks/soak.py`.

Memory, open files and threads over time, documents a CPU-second of both halves; and what a run over an unchanged
source costs, with the share of it that is spent asking the store. The encoder is a tiny random model, so that
everything around it shows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

import models

from pipeline.config import Settings, StoreConfig, load
from pipeline.ingest import ingest
from pipeline.local import LocalExecutor
from pipeline.schemas import Progress
from pipeline.stores import Purpose, Store
from pipeline.summary import Summary

EVERY_S = 1.0
FIGURE = (640, 200)


def write_source(file: Path, documents: int) -> None:
    """Documents of some twenty words, in row groups of 5,000."""
    words = ["river", "stone", "light", "winter", "harbour", "letter", "signal", "garden", "copper", "window"]
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("year", pa.int64())])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, documents, 5000):
            numbers = range(start, min(start + 5000, documents))
            texts = [
                " ".join(words[(n * 7 + k * k) % 10] for k in range(12 + n % 16)) + f" {n}." for n in numbers
            ]
            columns = [[f"doc-{n}" for n in numbers], texts, [1900 + n % 120 for n in numbers]]
            writer.write_table(pa.table(columns, schema=schema))


@dataclass
class Sample:
    """The process at one moment."""

    seconds: float
    documents: int
    cpu_seconds: float
    rss_mib: float
    own_mib: float  # without pages of files, which the kernel takes back when it needs them
    files: int
    threads: int


class Watch:
    """Samples this process while a run goes on."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._documents = 0
        self._process = psutil.Process()
        self._began = time.perf_counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def observe(self, progress: Progress) -> None:
        """Take note of how far the run is."""
        if progress.stage == "indexing" and progress.documents // 100_000 > self._documents // 100_000:
            harness.say(f"{progress.documents:,} documents, {self._sample().own_mib:.0f} MiB")
        self._documents = max(self._documents, progress.documents)

    def end(self) -> list[Sample]:
        """Stop sampling."""
        self._over.set()
        self._thread.join()
        return self.samples

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        with self._process.oneshot():
            cpu, memory = self._process.cpu_times(), self._process.memory_info()
            return Sample(
                round(time.perf_counter() - self._began, 2),
                self._documents,
                round(cpu.user + cpu.system, 2),
                round(memory.rss / 2**20, 1),
                round((memory.rss - memory.shared) / 2**20, 1),
                self._process.num_fds(),
                self._process.num_threads(),
            )


class TimedReads:
    """A store that adds up the time its `retrieve` takes: what asking about documents costs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def retrieve(self, *arguments: Any, **keywords: Any) -> Any:
        since = time.perf_counter()
        try:
            return self._store.retrieve(*arguments, **keywords)
        finally:
            self.seconds += time.perf_counter() - since


class Timed(LocalExecutor):
    """A local executor whose store is timed."""

    reads: TimedReads

    def open_store(self, config: StoreConfig, purpose: Purpose | None = None) -> Store:
        self._store = self.reads = TimedReads(super().open_store(config, purpose))
        return self._store


def run(source: Path, settings: Settings) -> tuple[Summary, list[Sample], TimedReads]:
    """One run, watched."""
    executor, watch = Timed(), Watch()
    summary = ingest(str(source), settings, executor, threading.Event(), watch.observe)
    return summary, watch.end(), executor.reads


def halves(samples: list[Sample], documents: int) -> list[float]:
    """Documents a CPU-second of the first and the second half of the documents."""
    busy = [sample for sample in samples if sample.documents]
    middle = min(busy, key=lambda sample: abs(sample.documents - documents / 2))
    return [
        (last.documents - first.documents) / (last.cpu_seconds - first.cpu_seconds)
        for first, last in ((busy[0], middle), (middle, busy[-1]))
    ]


def figure(samples: list[Sample], file: Path) -> None:
    """Memory over documents, as SVG: grey with pages of files, blue without."""
    width, height = FIGURE
    most = max(sample.rss_mib for sample in samples)
    last = max(sample.documents for sample in samples) or 1
    lines = [
        " ".join(
            f"{40 + (width - 50) * one.documents / last:.1f},{height - 20 - (height - 40) * mib(one) / most:.1f}"
            for one in samples
        )
        for mib in (lambda one: one.rss_mib, lambda one: one.own_mib)
    ]
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="10"><text x="4" y="24">{most:.0f} MiB</text><text x="4" y="{height - 20}">0</text>'
        f'<text x="{width - 110}" y="{height - 4}">{last:,} documents</text>'
        f'<path d="M40 20V{height - 20}H{width - 10}" fill="none" stroke="#999"/>'
        f'<polyline points="{lines[0]}" fill="none" stroke="#bbb" stroke-width="1.5"/>'
        f'<polyline points="{lines[1]}" fill="none" stroke="#06c" stroke-width="1.5"/></svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    """Measure, write results/soak.json and results/soak.svg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    documents = parser.parse_args().documents
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_source(root / "docs.parquet", documents)
        flags = {
            "encoder.model": str(models.tiny_bert(root / "model")),
            "encoder.cache": str(root / "cache"),
            "encoder.provider": "cpu",
            "store.url": f"edge:{root}/index",
            "store.collection": "soak",
        }
        settings = load(None, flags)
        first, samples, _ = run(root / "docs.parquet", settings)
        again, rerun, reads = run(root / "docs.parquet", settings)
    assert first.counts.indexed == again.counts.unchanged == documents
    rates = halves(samples, documents)
    settled = [sample for sample in samples if sample.documents >= documents / 10]
    results = {
        "documents_per_second": round(documents / first.seconds),
        "documents_per_cpu_second": [round(rate) for rate in rates],
        "second_half_over_first": round(rates[1] / rates[0], 3),
        "own_mib": {
            "at_a_tenth": settled[0].own_mib,
            "median": statistics.median(sample.own_mib for sample in settled),
            "peak": max(sample.own_mib for sample in samples),
        },
        "peak_rss_mib": max(sample.rss_mib for sample in samples),
        "files": [settled[0].files, settled[-1].files],
        "threads": [settled[0].threads, settled[-1].threads],
        "unchanged": {
            "documents_per_second": round(documents / again.seconds),
            "seconds": round(again.seconds, 1),
            "share_asking_the_store": round(reads.seconds / again.seconds, 3),
            "peak_own_mib": max(sample.own_mib for sample in rerun),
        },
    }
    file = harness.write_result(
        "soak", {"kind": "generated", "documents": documents}, {"store": "edge"}, 0, results
    )
    figure(samples, file.with_suffix(".svg"))
    harness.say(str(results))


if __name__ == "__main__":
    main()
