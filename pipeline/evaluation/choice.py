"""Which codes to store, from what `headwater codes eval` measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.codes import CodesSpec, codes_room
from pipeline.errors import UsageError


def choose(table: Path, most: int, points: int) -> dict[str, Any]:
    """The method that keeps most of the floats' nDCG@10 in at most `most` bytes of code, as JSON values.

    `table`: what `codes eval --json` printed. `codes` is the best of the codes folders in it, which `--codes` stores,
    with the bytes that each of `points` takes in memory and on disk, without and with its vector kept in 16 bits.
    Raises UsageError where nothing fits or the file is no such table.
    """
    rows, width = _read(table)
    fitting = [row for row in rows if row["bytes"] <= most]
    if not fitting:
        least = min(row["bytes"] for row in rows)
        raise UsageError(
            f"--bytes-per-document {most}: nothing in {table} is as small",
            f"At least {least}",
            "Train smaller codes, and measure them: headwater codes train … --dims …",
        )
    best = max(fitting, key=_quality)
    stored = max((row for row in fitting if row["codes"]), key=_quality, default=None)
    return {
        "bytes_per_document": most,
        "best": _said(best),
        "codes": stored and _said(stored) | _room(stored, width, points),
    }


def _quality(row: dict[str, Any]) -> tuple[float, int]:
    return row["kept"], -row["bytes"]


def _said(row: dict[str, Any]) -> dict[str, Any]:
    wanted = ("method", "bytes", "kept", "kept_interval", "rescored_kept", "recall@10")
    return {name: row[name] for name in wanted}


def _room(row: dict[str, Any], width: int, points: int) -> dict[str, int]:
    spec = CodesSpec("", 1, 8 * row["bytes"], "projection")
    alone, beside = (codes_room(spec, kept, points) for kept in (0, width))
    return {"ram": alone.ram, "disk": alone.disk, "disk_with_vectors": beside.disk}


def _read(table: Path) -> tuple[list[dict[str, Any]], int]:
    try:
        said = json.loads(table.read_text(encoding="utf-8"))
        rows, width = said["rows"], said["dims"]
        if not rows or any(row["bytes"] < 1 or row["kept"] < 0 for row in rows):
            raise ValueError("no row with bytes and quality")
        return rows, width
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{table} cannot be read: {type(error).__name__}: {error}",
            "What `headwater codes eval … --json` printed",
            "headwater codes eval … --json > table.json",
        ) from None
