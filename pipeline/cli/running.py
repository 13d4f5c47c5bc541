"""What the commands share that run until they are done or stopped: `ingest` and `watch`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from pipeline import logs, metrics
from pipeline.cli.report import print_error, print_json, print_table, say
from pipeline.config import Settings
from pipeline.errors import CollectionHeld, UsageError
from pipeline.ingest import Executor
from pipeline.local import LocalExecutor
from pipeline.summary import Summary


def executor_of(settings: Settings) -> Executor:
    """What runs the splits, as `run.executor` says."""
    if settings.run.executor == "local":
        return LocalExecutor()
    from workers.executor import RayExecutor  # Ray takes seconds to import, and only this needs it

    return RayExecutor(settings)


def counted(settings: Settings) -> AbstractContextManager[None]:
    """Publish what this process counts; on Ray, the executor and the lanes give it to Ray."""
    if settings.run.executor == "local":
        return metrics.published(settings.run, settings.store.collection)
    if settings.run.metrics_port or settings.run.metrics_file:
        raise UsageError(
            "run.metrics_port or run.metrics_file is set, and the run goes to Ray",
            "On Ray, metrics are on the metrics endpoint of each of its machines",
            "Scrape those, and set neither",
        )
    return nullcontext()


@contextmanager
def draining() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one interrupts at once."""
    stop = threading.Event()

    def drain(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping: finishing what is in flight; once more to stop at once")

    before = {number: signal.signal(number, drain) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_held(held: CollectionHeld, stop: threading.Event, json_out: bool) -> int:
    """Say that another run is at work; the exit code: 0, or 130 if the wait for it was interrupted."""
    if json_out:
        print_json({"held": held.got})
    say(str(held))
    return 130 if stop.is_set() else 0


def report(summary: Summary, title: str, json_out: bool) -> int:
    """Print what was done, and on stderr what was not; the exit code."""
    if json_out:
        print_json(summary.as_dict())
    elif not logs.as_json():
        print_table(title, rows_of(summary))
    say_not_done(summary)
    return summary.exit_code


def say_not_done(summary: Summary) -> None:
    """Say on stderr what a run did not do, and why."""
    if summary.finished_at:
        say(f"run {summary.run} was finished at {summary.finished_at}: nothing was left to do")
    for failed in summary.failed:
        print_error(failed.message, "failed")
    if summary.refused:
        print_error(summary.refused, "refused")
    if summary.dead_letter:
        say(f"rejected documents are listed in {summary.dead_letter}")


def rows_of(summary: Summary) -> dict[str, object]:
    """The summary as a person wants it: zeros of rare outcomes left out, with rates."""
    counts = summary.counts
    always = {"read", "indexed", "rejected", "chunks"}
    shown: dict[str, object] = {
        name: value for name, value in counts.as_dict().items() if value or name in always
    }
    shown["seconds"] = f"{summary.seconds:.1f}"
    if counts.tokens > summary.earlier.tokens:
        shown["tokens a second"] = f"{(counts.tokens - summary.earlier.tokens) / summary.seconds:,.0f}"
    shown["collection"] = summary.collection
    shown["encoder version"] = summary.encoder_version[:12]
    return shown
