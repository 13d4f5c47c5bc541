"""Codes of a new encoder beside an old one's: what compatible training costs, and what it finds in mixed indexes.

    OMP_NUM_THREADS=1 python tests/benchmarks/compatible_codes.py SET… --old NAME=FOLDER --new NAME=FOLDER --cache DIR

A SET is a folder with documents.parquet, queries.parquet and qrels.parquet. All codes are trained on the documents that
are searched, 2 bits of 384 dimensions; M(q, d) is written q/d. The bar: compatible new/new finds 98 % of what codes of
the new encoder find that are bound to nothing. Vectors and codes bound to nothing are in --cache, where
codes.py has them, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
from codes import embed
from numpy.typing import NDArray

from pipeline.codes import Binarizer, load_codes, query_rows, save_codes, to_rows
from pipeline.codes.compatible import train_compatible
from pipeline.codes.training import TrainingOptions, train_codes
from pipeline.evaluation.bootstrap import interval, resampled
from pipeline.evaluation.codes import JudgedVectors
from pipeline.evaluation.versions import JudgedPair, Way, cross, found_by
from pipeline.versions.maps import procrustes

OPTIONS = TrainingOptions(dims=384, bits=2)
CONTRAST = replace(OPTIONS, distil=0.0, contrastive=1.0)
LOSSES = {
    "none: the rotation before the old codes": (replace(OPTIONS, epochs=0), False),
    "distil": (OPTIONS, False),
    "contra_ract": (CONTRAST, False),
    "contra_ract, coded queries": (CONTRAST, True),
}
SHARES = {"new/old": 0.0, "mixed 50 %": 0.5, "new/new": 1.0}
BAR = 0.98

Values = NDArray[np.float64]


def main() -> None:
    arguments = _arguments()
    old, new = (embed(*each.split("=", 1), arguments).judged for each in (arguments.old, arguments.new))
    cache = arguments.cache
    sets = {
        before.name: measure(
            JudgedPair(before, after),
            _trained(before, arguments.old, cache),
            _trained(after, arguments.new, cache),
        )
        for before, after in zip(old, new, strict=True)
    }
    together = {name: [found[name] for found in sets.values()] for name in next(iter(sets.values()))}
    results = {name: summarise({cell: [found[cell]] for cell in found}) for name, found in sets.items()}
    results["together"] = summarise(together)
    harness.write_result(
        "compatible_codes",
        {one.name: {"chunks": len(one.documents), "queries": len(one.queries)} for one in old},
        {"old": arguments.old.split("=")[0], "new": arguments.new.split("=")[0], "bits": 2, "dims": 384},
        OPTIONS.seed,
        results,
    )
    (harness.RESULTS / "compatible_codes.md").write_text(as_markdown(results), encoding="utf-8")


def measure(pair: JudgedPair, before: Binarizer, free: Binarizer) -> dict[str, Values]:
    """nDCG@10 a query, by cell: old/old, unconstrained new/new, and what each loss gives."""
    old, new = pair.old, pair.new
    found = {
        "old/old": found_by(query_rows(before, old.queries), _rows(before, old), old).ndcg,
        "unconstrained": found_by(query_rows(free, new.queries), _rows(free, new), new).ndcg,
    }
    into_old = procrustes(new.documents, old.documents)
    for loss, (options, coded) in LOSSES.items():
        made, report = train_compatible(
            old.documents, new.documents, before, (into_old.weight, into_old.bias), options
        )
        harness.say(f"{old.name}, {loss}: epoch {report.best_epoch}, recall {max(report.recall):.3f}")
        way = Way(loss, query_rows(made, new.queries, coded), _rows(before, old), _rows(made, new))
        crossed = cross(way, new, list(SHARES.values()))
        found |= {f"{loss}|{cell}": each.ndcg for cell, each in zip(SHARES, crossed.mixed, strict=True)}
    return found


def summarise(found: Mapping[str, Sequence[Values]]) -> dict[str, Any]:
    """Means over sets, differences with their intervals, and the part of the unconstrained codes' that is kept."""
    rows = []
    for loss in LOSSES:
        cells = {cell: found[f"{loss}|{cell}"] for cell in SHARES}
        row: dict[str, Any] = {"loss": loss} | {cell: _mean(each) for cell, each in cells.items()}
        row["new/old less old/old"] = _difference(cells["new/old"], found["old/old"])
        row["mixed less old/old"] = _difference(cells["mixed 50 %"], found["old/old"])
        row["new/new less unconstrained"] = _difference(cells["new/new"], found["unconstrained"])
        kept = _mean(cells["new/new"]) / _mean(found["unconstrained"])
        drawn = resampled(cells["new/new"]) / resampled(found["unconstrained"])
        row |= {"kept": round(kept, 4), "kept_interval": [round(each, 4) for each in interval(drawn)]}
        rows.append(row | {"reaches_bar": kept >= BAR})
    return {"old/old": _mean(found["old/old"]), "unconstrained": _mean(found["unconstrained"]), "rows": rows}


def as_markdown(results: Mapping[str, Any]) -> str:
    """One table: a line for each set and loss."""
    lines = [
        "# Codes beside older ones: 2 bits of 384 dimensions, nDCG@10",
        "",
        f"Kept: compatible new/new as a part of unconstrained new/new; the bar is {BAR:.0%}. Intervals hold 95 %.",
        "",
        "| set | loss | old/old | new/old | mixed 50 % | new/new | unconstrained | kept | new/old less old/old |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for row in found["rows"]:
            kept = "{:.1%} [{:.1%}, {:.1%}]".format(row["kept"], *row["kept_interval"])
            more = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["new/old less old/old"])
            cells = [row["new/old"], row["mixed 50 %"], row["new/new"], found["unconstrained"]]
            numbers = " | ".join(f"{each:.3f}" for each in [found["old/old"], *cells])
            lines.append(f"| {name} | {row['loss']} | {numbers} | {kept} | {more} |")
    return "\n".join(lines) + "\n"


def _difference(ours: Sequence[Values], theirs: Sequence[Values]) -> list[float]:
    pairs = [one - other for one, other in zip(ours, theirs, strict=True)]
    return [round(each, 4) for each in (_mean(pairs), *interval(resampled(pairs)))]


def _rows(binarizer: Binarizer, judged: JudgedVectors) -> NDArray[np.float32]:
    return to_rows(binarizer.encode(judged.documents), binarizer.spec.bits)


def _mean(sets: Sequence[Values]) -> float:
    return round(float(np.mean([values.mean() for values in sets])), 5)


def _trained(judged: JudgedVectors, encoder: str, cache: Path) -> Binarizer:
    """Codes of one encoder alone, from the cache where they are there."""
    folder = cache / f"{encoder.split('=')[0]}.same.{judged.name}.learned 384x2"
    if not (folder / "binarizer.json").exists():
        harness.say(folder.name)
        save_codes(train_codes(judged.documents, OPTIONS)[0], folder)
    return load_codes(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET")
    parser.add_argument("--old", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--new", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, required=True)
    parser.set_defaults(more=None, paper=False)
    return parser.parse_args()


if __name__ == "__main__":
    main()
