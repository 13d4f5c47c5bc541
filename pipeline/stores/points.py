"""Points on their way to a store: columns, checked once, cut without copying vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BrokenInvariant, StoreError


@dataclass(frozen=True, eq=False)
class Points:
    """n points, column by column.

    `ids`: n UUID strings. `vectors`: by the name that the collection has for them, "" for the unnamed one, each
    float32[n, its own dims], finite, no row of length zero. `payloads`: n JSON objects. Raises BrokenInvariant for
    columns that do not fit together, StoreError for vectors that engines would accept and that make points unfindable.
    """

    ids: Sequence[str]
    vectors: Mapping[str, NDArray[np.float32]]
    payloads: Sequence[dict[str, Any]]

    def __post_init__(self) -> None:
        for rows in self.vectors.values():
            if rows.dtype != np.float32 or rows.ndim != 2:
                raise BrokenInvariant(
                    f"vectors of type {rows.dtype} and shape {rows.shape}", "A store takes float32[n, dims]"
                )
        lengths = [len(rows) for rows in self.vectors.values()]
        if not lengths or {len(self.ids), *lengths} != {len(self.payloads)}:
            raise BrokenInvariant(
                f"{len(self.ids)} ids, {lengths} vectors and {len(self.payloads)} payloads",
                "Points are one id, one vector of each name and one payload each",
            )
        for rows in self.vectors.values():
            self._check(rows)

    def _check(self, rows: NDArray[np.float32]) -> None:
        # A sum of squares is NaN or inf where a value is, and 0 for an empty or zero row: one pass finds all.
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
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

    @property
    def vector_bytes(self) -> int:
        """Bytes of all vectors, four a number."""
        return sum(rows.nbytes for rows in self.vectors.values())

    def take(self, rows: Sequence[int]) -> Points:
        """The points of these rows, in this order."""
        wanted = np.asarray(rows, dtype=np.intp)
        return Points(
            [self.ids[row] for row in rows],
            {name: vectors[wanted] for name, vectors in self.vectors.items()},
            [self.payloads[row] for row in rows],
        )

    def batches(self, size: int) -> Iterator[Points]:
        """Consecutive pieces of at most `size` points."""
        for start in range(0, len(self), size):
            yield self.slice(start, start + size)

    def slice(self, start: int, stop: int) -> Points:
        """The points [start, stop); the vectors are a view."""
        vectors = {name: rows[start:stop] for name, rows in self.vectors.items()}
        return Points(self.ids[start:stop], vectors, self.payloads[start:stop])

    def vector_rows(self) -> Iterator[dict[str, list[float]]]:
        """Each point's vectors by name, as lists."""
        names = list(self.vectors)
        for row in zip(*(rows.tolist() for rows in self.vectors.values()), strict=True):
            yield dict(zip(names, row, strict=True))
