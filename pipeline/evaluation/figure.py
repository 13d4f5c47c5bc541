"""Plots as SVG: quality against bytes, one point a method; what each query gained or lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from pipeline.evaluation.codes import Row

_WIDTH, _HEIGHT = 900, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 210, 20, 40
_LINE = 10  # between two labels


def draw_quality(rows: Sequence[Row], file: Path, title: str = "") -> None:
    """Draw the share of the floats' nDCG@10 that each method keeps, with its interval; trained ones filled."""
    sizes = [row.bytes for row in rows]
    shares = [share for row in rows for share in row.kept_interval]
    low, high = min([*shares, 0.9]), max([*shares, 1.0])
    first, last = math.log2(min(sizes)), math.log2(max(sizes)) + 1e-9

    def across(size: int) -> float:
        return _LEFT + (math.log2(size) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def up(share: float) -> float:
        return _HEIGHT - _BOTTOM - (share - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><text x="{_LEFT}" y="14">{escape(title)}</text>'
    ]
    for tick in range(math.ceil(low * 20), math.floor(high * 20) + 1):
        y = up(tick / 20)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="8" y="{y + 4:.1f}">{tick * 5} %</text>')
    for size in sorted(set(sizes)):
        parts.append(f'<text x="{across(size):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{size}</text>')
    for size in sorted(set(sizes)):
        column = sorted((row for row in rows if row.bytes == size), key=lambda row: up(row.kept))
        labels = _apart([up(row.kept) for row in column])
        for row, label in zip(column, labels, strict=True):
            parts += _point(row, across(size), up(row.kept), [up(end) for end in row.kept_interval], label)
    parts.append(f'<text x="{_WIDTH - _RIGHT + 20}" y="{_HEIGHT - 12}">bytes a vector</text></svg>\n')
    file.write_text("".join(parts), encoding="utf-8")


def draw_differences(sets: Mapping[str, Sequence[float]], file: Path, title: str = "") -> None:
    """Draw each set's differences, one bar a query, in ascending order; what was lost is red."""
    height = (_HEIGHT - _TOP) / max(len(sets), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><text x="{_LEFT}" y="14">{escape(title)}</text>'
    ]
    for number, (name, differences) in enumerate(sets.items()):
        middle, reach = _TOP + (number + 0.5) * height, 0.4 * height
        most = max(map(abs, differences), default=0) or 1
        step = (_WIDTH - _LEFT - _RIGHT) / max(len(differences), 1)
        parts.append(f'<path d="M{_LEFT} {middle:.1f}H{_WIDTH - _RIGHT}" stroke="#bbb"/>')
        for place, value in enumerate(sorted(differences)):
            x, y = _LEFT + (place + 0.5) * step, middle - value / most * reach
            colour = "#c33" if value < 0 else "#06c"
            parts.append(f'<path d="M{x:.1f} {middle:.1f}V{y:.1f}" stroke="{colour}"/>')
        label = f'x="{_WIDTH - _RIGHT + 8}" y="{middle:.1f}" font-size="9"'
        parts.append(f"<text {label}>{escape(name[-36:])}, ±{most:.2f}</text>")
    file.write_text("".join(parts) + "</svg>\n", encoding="utf-8")


def _point(row: Row, x: float, y: float, ends: Sequence[float], label: float) -> list[str]:
    fill = "#06c" if row.trained else "#fff"
    return [
        f'<path d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="#bbb"/>',
        f'<path d="M{x:.1f} {y:.1f}L{x + 12:.1f} {label:.1f}" stroke="#06c" stroke-width=".4"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{fill}" stroke="#06c"/>',
        f'<text x="{x + 14:.1f}" y="{label + 3:.1f}" font-size="9">{escape(row.method)}</text>',
    ]


def _apart(heights: Sequence[float]) -> list[float]:
    """Where labels stand so that none covers another: at these ascending heights, or below the one before."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _LINE) if placed else height)
    return placed
