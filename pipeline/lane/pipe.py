"""A queue between two threads, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class PipeClosed(Exception):
    """The reading side is gone; the writing side stops."""


class Pipe(Generic[T]):
    """Hands items from one thread to another, holding at most `max_bytes` (or one item, however large).

    The writer ends it with `end()`, or with the error that stopped it, which the reader then raises. The reader
    gives up with `abandon()`, after which the writer's next `put` raises PipeClosed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._abandoned = False
        self._changed = threading.Condition()

    def put(self, item: T, nbytes: int) -> None:
        """Add an item, waiting for room."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._abandoned or not self._items or self._bytes + nbytes <= self._max_bytes
            )
            if self._abandoned:
                raise PipeClosed
            self._items.append((item, nbytes))
            self._bytes += nbytes
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, and why if it is an error."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Say that nothing more is read; what waits is dropped."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended or self._abandoned)
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item, nbytes = self._items.popleft()
                self._bytes -= nbytes
                self._changed.notify_all()
            yield item
