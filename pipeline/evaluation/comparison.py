"""Codes compared on a judged set with what else could be stored in as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.codes import Binarizer, load_codes
from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.evaluation.codes import (
    JudgedVectors,
    Measured,
    Method,
    Row,
    floats,
    measure,
    summarise,
)
from pipeline.evaluation.figure import draw_quality
from pipeline.evaluation.judged import embed_judged
from pipeline.evaluation.methods import code_methods, own_documents, qdrant_methods, untrained_methods
from pipeline.schemas import Observer, Progress


def evaluate_codes(
    documents: str,
    queries: Path,
    qrels: Path,
    folders: Sequence[Path],
    settings: Settings,
    observe: Observer = lambda _: None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Measure codes folders, training-free codes and Qdrant's quantization on one judged set, as JSON values.

    Methods without training are fitted on the documents, at one and two bits an original dimension and the sizes of
    the given codes. All vectors are in memory. Raises EncoderError for codes of another encoder, before the work.
    """
    if plot and not plot.parent.is_dir():
        raise UsageError(f"--plot {plot}", "A file in a folder that is there", f"mkdir -p {plot.parent}")
    given: dict[str, Binarizer] = {}

    def check(version: str) -> None:
        given.update({str(folder): load_codes(folder, version) for folder in folders})

    judged, version = embed_judged(documents, queries, qrels, settings, observe, check)
    width = judged.documents.shape[1]
    sizes = [width // 8, width // 4, *(binarizer.spec.bytes for binarizer in given.values())]
    coded = {folder: code_methods(_name(folder, binarizer), binarizer) for folder, binarizer in given.items()}
    stored = {method.name: folder for folder, methods in coded.items() for method in methods}
    others = untrained_methods(width, sizes, own_documents, len(judged.documents)) + qdrant_methods(width)
    rows = compare([*others, *(method for each in coded.values() for method in each)], [judged], observe)
    if plot:
        draw_quality(rows, plot, f"nDCG@10 kept, {documents}")
    return {
        "documents": documents,
        "encoder_version": version,
        "dims": width,
        "vectors": len(judged.documents),
        "queries": len(judged.query_ids),
        "rows": [as_json(row) | {"codes": stored.get(row.method)} for row in rows],
    }


def _name(folder: str, binarizer: Binarizer) -> str:
    spec = binarizer.spec
    return f"{spec.method} {spec.dims}x{spec.bits} ({folder})"


def compare(methods: Sequence[Method], sets: Sequence[JudgedVectors], observe: Observer) -> list[Row]:
    """One row a method, the floats' among them, in the order of bytes."""
    width = sets[0].documents.shape[1]
    measured: dict[str, list[Measured]] = {}
    every = [floats(width), *methods]
    for number, method in enumerate(every):
        observe(Progress("comparing", number, len(every)))
        measured[method.name] = [measure(method, judged) for judged in sets]
    return summarise(measured, measured[every[0].name])


def as_json(row: Row) -> dict[str, Any]:
    """A row with five digits, and measures by their usual names."""
    named = {_NAMES.get(name, name): value for name, value in asdict(row).items()}
    return {name: _short(value) for name, value in named.items()}


_NAMES = {
    "ndcg": "ndcg@10",
    "recall10": "recall@10",
    "recall100": "recall@100",
    "rescored_recall10": "rescored_recall@10",
}


def _short(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return round(value, 5)
    return [round(end, 5) for end in value] if isinstance(value, tuple) else value
