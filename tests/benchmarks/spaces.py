"""Do fitted spaces help? Judged retrieval and sentence pairs, before and after, fitted on other texts and on their own.

    python tests/benchmarks/spaces.py SET… --sts FILE… --encoder minilm=FOLDER --sample PARQUET --cache DIR

A SET is a folder with documents.parquet, queries.parquet and qrels.parquet, a FILE holds sentence1, sentence2 and
score. Raw vectors are embedded once and stay in --cache. Differences are paired by query, or by pair of sentences.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

from pipeline.config import EncoderConfig, Settings
from pipeline.encoders import Encoder, describe, prepare, read_sample
from pipeline.encoders.space import fit
from pipeline.encoders.spaced import open_raw
from pipeline.errors import UsageError
from pipeline.evaluation import rank, read_qrels, read_queries
from pipeline.evaluation.bootstrap import interval, resampled
from pipeline.evaluation.judged import open_judged
from pipeline.evaluation.retrieval import query_metrics
from pipeline.evaluation.sts import (
    Pairs,
    cosines_of,
    embed_sentences,
    read_pairs,
    spearman,
    spearman_resampled,
)
from pipeline.lane.embedding import embed_chunks

MAX_TOKENS = 256
KINDS = ("centre", "all-but-the-top:1", "all-but-the-top", "whiten", "whiten:256")
Vectors = Mapping[str, NDArray[Any]]
Map = Callable[[NDArray[np.float32]], NDArray[np.floating]]


def main() -> None:
    given = _arguments()
    given.cache.mkdir(parents=True, exist_ok=True)
    sample = list(dict.fromkeys(read_sample(given.sample, given.column)))
    results = {}
    for name, folder in (each.split("=", 1) for each in given.encoder):
        config = EncoderConfig(
            model=folder, max_tokens=MAX_TOKENS, cache=str(given.cache), threads=given.threads
        )
        results[name] = measure(name, config, given, sample)
        dataset = harness.dataset_of(given.sample, len(sample))
        harness.write_result("spaces", dataset, {"kinds": KINDS, "max_tokens": MAX_TOKENS}, 0, results)
        (harness.RESULTS / "spaces.md").write_text(
            table(results, given.sample.name, len(sample)), encoding="utf-8"
        )


def measure(name: str, config: EncoderConfig, given: argparse.Namespace, sample: list[str]) -> dict[str, Any]:
    """Rows of one encoder, by kind and by what it was fitted on."""
    encoder: list[Encoder] = []

    def embedded(part: str, make: Callable[[Encoder], Vectors]) -> Vectors:
        """Vectors of a part, out of the cache where they are there."""
        file = given.cache / f"{name}.{part}.npz"
        if not file.exists():
            harness.say(f"{name}: embedding {part}")
            if not encoder:
                spec = describe(config)
                encoder.append(open_raw(spec, prepare(spec, config), config))
            np.savez(file, **make(encoder[0]))
        return dict(np.load(file))

    outside = embedded("sample", lambda e: {"vectors": embed_sentences(sample, e)[0]})["vectors"]
    sets = {at.name: embedded(at.name, lambda e, at=at: embed_set(e, at)) for at in given.sets}
    pairs = {at.stem: read_pairs(at) for at in given.sts}
    sentences = {
        at: embedded(at, lambda e, of=of: {"vectors": embed_sentences(of.texts, e)[0]})["vectors"]
        for at, of in pairs.items()
    }
    qrels = {at.name: read_qrels(at / "qrels.parquet") for at in given.sets}
    plain = {at: ndcg(of, qrels[at], _unit) for at, of in sets.items()}
    alike = {at: cosines_of(of, pairs[at]) for at, of in sentences.items()}
    rows = [
        {
            "space": kind,
            "fitted_on": where,
            "retrieval": _retrieval(kind, outside if where == "outside" else None, sets, qrels, plain),
            "sts": _sts(kind, outside if where == "outside" else None, sentences, pairs, alike),
        }
        for where in ("outside", "inside")
        for kind in KINDS
    ]
    return {
        "ndcg@10": {at: round(float(values.mean()), 5) for at, values in plain.items()},
        "spearman": {at: round(spearman(cosines, pairs[at].scores), 5) for at, cosines in alike.items()},
        "rows": rows,
    }


def embed_set(encoder: Encoder, folder: Path) -> Vectors:
    """Raw vectors of a judged set's chunks and queries, chunked as a run would."""
    settings = Settings()
    ids, texts = read_queries(folder / "queries.parquet")
    with tempfile.TemporaryDirectory() as scratch:
        settings, source = open_judged(str(folder / "documents.parquet"), settings, Path(scratch))
        chunks = embed_chunks(source, settings, encoder, lambda _: None)
    found = {"documents": chunks.vectors, "owners": chunks.owners, "ids": np.array(chunks.documents)}
    return found | {"queries": encoder.encode_queries(texts), "query_ids": np.array(ids)}


def ndcg(vectors: Vectors, qrels: Any, change: Map) -> NDArray[np.float64]:
    """float64[queries] of a set whose vectors are changed this way."""
    documents, queries = (change(vectors[of]).astype(np.float32) for of in ("documents", "queries"))
    best, _ = rank(queries, documents, vectors["owners"], 10)
    ids = vectors["ids"].tolist()
    run = {
        q: [ids[n] for n in row] for q, row in zip(vectors["query_ids"].tolist(), best.tolist(), strict=True)
    }
    return np.array([each["ndcg@10"] for each in query_metrics(run, qrels).values()])


def _retrieval(
    kind: str, outside: Any, sets: Mapping[str, Vectors], qrels: Any, plain: Any
) -> dict[str, Any]:
    """Differences of nDCG@10 by set, and as their mean; None where a set is too small to be fitted on."""
    differences = {}
    for at, vectors in sets.items():
        try:
            space = fit(kind, vectors["documents"] if outside is None else outside)
        except UsageError:
            continue
        differences[at] = ndcg(vectors, qrels[at], space.apply) - plain[at]
    found = {at: _said(values.mean(), resampled([values])) for at, values in differences.items()}
    if len(found) == len(sets):
        each = list(differences.values())
        found["all"] = _said(np.mean([values.mean() for values in each]), resampled(each))
    return found


def _sts(
    kind: str,
    outside: Any,
    sentences: Mapping[str, Any],
    pairs: Mapping[str, Pairs],
    alike: Mapping[str, Any],
) -> dict[str, Any]:
    """Differences of Spearman by file, and as their mean."""
    means, draws = {}, {}
    for at, vectors in sentences.items():
        space = fit(kind, vectors if outside is None else outside)
        cosines, scores = cosines_of(space.apply(vectors).astype(np.float32), pairs[at]), pairs[at].scores
        means[at] = spearman(cosines, scores) - spearman(alike[at], scores)
        draws[at] = spearman_resampled(cosines, scores) - spearman_resampled(alike[at], scores)
    found = {at: _said(means[at], draws[at]) for at in means}
    return found | {"all": _said(np.mean(list(means.values())), np.mean(list(draws.values()), axis=0))}


def _said(mean: Any, drawn: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in (mean, *interval(drawn))]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.floating]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def table(results: Mapping[str, Any], sample: str, texts: int) -> str:
    """The results as Markdown."""
    lines = [
        "# Fitted spaces, measured",
        "",
        "Differences from the encoder as it is, with 95 % intervals (paired bootstrap over queries or pairs); "
        f"**bold** where they leave out 0. Outside: fitted on {texts:,} texts of {sample}, none of them judged."
        " Inside: on the set's own documents, or the file's own sentences; – where they are too few.",
    ]
    for name, found in results.items():
        for measure, title in (("retrieval", "ndcg@10"), ("sts", "spearman")):
            columns = ["all", *found[title]]
            plain = " | ".join(f"{found[title][at]:.3f}" for at in columns[1:])
            lines += [
                "",
                f"## {name}: {title}",
                "",
                f"| | | {' | '.join(columns)} |",
                "|---" * (len(columns) + 2) + "|",
            ]
            lines.append(f"| as it is | | {np.mean(list(found[title].values())):.3f} | {plain} |")
            for row in found["rows"]:
                cells = " | ".join(_cell(row[measure].get(at)) for at in columns)
                lines.append(f"| {row['space']} | {row['fitted_on']} | {cells} |")
    return "\n".join([*lines, ""])


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "–"
    text = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*values)
    return f"**{text}**" if values[1] > 0 or values[2] < 0 else text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--sts", nargs="+", type=Path, required=True)
    parser.add_argument("--encoder", action="append", required=True, help="NAME=FOLDER")
    parser.add_argument("--sample", type=Path, required=True, help="a Parquet file of texts")
    parser.add_argument("--column", default="text")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
