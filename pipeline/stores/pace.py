"""How many requests may be under way to a server at once: additive increase, multiplicative decrease (AIMD)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """A limit on requests under way that grows by one with each round that succeeds, and is halved by a refusal.

    Thread-safe. A round is as many successes as the limit is; refusals of requests that were sent before the last
    halving do not halve again. A pause that one was asked for is kept by all.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = float(most)
        self._under_way = 0
        self._halvings = 0
        self._paused_until = 0.0  # by time.monotonic()
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return int(self._limit)

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Wait for a turn and hold it for the block; what it yields says which halving the request came after."""
        with self._changed:
            while (pause := self._paused_until - time.monotonic()) > 0 or self._under_way >= self.limit:
                self._changed.wait(pause if pause > 0 else None)
            self._under_way += 1
            sent_after = self._halvings
        good = False
        try:
            yield sent_after
            good = True
        finally:
            with self._changed:
                self._under_way -= 1
                if good:
                    self._limit = min(self._most, self._limit + 1 / self._limit)
                self._changed.notify_all()

    def refused(self, sent_after: int, pause_s: float = 0.0) -> None:
        """The server asked us to slow down, by refusing a request that was sent after so many halvings.

        No turn begins for `pause_s` seconds.
        """
        with self._changed:
            self._paused_until = max(self._paused_until, time.monotonic() + pause_s)
            if sent_after == self._halvings:
                self._limit = max(1.0, self._limit / 2)
                self._halvings += 1
