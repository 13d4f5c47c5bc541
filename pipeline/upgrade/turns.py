"""Turns: a lease that is held while something is written, and free in between, so that others get theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pipeline.config import Settings
from pipeline.pause import pause
from pipeline.stores import Store, filling, look_s
from pipeline.upgrade.versions import leased

Turn = Callable[[], AbstractContextManager[Store]]
"""Takes a lease for the length of a block, and gives a store that is guarded by it."""

_MARGIN_S = 0.5  # for the requests of who looks


def turns_beside(store: Store, settings: Settings, name: str, command: str, stop: threading.Event) -> Turn:
    """Turns to write into a version that does not serve: `forget` waits for the end of one."""
    return lambda: leased(store, settings, filling(name), command, stop, settings.versions.wait_s)


def turns_within(store: Store, settings: Settings, name: str, command: str, stop: threading.Event) -> Turn:
    """Turns to write into the version that serves, with its lease.

    It stays free after each for as long as a run that waits for it needs to see that. Raises CollectionHeld where
    another run has it for longer than `versions.wait_s`.
    """
    free_s = look_s(settings.run.lease_s) + _MARGIN_S if settings.run.lease_s else 0.0
    ended = float("-inf")

    @contextmanager
    def take() -> Iterator[Store]:
        nonlocal ended
        pause(ended + free_s - time.monotonic(), stop)
        try:
            with leased(store, settings, name, command, stop, settings.versions.wait_s) as guarded:
                yield guarded
        finally:
            ended = time.monotonic()

    return take
