"""What codes take in memory and on disk: `python tests/benchmarks/codes_memory.py [--points 20000 60000]`.

Two edge collections of codes with their vectors, of different sizes, each opened and searched in a process of its own;
the difference between the two processes is what a document takes, whatever else the process holds. Beside it, what
`headwater plan` says, and what the same documents take as float32.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

from pipeline.codes import Codes, CodesSpec, codes_room, to_rows
from pipeline.config import StoreConfig
from pipeline.stores import CodedQueries, Points, collection, nearest_by_codes
from pipeline.stores.edge import EdgeStore

DIMS, BITS, BATCH = 384, 2, 2000
SPEC = CodesSpec("benchmark", BITS, DIMS, "norm")
CENTRES = 2000  # real corpora are clustered


def batch(start: int) -> dict[str, np.ndarray]:
    """The vectors and codes of one batch: signs of clustered vectors and of noise."""
    generator = np.random.default_rng(start)
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIMS)).astype(np.float32)
    rows = centres[generator.integers(0, CENTRES, BATCH)] + generator.normal(size=(BATCH, DIMS)).astype("f4")
    planes = np.concatenate([rows > 0, np.abs(rows) > 1], axis=1)
    scale = np.full(BATCH, 1 / np.sqrt(DIMS), np.float32)
    return {"codes": to_rows(Codes(np.packbits(planes, axis=1), scale), BITS), "full": rows}


def build(folder: Path, points: int) -> None:
    """Make a collection and its graph."""
    store = EdgeStore.open(folder, batch_points=BATCH)
    physical = collection.create(store, "docs", StoreConfig(), DIMS, {}, SPEC)
    for start in range(0, points, BATCH):
        ids = [f"00000000-0000-0000-0000-{n:012d}" for n in range(start, start + BATCH)]
        store.upsert(physical, Points(ids, batch(start), [{}] * BATCH))
    store.optimize(physical)
    store.close()


def measure(folder: Path) -> dict[str, int]:
    """Search a collection in this process; bytes of its memory, and of the files that matter."""
    store = EdgeStore.open(folder)
    physical = collection.resolve(store, "docs")
    queries = CodedQueries(np.random.default_rng(1).normal(size=(50, SPEC.width)).astype("f4"), None, "", 4.0)
    nearest_by_codes(store, physical, queries, 10)
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    files = [file for file in (folder / physical / "segments").rglob("*") if file.is_file()]

    def size(*names: str) -> int:
        return sum(file.stat().st_size for file in files if all(part in str(file) for part in names))

    return {
        "anonymous": int(found[1]) * 1024,
        "graph": size("vector_index-codes", "links"),
        "planes": size("vector_storage-codes", "matrix"),
        "codes": size("vector_storage-codes", "quantized.data"),
        "full": size("vector_storage-full", "matrix"),
    }


def child(*arguments: str) -> str:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main() -> None:
    """Measure both sizes and write results/codes_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, nargs=2, default=(20_000, 60_000))
    parser.add_argument("--build", type=Path)
    parser.add_argument("--measure", type=Path)
    options = parser.parse_args()
    if options.build:
        return build(options.build, options.points[0])
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.measure)))
        return None
    small, large = options.points
    with tempfile.TemporaryDirectory() as scratch:
        taken = []
        for points in (small, large):
            harness.say(f"building {points:,} points")
            folder = Path(scratch) / str(points)
            child("--build", str(folder), "--points", str(points), str(points))
            taken.append(json.loads(child("--measure", str(folder))))
    each = {name: round((taken[1][name] - taken[0][name]) / (large - small), 1) for name in taken[0]}
    ram, disk = (
        each["anonymous"] + each["graph"],
        sum(each[name] for name in ("graph", "planes", "codes", "full")),
    )
    planned = codes_room(SPEC, DIMS, points=large)
    floats = codes_room(SPEC, 0, points=large).ram - SPEC.bytes + 4 * DIMS
    results = {
        "bytes_a_document": each,
        "ram": {"measured": round(ram, 1), "planned": planned.ram, "ratio": round(ram / planned.ram, 3)},
        "disk": {"measured": round(disk, 1), "planned": planned.disk, "ratio": round(disk / planned.disk, 3)},
        "saved_of_float32_in_ram": round(1 - ram / floats, 3),
        "vectors_alone": {"codes": SPEC.bytes, "float32": 4 * DIMS, "saved": 1 - SPEC.bytes / (4 * DIMS)},
    }
    settings = {"store": "edge", "bits": BITS, "dims": DIMS, "points": [small, large]}
    harness.write_result("codes_memory", {"kind": "generated, clustered"}, settings, 0, results)
    sys.stdout.write(json.dumps(results) + "\n")
    return None


if __name__ == "__main__":
    main()
