"""Late chunking against plain chunking on judged sets: nDCG@10, with the difference paired by query.

    python tests/benchmarks/late_chunking.py --model MODEL SET… [--chunks 64,128]

SET: a folder with documents.parquet, queries.parquet and qrels.parquet, as `headwater evaluate retrieval` reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from harness import say, write_result

from pipeline.config import load
from pipeline.evaluation.judged import DEPTH, embed_judged
from pipeline.evaluation.retrieval import query_metrics, rank

_RESAMPLES = 2000


def main() -> None:
    """Write results/late_chunking.json, a row a set and chunk size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--chunks", default="64,128")
    parser.add_argument("sets", nargs="+", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for folder in given.sets:
        for chunk in map(int, given.chunks.split(",")):
            plain, late = (_scores(given.model, folder, chunk, long) for long in ("split", "late-chunking"))
            difference = late - plain
            picks = np.random.default_rng(0).integers(0, len(difference), (_RESAMPLES, len(difference)))
            low, high = np.quantile(difference[picks].mean(axis=1), (0.025, 0.975))
            gain = [round(float(value), 4) for value in (difference.mean(), low, high)]
            row = {"set": folder.name, "chunk": chunk, "queries": len(plain)}
            rows.append(row | {"plain": float(plain.mean()), "late": float(late.mean()), "gain": gain})
            say(str(rows[-1]))
    sets = {"sets": [folder.name for folder in given.sets]}
    write_result("late_chunking", sets, {"model": Path(given.model).name}, 0, {"rows": rows})


def _scores(model: str, folder: Path, chunk: int, long: str) -> np.ndarray:
    """nDCG@10 of each query."""
    flags = {"encoder.model": model, "encoder.long": long, "chunking.max_tokens": chunk}
    flags |= {"encoder.max_tokens": 512, "encoder.provider": "cpu"}
    files = folder / "queries.parquet", folder / "qrels.parquet"
    settings = load(None, flags)
    judged, _ = embed_judged(str(folder / "documents.parquet"), *files, settings, lambda _: None)
    best, _ = rank(judged.queries, judged.documents, judged.owners, DEPTH)
    run = {
        query: [judged.ids[n] for n in row]
        for query, row in zip(judged.query_ids, best.tolist(), strict=True)
    }
    return np.array([said["ndcg@10"] for said in query_metrics(run, judged.qrels).values()])


if __name__ == "__main__":
    main()
