"""Long documents: passkeys and needles found by each way of embedding them, beside truncation, windows and words.

    python tests/benchmarks/long.py --model MODEL [--lengths 512,1024,2048] [--seeds 5] [--haystack FILE]

Every cell, one way on one haystack, is added to results/long.MODEL.cells.jsonl when it is done: a run that was ended
goes on, with the same haystack.
The table, its plot and long.md are written again after each. `long_cost.py` measures what each way costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, add_cell, read_cells, write_result
from long_report import write_report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import ChunkingConfig, EncoderConfig, Settings
from pipeline.encoders import Encoder, load_encoder
from pipeline.evaluation.long import (
    MEAN_OF_WINDOWS,
    Scores,
    measure,
    measure_late,
    measure_others,
    read_lengths,
    rows,
    window_of,
)
from pipeline.evaluation.needles import TASKS, Haystack, make, read_prose

METHODS = "pcw,rp,pi,pi-dynamic,gp,late-chunking"
CHUNK = 128  # tokens, for late chunking
WINDOW = 512  # of MiniLM: what late chunking takes at once


def main() -> None:
    """Measure the cells that are missing; Ctrl-C loses one."""
    given = _arguments()
    methods = given.methods.split(",")
    # Within the window all methods are the plain model.
    orders = product(range(given.seeds), read_lengths(given.lengths), TASKS, methods)
    todo = [
        (length, seed, task, method)
        for seed, length, task, method in orders
        if length > given.shortest or method == methods[0]
    ]
    cells = RESULTS / f"long.{Path(given.model).name}.cells.jsonl"
    done = {key_of(cell) for cell in read_cells(cells)}
    prose = read_prose(given.haystack)
    encoders: dict[str, Encoder] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("long", total=len(todo), completed=sum(cell in done for cell in todo))
        for length, seed, task, method in todo:
            if (length, seed, task, method) in done:
                continue
            bar.update(shown, description=f"{length:,} {task} {seed} {method}")
            if method not in encoders:
                encoders[method] = load_encoder(settings_of(given.model, method, given.max_tokens))
            since = time.process_time()
            haystack = make(task, length, seed, prose)
            scores = _measure(encoders[method], haystack)
            if method == methods[0]:  # its cells have those of the plain model too, which ntk is not
                scores = measure_others(encoders[method], haystack) | scores
            cell = {"length": length, "seed": seed, "task": task, "method": method}
            cell |= {"cpu_s": round(time.process_time() - since, 1), "scores": _as_json(scores)}
            add_cell(cells, cell)
            report(given, window_of(encoders[method]), table(read_cells(cells), prose))
            bar.advance(shown)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", default=METHODS, help="with +scaling for sharper attention")
    parser.add_argument("--lengths", default="512,1024,2048")
    parser.add_argument(
        "--shortest", type=int, default=512, help="up to here all methods are the plain model"
    )
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--haystack", type=Path, help="prose for needles; without it, generated")
    return parser.parse_args()


def _measure(encoder: Encoder, haystack: Haystack) -> dict[str, Scores]:
    if encoder.late:
        chunked = Settings(chunking=ChunkingConfig(max_tokens=CHUNK))
        return measure_late(encoder, encoder, haystack, chunked)
    return measure(encoder, haystack)


def settings_of(model: str, method: str, max_tokens: int) -> EncoderConfig:
    name, _, scaling = method.partition("+")
    return EncoderConfig(
        model=model,
        long=name,
        max_tokens=WINDOW if name == "late-chunking" else max_tokens,
        attention_scaling=bool(scaling),
        provider="cpu",
        threads=1,
    )


def key_of(cell: dict[str, Any]) -> tuple[int, int, str, str]:
    """Length, seed, task and method."""
    return cell["length"], cell["seed"], cell["task"], cell["method"]


def _as_json(scores: dict[str, Scores]) -> dict[str, Any]:
    return {
        name: {"places": scored.places.tolist(), "hub": scored.hub}
        for name, scored in scores.items()
        if name != MEAN_OF_WINDOWS  # nearly what pcw does
    }


def table(cells: Sequence[dict[str, Any]], prose: Sequence[str]) -> list[dict[str, Any]]:
    """Cells as rows of means over seeds, with differences to truncation paired by query."""
    measured: dict[tuple[str, int, int], dict[str, Scores]] = {}
    for cell in cells:
        scores = {
            name: Scores(np.array(said["places"]), said["hub"], 0) for name, said in cell["scores"].items()
        }
        measured.setdefault((cell["task"], cell["length"], cell["seed"]), {}).update(scores)
    found = rows([(make(*key, prose), scores) for key, scores in measured.items()])
    for row in found:
        del row["truncated"]  # cells do not hold it
    return found


def report(given: argparse.Namespace, window: int, found: Sequence[dict[str, Any]]) -> None:
    """Write long.json, long.md and long.svg out of the cells that there are."""
    settings = {"model": Path(given.model).name, "window": window, "max_tokens": given.max_tokens}
    haystack = given.haystack.parent.name if given.haystack else "generated"
    write_result("long", {"passkey": "generated", "needle in": haystack}, settings, 0, {"rows": found})
    write_report(found, settings | {"haystack": haystack})


if __name__ == "__main__":
    main()
