"""results/bridges.json as a page and a drawing."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

COLOURS = {"ours": "#06c", "ours, both encoders ask": "#093", "isotrieve": "#c60"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 260, 46, 34, 40


def write(file: Path) -> None:
    """Write the page and the drawing beside the JSON file."""
    record = json.loads(file.read_text(encoding="utf-8"))
    file.with_suffix(".md").write_text(page(record), encoding="utf-8")
    file.with_suffix(".svg").write_text(drawing(record["results"]), encoding="utf-8")


def page(record: dict[str, Any]) -> str:
    """Tables of all that was measured, in Markdown."""
    results = record["results"]
    sets = list(record["dataset"])
    alone = results["encoders"]
    lines = [
        "# Bridges, measured",
        "",
        f"Sets and their chunks: {', '.join(f'{name} {chunks}' for name, chunks in record['dataset'].items())}. "
        "nDCG@10; differences from old/old with 95 % intervals from resampling queries. "
        f"All {alone['queries']} queries together: old/old {alone['old/old']['ndcg@10']:.3f}, "
        f"new/new {alone['new/new']['ndcg@10']:.3f} ({_interval(alone['new/new'])}).",
        "",
        "Outside texts are other people's: manuals, encyclopaedia, news. Inside texts are drawn from the sets' own "
        f"{sum(record['dataset'].values())} chunks, so that many of the documents searched are known to the bridge. "
        "isotrieve is fitted on the same texts; `sentences too`: and on the sentence of each that ours is fitted on.",
        "",
        "![nDCG@10](bridges.svg)",
    ]
    for place in [name for name in results if name != "encoders"]:
        found = results[place]
        lines += ["", f"## Fitted on {place} texts", ""]
        lines += [f"In force: documents by `{found['document']}`, queries by `{found['query']}`.", ""]
        lines += [
            "| all sets together | new/old | against old/old | 25 % new | 50 % | 75 % | 100 % | less isotrieve |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [_pooled_row(title, cells) for title, cells in found["all sets"].items()]
        for name in sets:
            lines += ["", *_set_table(name, found[name])]
    return "\n".join(lines) + "\n"


def _pooled_row(title: str, cells: dict[str, Any]) -> str:
    mixed = [
        f"{cells[cell]['ndcg@10']:.3f}" if cell in cells else ""
        for cell in ("0.25 new", "0.5 new", "0.75 new", "1 new")
    ]
    less = next((cells[cell] for cell in cells if cell.startswith("less ")), None)
    said = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*less) if less else ""
    crossed = cells["new/old"]
    return " | ".join(["| " + title, f"{crossed['ndcg@10']:.3f}", _interval(crossed), *mixed, said + " |"])


def _set_table(name: str, found: dict[str, Any]) -> list[str]:
    old, new = found["old/old"], found["new/new"]
    lines = [
        f"**{name}**, {found['queries']} queries: old/old {old['ndcg@10']:.3f}, new/new {new['ndcg@10']:.3f} "
        f"({_interval(new)})",
        "",
        "| | new/old | against old/old | gap recovered | old/new | 25 % new (found/relevant) | 50 % | 75 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in found["ways"]:
        recovered = "" if way["recovered"] is None else f"{way['recovered']:.0%}"
        turned = f"{way['old/new']['ndcg@10']:.3f}" if "old/new" in way else ""
        mixed = [
            f"{row['ndcg@10']:.3f} ({row['new_found']:.2f}/{row['new_relevant']:.2f})"
            for row in way.get("mixed", [])[1:-1]
        ]
        mixed = mixed or [""] * 3
        cell = way["new/old"]
        title = f"**{way['way']}**" if way["chosen"] else way["way"]
        lines.append(
            "| "
            + " | ".join([title, f"{cell['ndcg@10']:.3f}", _interval(cell), recovered, turned, *mixed])
            + " |"
        )
    return lines


def _interval(cell: dict[str, Any]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(cell["difference"], *cell["interval"])


def drawing(results: dict[str, Any]) -> str:
    """Quality against the number of texts, outside and inside, and on the way from old to new."""
    alone = {name: results["encoders"][name]["ndcg@10"] for name in ("old/old", "new/new")}
    panels = []
    for place in ("outside", "inside"):
        runs = {int(name.split()[1]): found for name, found in results.items() if name.startswith(place)}
        lines = {
            title: [(texts, found["all sets"][title]["new/old"]["ndcg@10"]) for texts, found in runs.items()]
            for title in COLOURS
            if all(title in found["all sets"] for found in runs.values())
        }
        panels.append((f"new/old, fitted on {place} texts", lines))
        last = runs[max(runs)]["all sets"]
        ways = {
            title: [
                (float(cell.split()[0]), value["ndcg@10"])
                for cell, value in last[title].items()
                if cell.endswith(" new")
            ]
            for title in lines
        }
        panels.append((f"share of new documents, {max(runs)} texts {place}", ways))
    values = [value for _, lines in panels for points in lines.values() for _, value in points] + [
        *alone.values()
    ]
    low, high = min(values) - 0.01, max(values) + 0.01
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT + 20 * len(COLOURS)}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for number, (title, lines) in enumerate(panels):
        parts += _panel(number * WIDTH, title, lines, alone, low, high)
    for number, (title, colour) in enumerate(COLOURS.items()):
        y = HEIGHT + 16 * number
        parts.append(f'<path d="M{LEFT} {y}h20" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 26}" y="{y + 4}">{escape(title)}</text>')
    return "".join(parts) + "</svg>\n"


def _panel(
    x: float,
    title: str,
    lines: dict[str, list[tuple[float, float]]],
    alone: dict[str, float],
    low: float,
    high: float,
) -> list[str]:
    first = min(at for points in lines.values() for at, _ in points)
    last = max(at for points in lines.values() for at, _ in points)

    def across(at: float) -> float:
        return x + LEFT + (at - first) / ((last - first) or 1) * (WIDTH - LEFT - 20)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{x + LEFT}" y="16">{escape(title)}</text>']
    for name, value in alone.items():
        parts.append(
            f'<path d="M{x + LEFT} {up(value):.1f}H{x + WIDTH - 20}" stroke="#999" stroke-dasharray="4 3"/>'
        )
        parts.append(
            f'<text x="{x + LEFT + 2}" y="{up(value) - 3:.1f}" fill="#666">{name} {value:.3f}</text>'
        )
    for title_of, points in lines.items():
        path = "L".join(f"{across(at):.1f} {up(value):.1f}" for at, value in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[title_of]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across(at):.1f}" cy="{up(value):.1f}" r="3" fill="{COLOURS[title_of]}"/>'
            for at, value in points
        ]
    ticks = sorted({at for points in lines.values() for at, _ in points})
    parts += [
        f'<text x="{across(at):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{at:g}</text>' for at in ticks
    ]
    return parts
