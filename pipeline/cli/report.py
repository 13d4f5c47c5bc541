"""What a person sees: progress, tables, errors, all on stderr; and JSON for machines on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from pipeline import schemas

console = Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write one JSON value as one line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_error(message: str) -> None:
    """Write an error for a person on stderr."""
    console.print(f"[bold red]error:[/] {escape(message)}")


def print_warning(message: str) -> None:
    """Write a warning for a person on stderr."""
    console.print(f"[bold yellow]warning:[/] {escape(message)}")


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Write names and values as a two-column table on stderr."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    console.print(table)


class Clock:
    """Rate and remaining time of a run, from what was done since it began; the remaining time never grows."""

    def __init__(self, now: float, done: int) -> None:
        self._began, self._first = now, done
        self._left: float | None = None

    def rate(self, now: float, done: int) -> float:
        """Documents a second since the beginning of this attempt."""
        return (done - self._first) / max(now - self._began, 1e-9)

    def left(self, now: float, done: int, total: int) -> float | None:
        """Seconds to go, held where the rate falls; None before anything is done."""
        rate = self.rate(now, done)
        if rate <= 0:
            return None
        left = (total - done) / rate
        if self._left is not None:
            left = min(left, self._left)
        self._left = left
        return left


@contextmanager
def progress() -> Iterator[schemas.Observer]:
    """An observer that draws a bar on a terminal, or writes a line every ten seconds elsewhere."""
    if console.is_terminal:
        with _bar() as observer:
            yield observer
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[schemas.Observer]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    clock: Clock | None = None
    task: TaskID | None = None
    with Progress(*columns, console=console, transient=True) as bars:

        def observe(state: schemas.Progress) -> None:
            nonlocal clock, task
            now = time.monotonic()
            if task is None:
                task = bars.add_task(state.stage, total=None, speed="")
            if state.stage == "indexing" and clock is None:
                clock = Clock(now, state.documents)
            speed = _speed(clock, state, now) if clock else ""
            bars.update(
                task, description=state.stage, completed=state.documents, total=state.total, speed=speed
            )

        yield observe


class _Lines:
    """Progress for logs: one line at each new stage and every ten seconds."""

    def __init__(self) -> None:
        self._stage = ""
        self._at = 0.0
        self._clock: Clock | None = None

    def __call__(self, state: schemas.Progress) -> None:
        now = time.monotonic()
        if state.stage == self._stage and now - self._at < 10:
            return
        self._stage, self._at = state.stage, now
        if state.stage != "indexing":
            console.print(f"{state.stage} …")
            return
        self._clock = self._clock or Clock(now, state.documents)
        total = f" of {state.total:,}" if state.total is not None else ""
        console.print(f"indexing: {state.documents:,}{total} documents{_speed(self._clock, state, now)}")


def _speed(clock: Clock, state: schemas.Progress, now: float) -> str:
    rate = clock.rate(now, state.documents)
    if rate <= 0:
        return ""
    left = clock.left(now, state.documents, state.total) if state.total is not None else None
    ends = f", {int(left) // 60}:{int(left) % 60:02d} left" if left is not None else ""
    return f" {rate:,.1f} documents/s{ends}"
