"""How much of an upgrade is done at once: so many tokens, within these hours of the day."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time
from typing import Self

from pipeline.errors import UsageError
from pipeline.schemas import Observer, Progress

_LOOK_S = 5.0  # how late the beginning of the hours may be noticed


@dataclass(frozen=True)
class Hours:
    """Hours of the day in local time, from `opens` until before `closes`; over midnight where that is earlier."""

    opens: time
    closes: time

    @classmethod
    def read(cls, text: str) -> Self:
        """Read "01:00-05:00"; raise UsageError for anything else."""
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text.strip())
        if match is None:
            raise UsageError(f"--window {text!r}", "Two times of a day", "For example --window 01:00-05:00")
        first, second, third, fourth = map(int, match.groups())
        return cls(time(first, second), time(third, fourth))

    def hold(self, moment: time) -> bool:
        """Whether this moment is within them."""
        if self.opens < self.closes:
            return self.opens <= moment < self.closes
        return moment >= self.opens or moment < self.closes


class Limits:
    """What may still be spent. `max_tokens` None: as much as it takes; `hours` None: at all hours."""

    def __init__(
        self,
        max_tokens: int | None = None,
        hours: Hours | None = None,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self.spent = 0
        self.reached = False
        self._max_tokens = max_tokens
        self.hours = hours
        self._now = now

    @property
    def some(self) -> bool:
        """Whether there is any."""
        return self._max_tokens is not None or self.hours is not None

    def take(self, tokens: int) -> bool:
        """Whether so many more tokens may be embedded; from the first time that they may not, nothing may.

        A run's first document is taken whatever it costs, or one that is longer would stop every run; 0 takes none.
        """
        most = self._max_tokens
        over = most is not None and self.spent + tokens > most and (self.spent > 0 or not most)
        self.reached = self.reached or over
        if not self.reached:
            self.spent += tokens
        return not self.reached

    def wait(self, stop: threading.Event, observe: Observer) -> None:
        """Return within the hours, or once `stop` is set."""
        if self.hours is None:
            return
        while not self.hours.hold(self._now().time()) and not stop.is_set():
            observe(Progress(f"waiting for {self.hours.opens:%H:%M}"))
            stop.wait(_LOOK_S)
