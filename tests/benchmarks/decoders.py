"""Encoders out of a language model on sentence pairs: prompts, Token Prepending on and off, last layer and chosen one.

    python tests/benchmarks/decoders.py MODEL --pairs FOLDER [--dev stsb-dev] [--sets stsb-test:0,sick-test:600,…]

FOLDER holds Parquet files with columns sentence1, sentence2, score; exits and layers are chosen on the dev set alone.
Sentences are cleaned as in the papers' code. Vectors are those of the stock model, to which the gate holds exported
encoders. Every cell is added to results/decoders.MODEL.cells.jsonl when it is done: a run that was
ended goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, add_cell, read_cells, write_result
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders.decoders.sweep import Checkpoint
from pipeline.evaluation.sts import Pairs, cosines_of, read_pairs, spearman, spearman_resampled
from pipeline.evaluation.tuning import PROMPTS, exits_of, some_of

MEAN = "mean"

Set = tuple[str, int]
"""A file's name, and how many pairs of it; 0: all."""


def main() -> None:
    """Measure the cells that are missing; Ctrl-C loses one."""
    given = _arguments()
    model = Checkpoint.open(EncoderConfig(model=given.model))
    file = RESULTS / f"decoders.{Path(given.model).name}.cells.jsonl"
    cells = {cell.pop("key"): cell for cell in read_cells(file)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        sets = [_set(part) for part in given.sets.split(",")]
        of_prompt = 1 + len(exits_of(model.layers, DecoderConfig().start)) + 2 * len(sets)
        shown = bar.add_task("decoders", total=len(sets) + len(PROMPTS) * of_prompt)
        for name, most, prompt, exit in _todo(given, cells, model.layers, sets):
            key = f"{name} {most} {prompt} {exit}"
            bar.update(shown, description=key)
            if key not in cells:
                cells[key] = measure(model, given.pairs / f"{name}.parquet", most, prompt, exit)
                add_cell(file, {"key": key} | cells[key])
                report(given, cells, model.layers, sets)
            bar.advance(shown)
    report(given, cells, model.layers, sets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--dev", default="stsb-dev")
    parser.add_argument(
        "--sets",
        default="stsb-test:600,sick-test:600,sts2013:600,sts2015:600",
        help="each with how many pairs of it, drawn at random; 0: all",
    )
    parser.add_argument("--most-dev", type=int, default=200)
    return parser.parse_args()


def _set(part: str) -> Set:
    name, _, most = part.partition(":")
    return name, int(most or 0)


def _todo(
    given: argparse.Namespace, cells: dict[str, Any], layers: int, sets: list[Set]
) -> Iterator[tuple[str, int, str, int]]:
    """The cells in order: a prompt's test cells follow those of the dev set, which say how it is run."""
    for prompt in PROMPTS:
        for exit in (0, *exits_of(layers, DecoderConfig().start)):
            yield given.dev, given.most_dev, prompt, exit
        for name, most in sets:
            if prompt == PROMPTS[0]:
                yield name, most, MEAN, 0
            yield name, most, prompt, 0
            yield name, most, prompt, chosen(given, cells, prompt)[1][0]


def measure(model: Checkpoint, file: Path, most: int, prompt: str, exit: int) -> dict[str, Any]:
    """The cosines of a set's pairs at each layer of the upper half, and their scores."""
    pairs = cleaned(read_pairs(file))
    order = np.random.default_rng(0).permutation(len(pairs.scores))[: most or None]
    pairs = some_of(pairs, order)
    how = DecoderConfig(pooling="mean")
    if prompt != MEAN:
        how = DecoderConfig(prompt=prompt, token_prepending=exit > 0, exit=exit)
    since = time.perf_counter()
    vectors = model.vectors(how, pairs.texts)
    seconds = round(time.perf_counter() - since, 1)
    layers = range(max(model.layers // 2, exit), model.layers + 1)
    cosines = {str(out): cosines_of(vectors[out], pairs).round(6).tolist() for out in layers}
    return {
        "seconds": seconds,
        "texts": len(pairs.texts),
        "scores": pairs.scores.tolist(),
        "cosines": cosines,
    }


def cleaned(pairs: Pairs) -> Pairs:
    """As the papers' code has it: a full stop at the end, also for a question, and single quotes."""
    ended = [text if text[-1:] in ".?\"'" else f"{text}." for text in pairs.texts]
    quoted = [text.replace('"', "'") for text in ended]
    return replace(pairs, texts=[f"{text[:-1]}." if text.endswith("?") else text for text in quoted])


def score(cell: dict[str, Any], out: int) -> float:
    """Spearman at a layer."""
    return spearman(np.array(cell["cosines"][str(out)]), np.array(cell["scores"]))


def chosen(
    given: argparse.Namespace, cells: dict[str, Any], prompt: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(0, layer) without and (exit, layer) with prepending that scored best on the dev set."""
    scored = [
        (score(cell, int(out)), exit, int(out))
        for key, cell in cells.items()
        for name, most, of, exit in [(*key.split()[:3], int(key.split()[3]))]
        if (name, most, of) == (given.dev, str(given.most_dev), prompt)
        for out in cell["cosines"]
    ]
    best = [max(entry for entry in scored if (entry[1] > 0) == on)[1:] for on in (False, True)]
    return best[0], best[1]


def report(given: argparse.Namespace, cells: dict[str, Any], layers: int, sets: list[Set]) -> None:
    """Write decoders.json and decoders.md out of the cells that are there."""
    rows = [row for one in sets for row in _rows(given, cells, layers, one)]
    model = Path(given.model).name
    settings = {"dev": given.dev, "dev_pairs": given.most_dev or "all", "model": model}
    write_result("decoders", {"sets": [name for name, _ in sets]}, settings, 0, {"rows": rows})
    lines = [
        f"# {model}: Spearman × 100 of cosines",
        "",
        f"Pairs are drawn at random; exit and layer chosen on {settings['dev_pairs']} pairs of {given.dev}. Gain: of "
        "Token Prepending, with its 95 % interval (paired bootstrap over pairs).",
        "",
        "| set | pairs | prompt | layer | without | with | exit, out | gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row["gain"]) if row["gain"] else ""
        on = f"{row['on']:.1f}" if row["gain"] else ""
        where = f"{row['exit']}, {row['out_on']}" if row["gain"] else ""
        names = f"| {row['set']} | {row['pairs']:,} | {row['prompt']} | {row['layer']} ({row['out']}) "
        lines.append(f"{names}| {row['off']:.1f} | {on} | {where} | {gain} |")
    (RESULTS / "decoders.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _rows(
    given: argparse.Namespace, cells: dict[str, Any], layers: int, one: Set
) -> Iterator[dict[str, Any]]:
    name, most = one
    plain = cells.get(f"{name} {most} {MEAN} 0")
    if plain:
        mean, pairs = round(100 * score(plain, layers), 2), len(plain["scores"])
        yield {
            "set": name,
            "pairs": pairs,
            "prompt": MEAN,
            "layer": "last",
            "out": layers,
            "off": mean,
            "gain": None,
        }
    for prompt in PROMPTS:
        if f"{name} {most} {prompt} 0" not in cells:
            continue
        (_, off_layer), (exit, on_layer) = chosen(given, cells, prompt)
        off, on = (cells.get(f"{name} {most} {prompt} {number}") for number in (0, exit))
        if not off or not on:
            continue
        for layer, out, out_on in (("last", layers, layers), ("chosen", off_layer, on_layer)):
            values = [np.array(cell["cosines"][str(place)]) for cell, place in ((off, out), (on, out_on))]
            scores = np.array(off["scores"])
            drawn = [spearman_resampled(each, scores) for each in values]
            low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
            ours, theirs = (spearman(each, scores) for each in values)
            gain = [round(100 * float(value), 2) for value in (theirs - ours, low, high)]
            row = {
                "set": name,
                "pairs": len(scores),
                "prompt": prompt,
                "layer": layer,
                "out": out,
                "out_on": out_on,
                "exit": exit,
            }
            yield row | {"off": round(100 * ours, 2), "on": round(100 * theirs, 2), "gain": gain}


if __name__ == "__main__":
    main()
