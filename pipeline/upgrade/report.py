"""A verdict as a folder to read: report.md, verdict.json, and a plot of what each query gained or lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.evaluation.figure import draw_differences
from pipeline.upgrade.verdict import Compared, Verdict

_SHOWN = 10


def write_report(verdict: Verdict, folder: Path) -> None:
    """Write the three files into a folder, which is made; those of an earlier report are replaced.

    Raises UsageError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said = json.dumps(verdict.as_dict(), ensure_ascii=False, indent=1)
        (folder / "verdict.json").write_text(said + "\n", encoding="utf-8")
        (folder / "report.md").write_text("\n".join(_lines(verdict)) + "\n", encoding="utf-8")
        sets = {f"{one.source}: {one.measure}": one.differences.tolist() for one in verdict.compared}
        draw_differences(sets, folder / "differences.svg", f"each query, new less old: {verdict.outcome}")
    except OSError as error:
        raise UsageError(
            f"--report {folder} cannot be written: {error.strerror or error}",
            "A folder",
            "Choose another one",
        ) from None


def _lines(verdict: Verdict) -> Iterator[str]:
    yield from (f"# Gate: {verdict.outcome}", "", f"`{verdict.old}` → `{verdict.new}`", "")
    yield from ("| check | verdict | number | bar | |", "|---|---|---|---|---|")
    for check in verdict.checks:
        number = "" if check.number is None else f"{check.number:g}"
        yield f"| {_cell(check.name)} | **{check.outcome}** | {number} | {check.bar} | {_cell(check.sentence)} |"
    if verdict.overlap is not None:
        yield from (
            "",
            f"Of the 10 best documents of the old version {verdict.overlap:.0%} are among the new one's.",
        )
    for one in verdict.compared:
        yield from _compared(one)
    yield from ("", "![what each query gained or lost](differences.svg)")


def _compared(found: Compared) -> Iterator[str]:
    if found.difference is None:
        return
    by_whom = "people judged" if found.judged else "known items"
    yield from ("", f"## {found.source}", "", f"{len(found.differences)} queries, {by_whom}.", "")
    yield from (f"| | {' | '.join(found.old)} |", "|---" * (1 + len(found.old)) + "|")
    rows = {"old": found.old, "new": found.new} | ({"BM25": found.words} if found.words else {})
    for name, values in rows.items():
        yield f"| {name} | {' | '.join(f'{value:.3f}' for value in values.values())} |"
    yield from ("", f"{found.measure}, new less old: {found.difference}, 95 % interval.")
    if found.worst:
        yield from ("", "| lost most | by | relevant | old | new |", "|---|---|---|---|---|")
    for row in found.worst[:_SHOWN]:
        places = (", ".join(map(_cell, row[side])) for side in ("relevant", "old", "new"))
        yield f"| {_cell(row['query'])} | {row['difference']:+.3f} | {' | '.join(places)} |"


def _cell(text: str) -> str:
    shown = " ".join(text.split())
    return (shown if len(shown) <= 200 else shown[:199] + "…").replace("|", "\\|")
