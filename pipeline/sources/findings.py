"""What is wrong with the rows of a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Findings:
    """The first thing wrong with each row; `good` is bool[rows], True for rows nothing is wrong with."""

    def __init__(self, rows: int) -> None:
        self.good: NDArray[np.bool_] = np.ones(rows, np.bool_)
        self._first: dict[int, tuple[str, str]] = {}

    def add(self, wrong: NDArray[np.bool_], reason: str, message: str) -> None:
        """Note `reason` for the rows of `wrong` (bool[rows]) that were good so far."""
        fresh = wrong & self.good
        if fresh.any():
            for row in np.flatnonzero(fresh).tolist():
                self._first[row] = (reason, message)
            self.good &= ~fresh

    def items(self) -> list[tuple[int, str, str]]:
        """(row in the batch, reason, message), in row order."""
        return [(row, *self._first[row]) for row in sorted(self._first)]
