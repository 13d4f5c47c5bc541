"""Long documents: every exported encoder given on the same passkeys and needles, beside truncation, windows and words.

    python tests/benchmarks/long.py out.json ENCODER_DIR… [--lengths 1024,2048] [--seeds 5] [--haystack FILE]

Writes the table and, beside it, a plot of nDCG@10; both grow as haystacks are done, so a run may be ended at any time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pipeline.config import EncoderConfig
from pipeline.encoders import load_encoder
from pipeline.evaluation.long import measure, method_of, read_lengths, rows, window_of
from pipeline.evaluation.needles import TASKS, make, read_prose

COLOURS = ("#888", "#000", "#06c", "#0a5", "#d33", "#b6b", "#e80", "#5bd", "#964", "#3a3")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("encoders", nargs="+")
    parser.add_argument("--lengths", default="1024,2048")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--haystack", type=Path)
    given = parser.parse_args()
    prose = read_prose(given.haystack)
    encoders = [load_encoder(EncoderConfig(model=folder)) for folder in given.encoders]
    measured, seconds = [], {method_of(encoder): 0.0 for encoder in encoders}
    for length in read_lengths(given.lengths):
        for seed in range(given.seeds):
            for task in TASKS:
                haystack = make(task, length, seed, prose)
                scores = {}
                for number, encoder in enumerate(encoders):
                    since = time.perf_counter()
                    scores |= measure(encoder, haystack, others=number == 0)
                    seconds[method_of(encoder)] += (time.perf_counter() - since) * (number > 0)
                measured.append((haystack, scores))
                table = rows(measured)
                said = {
                    "model": encoders[0].spec.weights[:12],
                    "window": window_of(encoders[0]),
                    "seeds": {
                        str(n): sum(h.length == n for h, _ in measured) // len(TASKS)
                        for n in read_lengths(given.lengths)
                    },
                    "haystack": given.haystack.name if given.haystack else "generated",
                    "seconds": {name: round(spent, 1) for name, spent in seconds.items() if spent},
                    "rows": table,
                }
                given.out.write_text(json.dumps(said, indent=1) + "\n")
                given.out.with_suffix(".svg").write_text(draw(table))
                ndcg = {name: round(float(scored.ndcg.mean()), 3) for name, scored in scores.items()}
                sys.stderr.write(f"{length} {seed} {task} {ndcg}\n")


def draw(table: list[dict]) -> str:
    """Bars of nDCG@10, a group a task and length, a colour a method."""
    groups = list(dict.fromkeys((row["task"], row["length"]) for row in table))
    methods = list(dict.fromkeys(row["method"] for row in table))
    width, height, bar = 80 + len(groups) * (len(methods) * 14 + 30), 300, 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 160} {height}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for tick in range(0, 11, 2):
        y = 260 - 24 * tick
        parts.append(
            f'<path d="M40 {y}H{width}" stroke="#ddd"/><text x="8" y="{y + 4}">{tick / 10:.1f}</text>'
        )
    for place, (task, length) in enumerate(groups):
        x = 50 + place * (len(methods) * 14 + 30)
        parts.append(f'<text x="{x}" y="278">{task} {length:,}</text>')
        for row in table:
            if (row["task"], row["length"]) == (task, length):
                at, value = x + 14 * methods.index(row["method"]), 240 * row["ndcg@10"]
                spread = 240 * row["ndcg@10_sd"]
                colour = COLOURS[methods.index(row["method"]) % len(COLOURS)]
                parts.append(
                    f'<rect x="{at}" y="{260 - value:.1f}" width="{bar}" height="{value:.1f}" fill="{colour}"/>'
                )
                parts.append(
                    f'<path d="M{at + 6} {260 - value - spread:.1f}v{2 * spread:.1f}" stroke="#000"/>'
                )
    for number, method in enumerate(methods):
        y = 30 + 16 * number
        parts.append(
            f'<rect x="{width + 10}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        parts.append(f'<text x="{width + 26}" y="{y}">{method}</text>')
    return "".join([*parts, f'<text x="{width + 10}" y="14">nDCG@10</text></svg>\n'])


if __name__ == "__main__":
    main()
