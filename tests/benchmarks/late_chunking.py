"""Late chunking against plain chunking on judged sets: nDCG@10, with the differences paired by query.

    python tests/benchmarks/late_chunking.py --model MODEL SET… [--chunks 64,128] [--beyond pi,gp,rp] [--longest 1024]

SET: a folder with documents.parquet, queries.parquet and qrels.parquet, as `headwater evaluate retrieval` reads them.
"late" takes the model's own window, in passes where a document is longer; "late:pi" and so on take `--longest` tokens
at once. `long documents` have more tokens than the window: the methods differ on those alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import say, write_result
from numpy.typing import NDArray

from pipeline.config import load
from pipeline.encoders import load_encoder
from pipeline.evaluation.bootstrap import paired
from pipeline.evaluation.judged import DEPTH, embed_judged
from pipeline.evaluation.retrieval import query_metrics, rank

_WINDOW = 512


class Measured(NamedTuple):
    """nDCG@10 of each query, float64[queries], and how long it took to embed the set."""

    scores: NDArray[np.float64]
    seconds: float


def main() -> None:
    """Write results/late_chunking.json, a row a set, chunk size and method."""
    given = _given()
    ways = {"plain": ("split", _WINDOW), "late": ("late-chunking", _WINDOW)}
    ways |= {
        f"late:{name}": (f"late-chunking:{name}", given.longest) for name in given.beyond.split(",") if name
    }
    for long, most in ways.values():
        load_encoder(load(None, _flags(given.model, 64, long, most)).encoder).close()  # no export is timed
    rows: list[dict[str, Any]] = []
    for folder in given.sets:
        for chunk in map(int, given.chunks.split(",")):
            found = {name: _measure(folder, _flags(given.model, chunk, *way)) for name, way in ways.items()}
            for name, measured in found.items():
                row: dict[str, Any] = {"set": folder.name, "chunk": chunk, "method": name}
                row |= {"queries": len(measured.scores), "ndcg@10": round(float(measured.scores.mean()), 4)}
                row["over_plain"] = None if name == "plain" else _gain(measured, found["plain"])
                row["over_late"] = _gain(measured, found["late"]) if ":" in name else None
                rows.append(row | {"seconds": round(measured.seconds, 1)})
                say(str(rows[-1]))
    sets = {"sets": {folder.name: _lengths(given.model, folder) for folder in given.sets}}
    settings = {"model": Path(given.model).name, "window": _WINDOW, "longest": given.longest}
    write_result("late_chunking", sets, settings, 0, {"rows": rows})


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--chunks", default="64,128")
    parser.add_argument("--beyond", default="pi,gp,rp", help="methods of the graph to combine it with")
    parser.add_argument("--longest", type=int, default=2 * _WINDOW)
    parser.add_argument("sets", nargs="+", type=Path)
    return parser.parse_args()


def _flags(model: str, chunk: int, long: str, most: int) -> dict[str, Any]:
    flags = {"encoder.model": model, "encoder.long": long, "encoder.max_tokens": most}
    return flags | {"chunking.max_tokens": chunk, "encoder.provider": "cpu"}


def _measure(folder: Path, flags: dict[str, Any]) -> Measured:
    files = folder / "queries.parquet", folder / "qrels.parquet"
    since = time.perf_counter()
    judged, _ = embed_judged(str(folder / "documents.parquet"), *files, load(None, flags), lambda _: None)
    seconds = time.perf_counter() - since
    best, _ = rank(judged.queries, judged.documents, judged.owners, DEPTH)
    run = {
        query: [judged.ids[n] for n in row]
        for query, row in zip(judged.query_ids, best.tolist(), strict=True)
    }
    scores = [said["ndcg@10"] for said in query_metrics(run, judged.qrels).values()]
    return Measured(np.array(scores), seconds)


def _gain(ours: Measured, theirs: Measured) -> list[float]:
    """The mean difference and its 95 % interval."""
    found = paired(ours.scores - theirs.scores)
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def _lengths(model: str, folder: Path) -> dict[str, int]:
    """How many documents a set has, how many are longer than the window, and the tokens of the longest."""
    import pyarrow.parquet as pq

    encoder = load_encoder(load(None, _flags(model, 64, "split", _WINDOW)).encoder)
    rows = pq.read_table(folder / "documents.parquet", columns=["title", "text"]).to_pylist()
    texts = [f"{row['title'] or ''}\n\n{row['text'] or ''}" for row in rows]
    lengths = [len(encoder.tokenizer.encode(text)) for text in texts]
    encoder.close()
    beyond = sum(length > _WINDOW for length in lengths)
    return {"documents": len(lengths), "long documents": beyond, "longest": max(lengths)}


if __name__ == "__main__":
    main()
