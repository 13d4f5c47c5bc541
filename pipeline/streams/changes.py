"""When to look at a source again: after it has changed, or after a round that failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import logs
from pipeline.pause import pause
from pipeline.sources import is_remote

LOOK_EVERY_S = 30.0  # at the latest: some filesystems, such as those of other machines, tell of no changes
_QUIET_MS = 50  # changes that follow each other so closely are one
_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 30.0

log = logs.logger(__name__)


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
    # What changed before the folder was listened to is found by looking once more.
    looked = time.monotonic() - LOOK_EVERY_S
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


class Backoff:
    """Ever longer waits after rounds that fail one after another, half a minute at most; a stop ends each."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._wait_s = _FIRST_WAIT_S

    def failed(self, error: Exception) -> None:
        """Say that a round failed, and wait."""
        log.warning("round_failed", error=str(error), wait_s=self._wait_s)
        pause(self._wait_s, self._stop)
        self._wait_s = min(_LONGEST_WAIT_S, 2 * self._wait_s)

    def over(self) -> None:
        """A round went well: the next wait is a short one again."""
        self._wait_s = _FIRST_WAIT_S
