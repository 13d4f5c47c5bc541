"""Whether a writer may still write: asked before every request that changes points, also when one is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ask: ContextVar[Callable[[], None]] = ContextVar("ask", default=lambda: None)


@contextmanager
def asking(ask: Callable[[], None]) -> Iterator[None]:
    """Have `ask` called by `may_write` for the length of the block; it raises where nothing may be written."""
    before = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(before)


def may_write() -> None:
    """Return if the caller may write, else raise what its guard raises; a store that tries again asks each time."""
    _ask.get()()
