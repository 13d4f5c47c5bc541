"""An upgrade and the way back under fire: `python tests/benchmarks/upgrade_drill.py [--documents 20000]`.

A server in a process of its own is searched twenty times a second by one reader that is never reopened, and edited all
the time. Meanwhile a reindex is killed half-way and run again, a promote is killed between the swap and its record, the
collection is rolled back and promoted again. No search may fail or miss its document, and after each step every
point must be as an ingest of the documents alone makes it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
from drill import drill
from qdrant_server import running


def main() -> int:
    """Run the drill, print what it saw and keep it; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument(
        "--model", type=Path, help="an encoder, upgraded from fp32 to int8; default a tiny one"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        folder = Path(scratch)
        model = options.model or models.tiny_bert(folder / "tiny")
        with running(folder / "server", "") as server:
            done = drill(server, model, folder / "cache", folder, options.documents, options.seed)
    searched = done.searched
    p50, p99 = np.quantile(searched.seconds, (0.5, 0.99)).tolist()
    results = {
        "searches": len(searched.seconds),
        "failed": len(searched.failed),
        "missed": len(searched.missed),
        "p50_s": round(p50, 4),
        "p99_s": round(p99, 4),
        "edits": done.batches,
        "build_killed_at": done.killed_at,
        "caught_up": done.caught_up,
        "differing": {step: len(ids) for step, ids in done.differing.items()},
        "seconds": round(done.seconds, 1),
    }
    dataset = {"documents": options.documents, "model": options.model.name if options.model else "tiny"}
    file = harness.write_result("upgrade_drill", dataset, {}, options.seed, results)
    sys.stdout.write("".join(f"{name:<16} {value}\n" for name, value in results.items()) + f"{file}\n")
    return int(bool(searched.failed or searched.missed or any(done.differing.values())))


if __name__ == "__main__":
    sys.exit(main())
