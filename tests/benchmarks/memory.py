"""Peak memory of a run over ten times the input: `python tests/benchmarks/memory.py [--documents 300]`.

Peak resident memory of the whole process, twice: with the default encoder, and with a tiny random model behind which
nothing else can hide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

sys.path.insert(0, str(Path(__file__).parents[1]))

import documents
import models

from pipeline.config import DEFAULT_ENCODER


def peak_mib(source: Path, model: Path | str, folder: Path) -> float:
    """Run the command in a process of its own and ask the kernel for its peak resident memory."""
    command = [
        sys.executable, "-m", "pipeline.cli", "ingest", str(source), "--encoder", str(model),
        "--store", f"edge:{folder}/index", "--collection", "bench", "--json", "--set", "encoder.provider=cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run over {source.name} failed with status {status}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Measure both sizes and write results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=300)
    count = parser.parse_args().documents
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, model in (("default", DEFAULT_ENCODER), ("tiny", models.tiny_bert(root / "model"))):
            size = count if name == "default" else 10 * count  # the tiny model is quick
            small = documents.write(root / f"{name}-1.parquet", documents.rows(size), row_group=100)
            large = documents.write(root / f"{name}-10.parquet", documents.rows(10 * size), row_group=100)
            peak_mib(small, model, root / f"{name}-export")  # exporting takes memory of its own
            peaks = [peak_mib(file, model, root / f"{file.stem}-store") for file in (small, large)]
            results[name] = {
                "documents": [size, 10 * size],
                "peak_mib": [round(peak, 1) for peak in peaks],
                "growth": round(peaks[1] / peaks[0] - 1, 3),
            }
    harness.write_result("memory", {"kind": "generated"}, {"store": "edge"}, 0, results)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
