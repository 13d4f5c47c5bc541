"""Pauses that end when a process is to stop."""

from __future__ import annotations

import threading
import time

_LOOK_S = 0.1


def pause(seconds: float, stop: threading.Event) -> None:
    """Sleep, or return soon after `stop` is set; never waits for it: its setter, a signal, would find it locked."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stop.is_set():
        time.sleep(min(left, _LOOK_S))
