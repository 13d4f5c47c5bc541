"""End to end against the bare encoder: which share of the encoder's own speed a run into an edge store keeps.

    python tests/benchmarks/ingest_overhead.py [--source FILE] [--model FOLDER_OR_ID] [--rounds 5]

The bare encoder gets the run's own windows, read, chunked and tokenized before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import harness

from pipeline.config import DEFAULT_ENCODER, Settings, load
from pipeline.encoders import Encoder, load_encoder
from pipeline.ingest import ingest
from pipeline.job import make_chunker, window_tokens
from pipeline.lane import split_windows
from pipeline.lane.windows import token_arrays
from pipeline.local import LocalExecutor
from pipeline.sources import open_source

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample" / "manual-pages.parquet"


def windows_of(source: Path, settings: Settings, encoder: Encoder) -> list:
    """The token arrays of a run's windows, in order."""
    chunker = make_chunker(settings, encoder.spec, encoder.tokenizer)
    size = window_tokens(settings, encoder)
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_source(str(source), settings.source, Path(scratch))
        return [
            token_arrays(window.chunks)
            for split in opened.splits
            for window in split_windows(split, settings.source, chunker, size)
        ]


def main() -> None:
    """Alternate both and write results/ingest_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SAMPLE)
    parser.add_argument("--model", default=DEFAULT_ENCODER)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings = load(None, {"encoder.model": arguments.model, "encoder.provider": "cpu"})
    encoder = load_encoder(settings.encoder)
    windows = windows_of(arguments.source, settings, encoder)
    tokens = sum(len(ids) for window in windows for ids in window)

    def bare() -> float:
        began = time.perf_counter()
        for window in windows:
            encoder.encode(window)
        return tokens / (time.perf_counter() - began)

    def whole_run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            to = settings.store.model_copy(update={"url": f"edge:{folder}/index", "collection": "bench"})
            run = settings.model_copy(update={"store": to})
            summary = ingest(str(arguments.source), run, LocalExecutor(), threading.Event())
        assert summary.counts.tokens == tokens
        return tokens / summary.seconds

    bare()  # warms caches up
    measured = harness.alternate({"bare encoder": bare, "ingest into edge": whole_run}, arguments.rounds)
    share = harness.ratio_of_medians(measured, "ingest into edge", "bare encoder")
    results = {
        "tokens": tokens,
        "tokens_per_second": {name: [round(value) for value in values] for name, values in measured.items()},
        "share_of_bare_encoder": round(share, 3),
    }
    harness.write_result(
        "ingest_overhead",
        harness.dataset_of(arguments.source, 0),
        {"model": Path(arguments.model).name, "precision": "fp32"},
        0,
        results,
    )
    for name, values in measured.items():
        sys.stdout.write(f"{name:>18}: median {statistics.median(values):,.0f} tokens/s\n")
    sys.stdout.write(f"ingest keeps {share:.1%} of the bare encoder's rate\n")


if __name__ == "__main__":
    main()
