"""Points on their way to a store: columns, checked once, cut without copying vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BrokenInvariant, StoreError


@dataclass(frozen=True, eq=False)
class Points:
    """n points, column by column.

    `ids`: n UUID strings. `vectors`: float32[n, dim], finite, no row of length zero. `payloads`: n JSON
    objects. `vector_name` is the vector of the collection the rows belong to; "" is the unnamed one. Raises
    BrokenInvariant for columns that do not fit together, StoreError for vectors that engines would accept and
    that make points unfindable.
    """

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    payloads: Sequence[dict[str, Any]]
    vector_name: str = ""

    def __post_init__(self) -> None:
        if self.vectors.dtype != np.float32 or self.vectors.ndim != 2:
            raise BrokenInvariant(
                f"vectors of type {self.vectors.dtype} and shape {self.vectors.shape}",
                "A store takes float32[n, dim]",
            )
        if not len(self.ids) == len(self.vectors) == len(self.payloads):
            raise BrokenInvariant(
                f"{len(self.ids)} ids, {len(self.vectors)} vectors and {len(self.payloads)} payloads",
                "Points are one id, one vector and one payload each",
            )
        self._check_vectors()

    def _check_vectors(self) -> None:
        # A sum of squares is NaN or inf where a value is, and 0 for an empty or zero row: one pass finds all.
        squares = np.einsum("ij,ij->i", self.vectors, self.vectors, dtype=np.float64)
        good = np.isfinite(squares) & (squares > 0)
        if not good.all():
            row = int(np.argmin(good))
            what = "of length zero" if squares[row] == 0 else "that holds NaN or infinity"
            raise StoreError(
                f"{int((~good).sum())} of {len(good)} vectors unusable: point {self.ids[row]} has one {what}",
                "Finite vectors with a direction; engines accept others and then never find the points",
                "Check the encoder: headwater doctor",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Points:
        """The points of these rows, in this order."""
        return Points(
            [self.ids[row] for row in rows],
            self.vectors[np.asarray(rows, dtype=np.intp)],
            [self.payloads[row] for row in rows],
            self.vector_name,
        )

    def batches(self, size: int) -> Iterator[Points]:
        """Consecutive pieces of at most `size` points."""
        for start in range(0, len(self), size):
            yield self.slice(start, start + size)

    def slice(self, start: int, stop: int) -> Points:
        """The points [start, stop); the vectors are a view."""
        return Points(
            self.ids[start:stop], self.vectors[start:stop], self.payloads[start:stop], self.vector_name
        )
