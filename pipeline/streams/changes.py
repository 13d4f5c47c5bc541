"""When to look at a watched source again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.sources import is_remote

LOOK_EVERY_S = 30.0  # at the latest: some filesystems, such as those of other machines, tell of no changes
_QUIET_MS = 50  # changes that follow each other so closely are one


def ticks(place: str, gather_s: float, stop: threading.Event) -> Iterator[bool]:
    """Yield at least every `gather_s` seconds until `stop` is set; True where something may have changed.

    A local folder tells of its changes, which are gathered for `gather_s` seconds at most; all else does not, and may
    have changed at any time.
    """
    if is_remote(place) or not Path(place).is_dir():
        while not stop.is_set():
            yield True
            pause(gather_s, stop)
        return
    from watchfiles import watch

    milliseconds = max(_QUIET_MS, int(gather_s * 1000))
    looked = (
        time.monotonic() - LOOK_EVERY_S
    )  # what changed before the folder was listened to is found by looking once more
    for changes in watch(
        place,
        watch_filter=None,
        debounce=milliseconds,
        step=min(_QUIET_MS, milliseconds),
        stop_event=stop,
        rust_timeout=milliseconds,
        yield_on_timeout=True,
        raise_interrupt=False,
    ):
        late = time.monotonic() - looked >= LOOK_EVERY_S
        if changes or late:
            looked = time.monotonic()
        yield bool(changes) or late


def pause(seconds: float, stop: threading.Event) -> None:
    """Sleep, or return soon after `stop` is set; never waits for it: its setter, a signal, would find it locked."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stop.is_set():
        time.sleep(min(left, 0.1))
