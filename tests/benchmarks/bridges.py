"""Bridges between two encoders on judged sets, fitted on texts from outside of them and from inside, beside isotrieve.

    python tests/benchmarks/bridges.py SET… --old minilm=FOLDER --new mpnet=FOLDER --cache DIR --outside PARQUET
        [--isotrieve PYTHON] [--texts 500 2000 4000]

A SET is a folder with documents.parquet, queries.parquet and qrels.parquet; --outside has columns text and sentence,
one sentence of each text. Vectors and bridges stay in --cache. PYTHON is an interpreter that has isotrieve installed.
Both are fitted on the same texts; ours also uses the sentences, and so does isotrieve in a row of its own.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bridges_report
import harness
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import EncoderConfig, Settings
from pipeline.encoders import load_plain_encoder
from pipeline.evaluation import read_qrels
from pipeline.evaluation.bootstrap import paired
from pipeline.evaluation.codes import JudgedVectors
from pipeline.evaluation.pair import embed_pair
from pipeline.evaluation.versions import (
    SHARES,
    Found,
    JudgedPair,
    Way,
    cross,
    found_by,
    matrix,
    ways_of,
)
from pipeline.lane.embedding import embed_texts
from pipeline.versions import Bridge, BridgeOptions, fit_bridge, load_bridge, save_bridge
from pipeline.versions.maps import to_unit

MAX_TOKENS = 256
MOST_TRAINED = 2000  # the residual layer lost wherever it was tried: no hours for it
ISOTRIEVE = Path(__file__).with_name("bridges_isotrieve.py")

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Texts by both encoders, float32[n, ·]; asked: a sentence of each, where there is one."""

    old: Vectors
    new: Vectors
    asked: tuple[Vectors, Vectors] | None = None


def main() -> None:
    arguments = _arguments()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    models = [each.split("=", 1) for each in (arguments.old, arguments.new)]
    pairs = {path.name: _judged(path, models, arguments.cache) for path in arguments.sets}
    samples = {"outside": _outside(arguments.outside, models, arguments.cache), "inside": _inside(pairs)}
    results: dict[str, Any] = {"encoders": _alone(pairs)}
    for place, sample in samples.items():
        for texts in arguments.texts:
            if texts <= len(sample.old):
                harness.say(f"{place}, {texts} texts")
                results[f"{place} {texts}"] = compare(place, texts, sample, pairs, arguments)
    dataset = {name: len(pair.old.documents) for name, pair in pairs.items()}
    file = harness.write_result(
        "bridges", dataset, {"max_tokens": MAX_TOKENS, "texts": arguments.texts}, 0, results
    )
    bridges_report.write(file)


def compare(
    place: str, texts: int, sample: Sample, pairs: Mapping[str, JudgedPair], arguments: argparse.Namespace
) -> dict[str, Any]:
    """A bridge and isotrieve, fitted on the first so many texts of a sample, on each set and on all."""
    cut = _first(sample, texts)
    bridge = _fitted(arguments.cache / f"bridge.{place}.{texts}", cut)
    rivals = {}
    if arguments.isotrieve:
        rivals["isotrieve"] = _isotrieve(arguments, place, texts, _without_sentences(cut), pairs)
        if cut.asked:
            rivals["isotrieve, sentences too"] = _isotrieve(arguments, place, texts, _stacked(cut), pairs)
    said: dict[str, Any] = {
        "document": bridge.spec.document,
        "query": bridge.spec.query,
        "held_out": bridge.figures,
    }
    gathered: dict[str, dict[str, list[Found]]] = {}
    for name, pair in pairs.items():
        ways = list(ways_of(bridge, pair))
        ways += [
            Way(rival, pair.new.queries, of[f"documents.{name}"], pair.new.documents)
            for rival, of in rivals.items()
        ]
        crossed = [cross(way, pair.new, SHARES if _title(way) else (0.0, 1.0)) for way in ways]
        said[name] = short(matrix(pair, crossed))
        for title, found in _queries_asked(bridge, pair, name, rivals).items():
            gathered.setdefault(title, {}).setdefault("new/old", []).append(found)
        for each in crossed:
            if title := _title(each.way):
                cells = gathered.setdefault(title, {})
                cells.setdefault("new/old", []).append(each.mixed[0])
                for share, found in zip(each.shares, each.mixed, strict=True):
                    cells.setdefault(f"{share:g} new", []).append(found)
    said["all sets"] = _pooled(gathered, pairs)
    return said


def short(found: dict[str, Any]) -> dict[str, Any]:
    """A matrix without the mixed indexes of ways that were measured at their ends alone."""
    ways = [
        way
        if len(way["mixed"]) == len(SHARES)
        else {k: v for k, v in way.items() if k not in ("mixed", "verdict")}
        for way in found["ways"]
    ]
    return found | {"ways": ways}


def _title(way: Way) -> str:
    if way.chosen:
        return "ours"
    return (
        "ours, both encoders ask"
        if "both" in way.name
        else way.name
        if way.name.startswith("isotrieve")
        else ""
    )


def _queries_asked(
    bridge: Bridge, pair: JudgedPair, name: str, rivals: Mapping[str, Mapping[str, Vectors]]
) -> dict[str, Found]:
    """The other direction: new queries mapped to old vectors that stay as they are."""
    asked = {"ours, queries mapped": bridge.queries(pair.new.queries)}
    asked |= {f"{rival}, queries mapped": of[f"queries.{name}"] for rival, of in rivals.items()}
    return {title: found_by(rows, pair.old.documents, pair.new) for title, rows in asked.items()}


def _pooled(
    gathered: Mapping[str, Mapping[str, Sequence[Found]]], pairs: Mapping[str, JudgedPair]
) -> dict[str, Any]:
    """All sets' queries together: nDCG@10, how much more than old/old, and than isotrieve in the same direction."""
    old = _joined([found_by(pair.old.queries, pair.old.documents, pair.old) for pair in pairs.values()])
    said: dict[str, Any] = {}
    for title, cells in gathered.items():
        said[title] = {cell: _said(_joined(found), old) for cell, found in cells.items()}
        rival = "isotrieve, queries mapped" if title.endswith("queries mapped") else "isotrieve"
        if title.startswith("ours") and rival in gathered:
            ours, theirs = _joined(cells["new/old"]), _joined(gathered[rival]["new/old"])
            less = paired(ours - theirs)
            said[title][f"less {rival}"] = [round(value, 5) for value in (less.mean, less.low, less.high)]
    return said


def _joined(found: Sequence[Found]) -> NDArray[np.float64]:
    return np.concatenate([each.ndcg for each in found])


def _said(ndcg: NDArray[np.float64], old: NDArray[np.float64]) -> dict[str, Any]:
    more = paired(ndcg - old)
    return {
        "ndcg@10": round(float(ndcg.mean()), 5),
        "difference": round(more.mean, 5),
        "interval": [round(more.low, 5), round(more.high, 5)],
    }


def _alone(pairs: Mapping[str, JudgedPair]) -> dict[str, Any]:
    """Each encoder by itself, on all sets' queries together."""
    old = _joined([found_by(pair.old.queries, pair.old.documents, pair.old) for pair in pairs.values()])
    new = _joined([found_by(pair.new.queries, pair.new.documents, pair.new) for pair in pairs.values()])
    return {"old/old": _said(old, old), "new/new": _said(new, old), "queries": len(old)}


def _fitted(folder: Path, sample: Sample) -> Bridge:
    if not (folder / "bridge.json").exists():
        options = BridgeOptions(trained=len(sample.old) <= MOST_TRAINED)
        save_bridge(fit_bridge(sample.old, sample.new, options, sample.asked, harness.say), folder)
    return load_bridge(folder)


def _isotrieve(
    arguments: argparse.Namespace, place: str, texts: int, sample: Sample, pairs: Mapping[str, JudgedPair]
) -> dict[str, Vectors]:
    out = arguments.cache / f"isotrieve.{place}.{texts}.{len(sample.old)}.npz"
    if not out.exists():
        given = {f"documents.{name}": pair.old.documents for name, pair in pairs.items()}
        given |= {f"queries.{name}": pair.new.queries for name, pair in pairs.items()}
        into = arguments.cache / "isotrieve.in.npz"
        np.savez(into, old=sample.old, new=sample.new, **given)  # type: ignore[arg-type]
        subprocess.run([arguments.isotrieve, str(ISOTRIEVE), str(into), str(out)], check=True)
    with np.load(out) as kept:
        return {name: kept[name] for name in kept.files}


def _without_sentences(sample: Sample) -> Sample:
    """The same texts without their sentences."""
    return Sample(sample.old, sample.new)


def _stacked(sample: Sample) -> Sample:
    asked = sample.asked or (sample.old[:0], sample.new[:0])
    return Sample(np.concatenate([sample.old, asked[0]]), np.concatenate([sample.new, asked[1]]))


def _first(sample: Sample, texts: int) -> Sample:
    rows = np.random.default_rng(0).permutation(len(sample.old))[:texts]
    asked = (sample.asked[0][rows], sample.asked[1][rows]) if sample.asked else None
    return Sample(sample.old[rows], sample.new[rows], asked)


def _inside(pairs: Mapping[str, JudgedPair]) -> Sample:
    """The judged sets' own chunks, all sets together: what is bridged knows some of them."""
    return Sample(
        *(
            np.concatenate([getattr(pair, side).documents for pair in pairs.values()])
            for side in ("old", "new")
        )
    )


def _outside(file: Path, models: Sequence[Sequence[str]], cache: Path) -> Sample:
    parts = []
    for name, folder in models:
        cached = cache / f"{name}.texts.npz"
        if not cached.exists():
            table = pq.read_table(file)
            encoder = load_plain_encoder(EncoderConfig(model=folder, max_tokens=MAX_TOKENS))
            texts = embed_texts(table["text"].to_pylist(), encoder, lambda _: None)
            np.savez(cached, documents=texts, sentences=encoder.encode_queries(table["sentence"].to_pylist()))
            encoder.close()
        with np.load(cached) as kept:
            parts.append((kept["documents"], kept["sentences"]))
    (old, old_asked), (new, new_asked) = parts
    return Sample(old, new, (old_asked, new_asked))


def _judged(path: Path, models: Sequence[Sequence[str]], cache: Path) -> JudgedPair:
    files = [cache / f"{name}.{path.name}.npz" for name, _ in models]
    if not all(file.exists() for file in files):
        harness.say(f"embedding {path.name}")
        settings = [
            Settings(encoder=EncoderConfig(model=folder, max_tokens=MAX_TOKENS)) for _, folder in models
        ]
        judged = (str(path / "documents.parquet"), path / "queries.parquet", path / "qrels.parquet")
        pair = embed_pair(*settings, *judged, lambda _: None)
        for file, side in zip(files, (pair.old, pair.new), strict=True):
            np.savez(file, documents=side.documents, owners=side.owners, ids=np.array(side.ids),
                     queries=side.queries, query_ids=np.array(side.query_ids))  # fmt: skip
    sides = []
    for file in files:
        with np.load(file) as kept:
            ids, query_ids = kept["ids"].tolist(), kept["query_ids"].tolist()
            rows = to_unit(kept["documents"]), kept["owners"], ids, to_unit(kept["queries"]), query_ids
        sides.append(JudgedVectors(path.name, *rows, read_qrels(path / "qrels.parquet")))
    return JudgedPair(*sides)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET")
    parser.add_argument("--old", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--new", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--outside", type=Path, required=True, metavar="PARQUET")
    parser.add_argument("--isotrieve", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--texts", type=int, nargs="+", default=[500, 2000, 4000])
    return parser.parse_args()


if __name__ == "__main__":
    main()
