"""What the first layers and the first dimensions of a model are worth, and what they save.

    python tests/benchmarks/elastic.py SET… --sts FILE --encoder minilm=FOLDER:1,2,3,4,5,6 --cache DIR

Every exit is an encoder of its own (`encoder.layers`), whose vectors stay in --cache; dimensions are sliced as
`encoder.dims` does, before the normalisation. Tokens a second on one thread, in processor time, exits in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray
from spaces import embed_set, ndcg

from pipeline.config import EncoderConfig
from pipeline.encoders import Encoder, load_encoder
from pipeline.evaluation import read_qrels
from pipeline.evaluation.sts import cosines_of, embed_sentences, read_pairs, spearman

MAX_TOKENS = 256
DIMS = (64, 128, 256, 384, 768)
TIMED, ROUNDS = 128, 5
COLOURS = ("#d33", "#e80", "#0a5", "#06c", "#000")


def main() -> None:
    given = _arguments()
    given.cache.mkdir(parents=True, exist_ok=True)
    file = harness.RESULTS / "elastic.json"
    results = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else {}
    for each in given.encoder:
        name, rest = each.split("=", 1)
        folder, layers = rest.rsplit(":", 1)
        exits = sorted(map(int, layers.split(",")))
        results[name] = measure(name, folder, exits, given)
        settings = {"max_tokens": MAX_TOKENS, "threads": 1, "timed_texts": TIMED, "rounds": ROUNDS}
        harness.write_result(
            "elastic", harness.dataset_of(given.sts, len(read_pairs(given.sts).scores)), settings, 0, results
        )
        file.with_suffix(".md").write_text(table(results), encoding="utf-8")
        file.with_suffix(".svg").write_text(draw(results), encoding="utf-8")


def measure(name: str, folder: str, exits: Sequence[int], given: argparse.Namespace) -> dict[str, Any]:
    """A row an exit and number of dimensions."""
    encoders = {exit: _open(folder, exit, exit == exits[-1], given.cache) for exit in exits}
    qrels = {at.name: read_qrels(at / "qrels.parquet") for at in given.sets}
    pairs = read_pairs(given.sts)
    speeds = tokens_per_second(encoders, _texts(given.sets))
    rows = []
    for exit, encoder in encoders.items():
        harness.say(f"{name}: exit {exit}")
        sets = {
            at.name: _kept(
                given.cache / f"{name}.{exit}.{at.name}.npz", lambda e=encoder, at=at: embed_set(e, at)
            )
            for at in given.sets
        }
        file = given.cache / f"{name}.{exit}.{given.sts.stem}.npz"
        sentences = _kept(file, lambda e=encoder: {"vectors": embed_sentences(pairs.texts, e)[0]})["vectors"]
        for dims in (n for n in DIMS if n <= encoder.spec.dims):

            def first(vectors: NDArray[np.float32], dims: int = dims) -> NDArray[np.float32]:
                part = vectors[:, :dims]
                return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)

            found = {at: round(float(ndcg(of, qrels[at], first).mean()), 4) for at, of in sets.items()}
            found[given.sts.stem] = round(spearman(cosines_of(first(sentences), pairs), pairs.scores), 4)
            rows.append({"layers": exit, "dims": dims, **found})
    whole = speeds[exits[-1]]
    return {
        "tokens_per_second": {str(exit): round(speed) for exit, speed in speeds.items()},
        "speed": {str(exit): round(speed / whole, 2) for exit, speed in speeds.items()},
        "measures": [at.name for at in given.sets] + [given.sts.stem],
        "rows": rows,
    }


def tokens_per_second(encoders: Mapping[int, Encoder], texts: Sequence[str]) -> dict[int, float]:
    """The median over rounds of each exit's rate on the same texts, in processor time."""
    first = next(iter(encoders.values()))
    inputs = [first.tokenizer.encode(text) for text in texts]
    inputs = [ids for ids in inputs if len(ids) <= MAX_TOKENS][:TIMED]
    tokens = sum(map(len, inputs))

    def run(encoder: Encoder) -> float:
        since = time.process_time()
        encoder.encode(inputs)
        return tokens / (time.process_time() - since)

    turns = {str(exit): lambda e=encoder: run(e) for exit, encoder in encoders.items()}
    measured = harness.alternate(turns, ROUNDS)
    return {int(exit): float(np.median(rates)) for exit, rates in measured.items()}


def _open(folder: str, exit: int, whole: bool, cache: Path) -> Encoder:
    layers = 0 if whole else exit
    return load_encoder(
        EncoderConfig(
            model=folder, layers=layers, max_tokens=MAX_TOKENS, threads=1, provider="cpu", cache=str(cache)
        )
    )


def _texts(sets: Sequence[Path]) -> list[str]:
    import pyarrow.parquet as pq

    tables = (pq.read_table(at / "documents.parquet", columns=["text"]) for at in sets)
    return [text for table in tables for text in table["text"].to_pylist() if text]


def _kept(file: Path, make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if not file.exists():
        np.savez(file, **make())
    return dict(np.load(file))


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Fewer layers, fewer dimensions, measured",
        "",
        "nDCG@10 on judged sets and Spearman on sentence pairs, by the layer after which the model is left and by how "
        "many dimensions are kept; in brackets the share of the whole model's. Speed: tokens a second on one thread, "
        "relative to the whole model (medians of runs in turn). None of these models was trained for it, neither for "
        "dimensions (Matryoshka) nor for exits (2DMSE, Starbucks): this is what it costs without.",
        "",
        "![quality by speed](elastic.svg)",
    ]
    for name, found in results.items():
        measures, whole = found["measures"], found["rows"][-1]
        lines += ["", f"## {name}", "", f"| layers | speed | tokens/s | dims | {' | '.join(measures)} |"]
        lines.append("|---" * (4 + len(measures)) + "|")
        for row in found["rows"]:
            exit = str(row["layers"])
            speed, rate = (found[of][exit] for of in ("speed", "tokens_per_second"))
            cells = " | ".join(f"{row[at]:.3f} ({row[at] / whole[at]:.0%})" for at in measures)
            lines.append(f"| {exit} | {speed:.2f}× | {rate:,} | {row['dims']} | {cells} |")
    return "\n".join([*lines, ""])


def draw(results: Mapping[str, Any]) -> str:
    """A panel an encoder: the share of the whole model's quality by speed, a line a number of dimensions."""
    wide, tall, left, top = 380, 260, 50, 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(results) * (wide + 90) + 20} {tall + 80}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for number, (name, found) in enumerate(results.items()):
        x0, whole = left + number * (wide + 90), found["rows"][-1]
        most = max(found["speed"].values())

        def at(speed: float, share: float, x0: int = x0, most: float = most) -> str:
            x = x0 + wide * np.log(max(speed, 1)) / np.log(max(most, 1.01))
            return f"{x:.1f} {top + tall * (1 - share):.1f}"

        parts.append(
            f'<text x="{x0}" y="16">{name}: share of the whole model, mean of {len(found["measures"])}</text>'
        )
        for tick in range(0, 11, 2):
            x, y = at(1, tick / 10).split()
            parts.append(
                f'<path d="M{x} {y}h{wide}" stroke="#ddd"/><text x="{x0 - 36}" y="{y}">{tick * 10} %</text>'
            )
        for exit, speed in found["speed"].items():
            x, y = at(speed, 0).split()
            parts.append(f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{exit}</text>')
            parts.append(
                f'<text x="{x}" y="{float(y) + 30:.1f}" text-anchor="middle" font-size="8">{speed:.1f}×</text>'
            )
        parts.append(f'<text x="{x0}" y="{top + tall + 44}">layers that run, and tokens a second</text>')
        for line, dims in enumerate(sorted({row["dims"] for row in found["rows"]})):
            points = [
                at(
                    found["speed"][str(row["layers"])],
                    float(np.mean([row[of] / whole[of] for of in found["measures"]])),
                )
                for row in found["rows"]
                if row["dims"] == dims
            ]
            parts.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{COLOURS[line]}"/>')
            parts += [
                f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="2.5" fill="{COLOURS[line]}"/>'
                for p in points
            ]
            y = top + tall - 12 * (line + 1)
            parts.append(f'<text x="{x0 + 6}" y="{y}" fill="{COLOURS[line]}">{dims} dimensions</text>')
    return "".join([*parts, "</svg>\n"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--sts", type=Path, required=True)
    parser.add_argument(
        "--encoder", action="append", required=True, help="NAME=FOLDER:EXIT,…, the last the whole model"
    )
    parser.add_argument("--cache", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
