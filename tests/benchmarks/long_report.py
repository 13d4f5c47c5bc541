"""long.md and long.svg out of what `long.py`, `long_cost.py` and `late_chunking.py` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness import RESULTS

COLOURS = ("#888", "#bbb", "#06c", "#000", "#0a5", "#d33", "#b6b", "#e80", "#5bd", "#964")
_BAR, _GAP, _LEFT, _BASE, _TALL = 14, 30, 50, 260, 240


def write_report(rows: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> None:
    """Write the tables and the plot; what was not measured yet is left out."""
    (RESULTS / "long.svg").write_text(draw(rows), encoding="utf-8")
    parts = [
        "# Long documents, measured",
        f"{said['model']}, window {said['window']}, every method up to {said['max_tokens']:,} tokens; needles in "
        f"prose: {said['haystack']}. 100 documents and 50 queries a seed; one vector a document, but for best window "
        "(one a window), best chunk and late-chunking (one for each 128 tokens) and bm25 (words). Over truncation: the "
        "difference in nDCG@10 with its 95 % interval, paired by query, what several seeds ask drawn together. Hub: "
        "the most queries of a seed, of 50, that one document won.",
        "![nDCG@10](long.svg)",
        *(_quality(rows, length) for length in sorted({row["length"] for row in rows})),
        *_cost(),
        *_late(),
    ]
    (RESULTS / "long.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _quality(rows: Sequence[Mapping[str, Any]], length: int) -> str:
    head = (
        "| task | method | seeds | Acc@1 | nDCG@10 | over truncation | hub |\n|---|---|---|---|---|---|---|\n"
    )
    return (
        f"## {length:,} nominal tokens\n\n"
        + head
        + "\n".join(
            f"| {row['task']} | {row['method']} | {row['seeds']} | {row['accuracy']:.2f} | {row['ndcg@10']:.3f} "
            f"± {row['ndcg@10_sd']:.3f} | {_signed(row['ndcg@10_gain'])} | {row['hub']} |"
            for row in sorted(rows, key=lambda row: row["task"] != "passkey")
            if row["length"] == length
        )
    )


def _signed(gain: Sequence[float] | None) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain) if gain else ""


def _cost() -> list[str]:
    file = RESULTS / "long_cost.json"
    if not file.exists():
        return []
    said = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"| {row['method']} | {row['tokens']:,} | {row['threads']} | {row['tokens_per_second']:,} | "
        f"{row['peak_mib']:,} |"
        for row in said["results"]["rows"]
    ]
    head = "| method | tokens a text | threads | tokens a second | peak MiB |\n|---|---|---|---|---|\n"
    return ["## Cost\n\n" + said["results"]["note"], head + "\n".join(lines)]


def _late() -> list[str]:
    file = RESULTS / "late_chunking.json"
    if not file.exists():
        return []
    said = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"| {row['set']} | {row['chunk']} | {row['method']} | {row['ndcg@10']:.3f} | {_signed(row['over_plain'])} | "
        f"{_signed(row['over_late'])} | {row['seconds']:.0f} |"
        for row in said["results"]["rows"]
    ]
    names = ("set", "tokens a chunk", "method", "nDCG@10", "over plain", "over late", "CPU seconds")
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    settings = said["settings"]
    note = (
        f"{settings['model']}; late: the window of {settings['window']} tokens, in passes; late:pi and so on: "
        f"{settings['longest']:,} tokens at once. SET*4: four documents in a row are one; python: what "
        "`python_pages.py` makes. "
    ) + " ".join(
        f"{name}: {of['documents']:,} documents, {of['long documents']} longer than the window, the longest of "
        f"{of['longest']:,} tokens."
        for name, of in said["dataset"]["sets"].items()
    )
    return ["## Late chunking on judged sets", note, head + "\n".join(lines)]


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bars of nDCG@10 with the spread over seeds, a group a task and length, a colour a method."""
    groups = list(dict.fromkeys((row["task"], row["length"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    step = len(methods) * _BAR + _GAP
    width = _LEFT + len(groups) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 160} 300" font-family="sans-serif" '
        'font-size="11">'
    ]
    for tick in range(0, 11, 2):
        y = _BASE - _TALL * tick // 10
        parts.append(
            f'<path d="M40 {y}H{width}" stroke="#ddd"/><text x="8" y="{y + 4}">{tick / 10:.1f}</text>'
        )
    for place, (task, length) in enumerate(groups):
        x = _LEFT + place * step
        parts.append(f'<text x="{x}" y="278">{task} {length:,}</text>')
        inside = [row for row in rows if (row["task"], row["length"]) == (task, length)]
        parts += [_bar(row, x + _BAR * methods.index(row["method"]), methods) for row in inside]
    for number, method in enumerate(methods):
        y = 30 + 16 * number
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{width + 10}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{width + 26}" y="{y}">{method}</text>')
    return "".join([*parts, f'<text x="{width + 10}" y="14">nDCG@10</text></svg>\n'])


def _bar(row: Mapping[str, Any], x: int, methods: Sequence[str]) -> str:
    value, spread = _TALL * row["ndcg@10"], _TALL * row["ndcg@10_sd"]
    colour = COLOURS[methods.index(row["method"]) % len(COLOURS)]
    return (
        f'<rect x="{x}" y="{_BASE - value:.1f}" width="12" height="{value:.1f}" fill="{colour}"/>'
        f'<path d="M{x + 6} {_BASE - value - spread:.1f}v{2 * spread:.1f}" stroke="#000"/>'
    )
