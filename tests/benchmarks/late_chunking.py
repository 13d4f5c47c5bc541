"""Late chunking against plain chunking on judged sets: nDCG@10, with the differences paired by query.

    python tests/benchmarks/late_chunking.py --model MODEL SET… [--chunks 64,128] [--beyond pi,rp] [--longest 1024]

SET: a folder with documents.parquet, queries.parquet and qrels.parquet, as `headwater evaluate retrieval` reads them.
FOLDER*4: four documents in a row are one, as abstracts are in a volume, and it is relevant where one of them is.

"late" takes the model's own window, in passes where a document is longer; "late:pi" and so on take `--longest` tokens
at once. They differ on documents beyond the window alone, and are run where more than one in twenty is. What is in
results/late_chunking.json of other sets stays. `python_pages.py` makes a set of long documents.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import RESULTS, say, write_result
from numpy.typing import NDArray

from pipeline.config import load
from pipeline.encoders import load_encoder
from pipeline.evaluation.bootstrap import paired
from pipeline.evaluation.judged import DEPTH, embed_judged
from pipeline.evaluation.retrieval import query_metrics, rank

_WINDOW = 512
_FEW = 1 / 20

Way = tuple[str, int]
"""encoder.long and encoder.max_tokens."""


class Measured(NamedTuple):
    """nDCG@10 of each query, float64[queries], and the CPU seconds that embedding the set took."""

    scores: NDArray[np.float64]
    seconds: float


def main() -> None:
    """Write results/late_chunking.json, a row a set, chunk size and method, after each set."""
    given = _given()
    plain: dict[str, Way] = {"plain": ("split", _WINDOW), "late": ("late-chunking", _WINDOW)}
    beyond: dict[str, Way] = {
        f"late:{name}": (f"late-chunking:{name}", given.longest) for name in given.beyond.split(",") if name
    }
    for long, most in (plain | beyond).values():
        load_encoder(load(None, _flags(given.model, 64, long, most)).encoder).close()  # no export is timed
    settings = {"model": Path(given.model).name, "window": _WINDOW, "longest": given.longest}
    sets, rows = _kept(settings, [Path(name).name for name in given.sets])
    for name in given.sets:
        with tempfile.TemporaryDirectory() as scratch:
            folder = _joined(name, Path(scratch))
            sets[Path(name).name] = said = _lengths(given.model, folder)
            ways = plain | (beyond if said["long documents"] > _FEW * said["documents"] else {})
            for chunk in map(int, given.chunks.split(",")):
                found = {way: _measure(folder, _flags(given.model, chunk, *how)) for way, how in ways.items()}
                for row in _rows(found):
                    rows.append({"set": Path(name).name, "chunk": chunk} | row)
                    say(str(rows[-1]))
        write_result("late_chunking", {"sets": sets}, settings, 0, {"rows": rows})


def _kept(settings: Mapping[str, Any], anew: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The sets and rows that are there already, measured alike, without those that are measured anew."""
    file = RESULTS / "late_chunking.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if before.get("settings") != settings:
        return {}, []
    sets = {name: said for name, said in before["dataset"]["sets"].items() if name not in anew}
    return sets, [row for row in before["results"]["rows"] if row["set"] in sets]


def _rows(found: Mapping[str, Measured]) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "queries": len(measured.scores),
            "ndcg@10": round(float(measured.scores.mean()), 4),
            "over_plain": None if name == "plain" else _gain(measured, found["plain"]),
            "over_late": _gain(measured, found["late"]) if ":" in name else None,
            "seconds": round(measured.seconds, 1),
        }
        for name, measured in found.items()
    ]


def _joined(name: str, scratch: Path) -> Path:
    """The folder of a set, or one with its documents joined, as FOLDER*4 asks for."""
    folder, _, number = name.partition("*")
    if not number:
        return Path(folder)
    documents = pq.read_table(Path(folder) / "documents.parquet").to_pylist()
    texts = [f"{one.get('title') or ''}\n\n{one['text'] or ''}".strip() for one in documents]
    volumes = {str(one["id"]): str(place // int(number)) for place, one in enumerate(documents)}
    held: dict[str, list[str]] = {}
    for volume, text in zip(volumes.values(), texts, strict=True):
        held.setdefault(volume, []).append(text)
    joined = {"id": list(held), "text": ["\n\n".join(parts) for parts in held.values()]}
    pq.write_table(pa.table(joined), scratch / "documents.parquet")
    judged: dict[tuple[str, str], float] = {}
    for one in pq.read_table(Path(folder) / "qrels.parquet").to_pylist():
        pair = str(one["query_id"]), volumes[str(one["document_id"])]
        judged[pair] = max(judged.get(pair, 0), one["relevance"])
    columns = {"query_id": [query for query, _ in judged], "document_id": [volume for _, volume in judged]}
    pq.write_table(pa.table(columns | {"relevance": list(judged.values())}), scratch / "qrels.parquet")
    pq.write_table(pq.read_table(Path(folder) / "queries.parquet"), scratch / "queries.parquet")
    return scratch


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--chunks", default="64,128")
    parser.add_argument("--beyond", default="pi,rp", help="methods of the graph to combine it with")
    parser.add_argument("--longest", type=int, default=2 * _WINDOW)
    parser.add_argument("sets", nargs="+")
    return parser.parse_args()


def _flags(model: str, chunk: int, long: str, most: int) -> dict[str, Any]:
    flags = {"encoder.model": model, "encoder.long": long, "encoder.max_tokens": most}
    return flags | {"chunking.max_tokens": chunk, "encoder.provider": "cpu"}


def _measure(folder: Path, flags: dict[str, Any]) -> Measured:
    files = folder / "queries.parquet", folder / "qrels.parquet"
    since = time.process_time()
    judged, _ = embed_judged(str(folder / "documents.parquet"), *files, load(None, flags), lambda _: None)
    seconds = time.process_time() - since
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
    encoder = load_encoder(load(None, _flags(model, 64, "split", _WINDOW)).encoder)
    rows = pq.read_table(folder / "documents.parquet").to_pylist()
    texts = [f"{row.get('title') or ''}\n\n{row['text'] or ''}".strip() for row in rows]
    lengths = [len(encoder.tokenizer.encode(text)) for text in texts]
    encoder.close()
    beyond = sum(length > _WINDOW for length in lengths)
    return {"documents": len(lengths), "long documents": beyond, "longest": max(lengths)}


if __name__ == "__main__":
    main()
