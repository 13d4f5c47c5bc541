r"""Templates: structured rows become text.

`"{title}: {price} EUR\n{body}"` takes columns by name, whatever characters the name has; `{{` and `}}` are
braces. A null, an empty or blank string, NaN and an empty list are missing. A missing value renders as
nothing; a line (of the template) whose values are all missing is left out with its line break; a row whose
values are all missing has no text. Lines without values stay, for every row that has a value somewhere.

Numbers are written in the fewest digits that give them back, decimals with all digits of their scale, lists
joined by ", ", objects as JSON, everything else as in payloads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.values import Column, decoded, json_values, to_json

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|([{}])|([^{}]+)")


@dataclass(frozen=True)
class Line:
    """A line of a template: its text with `None` in the places of `columns`, in order."""

    pieces: tuple[str | None, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A parsed template."""

    lines: tuple[Line, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises UsageError for a brace without partner and for a template without columns."""
        template = cls(tuple(_parse_line(line, text) for line in text.split("\n")))
        if not template.columns:
            raise UsageError(
                f"template {text!r} names no column", 'Columns in braces: "{title}: {price} EUR"', "Add one"
            )
        return template

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns in the order of first use."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.columns))

    def render(self, values: dict[str, list[str]]) -> list[str]:
        """One text for each row; `values` has for each column a list of strings, "" where missing."""
        lines = [_render_line(line, values) for line in self.lines]
        anything = [any(row) for row in zip(*(values[name] for name in self.columns), strict=True)]
        return [
            "\n".join(part for part in parts if part is not None) if some else ""
            for some, parts in zip(anything, zip(*lines, strict=True), strict=True)
        ]


def _parse_line(line: str, template: str) -> Line:
    pieces: list[str | None] = []
    columns: list[str] = []
    for token in _TOKEN.finditer(line):
        column, stray, literal = token.groups()
        if stray:
            raise UsageError(
                f"template {template!r} has a {stray!r} without partner",
                "{column} for a column, {{ and }} for braces",
                "Double the brace, or close it on the same line",
            )
        if column:
            pieces.append(None)
            columns.append(column)
        else:
            pieces.append(literal or token.group()[0])
    return Line(tuple(pieces), tuple(columns))


def _render_line(line: Line, values: dict[str, list[str]]) -> list[str | None]:
    rows = len(next(iter(values.values())))
    if not line.columns:
        return ["".join(piece or "" for piece in line.pieces)] * rows
    pattern = "".join("%s" if piece is None else piece.replace("%", "%%") for piece in line.pieces)
    return [
        pattern % row if any(row) else None
        for row in zip(*(values[name] for name in line.columns), strict=True)
    ]


def written(array: Column) -> list[str]:
    """A column's values as a template writes them, "" where missing."""
    array = decoded(array)
    if pa.types.is_floating(array.type):
        numbers = array.fill_null(np.nan).to_numpy(
            zero_copy_only=False
        )  # in their own width: 0.1, not 0.10000000149
        return [str(number) if np.isfinite(number) else "" for number in numbers]
    if pa.types.is_decimal(array.type):
        return ["" if value is None else format(value, "f") for value in array.to_pylist()]
    return [_write(value) for value in json_values(array)]


def _write(value: Any) -> str:  # noqa: ANN401 - any JSON value
    match value:
        case None:
            return ""
        case str():
            return value if value.strip() else ""
        case list():
            return ", ".join(text for item in value if (text := _write(item)))
    return to_json(value)
