"""What a person sees: progress, tables, errors, all on stderr; and JSON for machines on stdout.

Where log lines are JSON, stderr belongs to them: what else would be said there becomes a log line too.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from pipeline import logs, schemas
from pipeline.sync import Run


class _Stderr(Console):
    """Says nothing more where nobody reads it; rich's own console would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        logs.leave_stderr()


out = Console(soft_wrap=True, highlight=False)  # what was asked for
console = _Stderr(stderr=True, soft_wrap=True, highlight=False)

log = logs.logger("pipeline.cli")


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write one JSON value as one line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_result(value: Any, json_out: bool, show: Callable[[], None]) -> None:  # noqa: ANN401 - any JSON value
    """Write what a command found on stdout: one line of JSON, or what `show` draws for a person."""
    if json_out:
        print_json(value)
    else:
        show()


def print_error(message: str, label: str = "error") -> None:
    """Write an error for a person on stderr."""
    if logs.as_json():
        log.error(label, error=message)
    else:
        console.print(f"[bold red]{label}:[/] {escape(logs.redacted(message))}")


def print_warning(message: str) -> None:
    """Write a warning for a person on stderr."""
    if logs.as_json():
        log.warning(message)
    else:
        console.print(f"[bold yellow]warning:[/] {escape(logs.redacted(message))}")


def print_line(line: str) -> None:
    """Write a line on stderr as it is; a progress bar stays whole below it."""
    console.out(line, highlight=False)


def say(message: str) -> None:
    """Tell a person on stderr what happens."""
    if logs.as_json():
        log.warning(message)
    else:
        console.print(escape(message))


def stray() -> TextIO:
    """Where libraries may print what they print to stdout: stderr."""
    return _StrayLines() if logs.as_json() else sys.stderr


class _StrayLines(io.StringIO):
    """Makes every line printed a log line."""

    _begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            log.warning(Text.from_ansi(line).plain)
        return len(text)


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Write names and values as a two-column table on stdout."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    out.print(table)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows as a table on stdout, one a line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False, width=max(out.width, 160)).print(table)  # a pipe counts as 80 wide


def print_runs(found: Sequence[Run]) -> None:
    """Write runs as a table on stdout, one a line."""
    if not found:
        console.print("no run is remembered here; --store and --collection say whose are looked for")
        return
    columns = ("run", "collection", "state", "documents", "rejected", "splits", "last heard of")
    print_rows(columns, [_run_row(run) for run in found])


def _run_row(run: Run) -> tuple[str, ...]:
    header, done = run.header, run.committed
    total = f" of {header.documents:,}" if header.documents is not None else ""
    state = {
        "running": f"running: {run.process}",
        "lost": "lost: run it again",
        "elsewhere": f"{run.process}?",
    }
    return (
        header.run,
        header.collection,
        state.get(run.state, run.state),
        f"{done.read:,}{total}",
        f"{done.rejected:,}",
        f"{run.splits_done:,} of {header.splits:,}",
        run.last_at[:19].replace("T", " "),
    )


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
    """An observer that draws a bar on a terminal, or writes a line (or log line) every ten seconds elsewhere."""
    if console.is_terminal and not logs.as_json():
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
        if logs.as_json():
            log.info("progress", stage=state.stage, documents=state.documents, total=state.total)
            return
        total = f" of {state.total:,}" if state.total is not None else ""
        if state.stage != "indexing":
            console.print(f"{state.stage}: {state.documents:,}{total} …" if total else f"{state.stage} …")
            return
        self._clock = self._clock or Clock(now, state.documents)
        console.print(f"indexing: {state.documents:,}{total} documents{_speed(self._clock, state, now)}")


def _speed(clock: Clock, state: schemas.Progress, now: float) -> str:
    rate = clock.rate(now, state.documents)
    if rate <= 0:
        return ""
    left = clock.left(now, state.documents, state.total) if state.total is not None else None
    ends = f", {int(left) // 60}:{int(left) % 60:02d} left" if left is not None else ""
    return f" {rate:,.1f} documents/s{ends}"
