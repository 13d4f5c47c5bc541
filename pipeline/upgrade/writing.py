"""The mirror's writing side: whole documents by the write protocol, and what could not be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PointTooLarge, StoreError
from pipeline.stores import OURS, DocumentWriter, Key, Points, Store, Suppressions, read_heads
from pipeline.upgrade.difference import Mirrored, Sides, Untaken
from pipeline.upgrade.reading import Document, Window
from pipeline.upgrade.vectors import BRIDGE

Rows = NDArray[np.float32]

_NO_VECTOR = "a chunk of it gets no usable vector: zero, not finite, or for want of memory"


class Writing:
    """Writes windows in order. `done` is what the store acknowledged; `rejected` documents are not in the target.

    `left`: how many are for the next pass, as another one of their window was forgotten while they were written.
    """

    def __init__(self, store: Store, sides: Sides, mapped: bool) -> None:
        self.done = Mirrored()
        self.rejected: list[Untaken] = []
        self.left = 0
        self._store, self._sides, self._mapped = store, sides, mapped
        self._writer = DocumentWriter(store, sides.target)
        self._names, self._cuts = list(sides.widths), np.cumsum([*sides.widths.values()])[:-1].tolist()

    def write(self, window: Window, rows: Rows) -> None:
        """Write a window whose documents' chunks have these rows: float32[n, width]; see `DocumentWriter`."""
        keys = [*(document.key for document in window.copies), *(patch.key for patch in window.patches)]
        try:
            self._copy(window, rows)
            self._patch(window)
        except StoreError:  # perhaps of points that are gone; what was written in part is marked
            if not self._forgotten(keys):
                raise
            self.left += len(keys)
        # Who forgets a document suppresses it first and then looks here, which may be before it was written.
        self._remove(self._forgotten(keys))

    def _forgotten(self, keys: list[Key]) -> set[Key]:
        return Suppressions(self._store, self._sides.name).find(keys)

    def _copy(self, window: Window, rows: Rows) -> None:
        wanted = list(self._usable(window.copies, rows))
        held = {document.key: document.held for document in window.copies if document.held}
        while wanted:
            points = self._points(wanted)
            try:
                if self._sides.in_place:
                    self._writer.rewrite(points)
                else:
                    self._writer.write(points, held)
                break
            except PointTooLarge as error:
                lost = next(document for document, _ in wanted if error.point_id in document.ids)
                wanted = [pair for pair in wanted if pair[0] is not lost]
                self.rejected.append(Untaken(*lost.key, "too_large", str(error)))
                if not self._sides.in_place:  # there the document itself would go
                    self._remove({lost.key})
                held.pop(lost.key, None)
        self.done = replace(
            self.done,
            copied=self.done.copied + (0 if self._mapped else len(wanted)),
            mapped=self.done.mapped + (len(wanted) if self._mapped else 0),
            chunks=self.done.chunks + sum(len(document.ids) for document, _ in wanted),
            tokens=self.done.tokens + sum(document.tokens for document, _ in wanted),
        )

    def _usable(self, copies: list[Document], rows: Rows) -> Iterator[tuple[Document, Rows]]:
        """Each document with its rows, where all of its vectors are finite and none is zero."""
        at = 0
        for document in copies:
            own = rows[at : at + len(document.ids)]
            at += len(document.ids)
            some = all(column.any(axis=1).all() for column in np.split(own, self._cuts, axis=1))
            if some and np.isfinite(own).all():
                yield document, own
            else:
                self.rejected.append(Untaken(*document.key, "unusable_vector", _NO_VECTOR))

    def _points(self, wanted: list[tuple[Document, Rows]]) -> Points:
        columns = np.split(np.concatenate([rows for _, rows in wanted]), self._cuts, axis=1)
        ids = [id for document, _ in wanted for id in document.ids]
        payloads = [payload for document, _ in wanted for payload in document.payloads]
        return Points(ids, dict(zip(self._names, columns, strict=True)), payloads)

    def _patch(self, window: Window) -> None:
        """Give points the source's payloads; what these say of the vectors stays as it is in the target."""
        fresh = {id: payload for patch in window.patches for id, payload in patch.payloads.items()}

        def change(id: str, payload: dict[str, Any]) -> dict[str, Any]:
            made = {
                name: payload[OURS][name] for name in ("encoder_version", BRIDGE) if name in payload[OURS]
            }
            ours = {name: value for name, value in fresh[id][OURS].items() if name != BRIDGE}
            return fresh[id] | {OURS: ours | made}

        refused = self._writer.patch({patch.key: patch.held for patch in window.patches}, change)
        self.rejected += [Untaken(*key, "too_large", str(error)) for key, error in refused.items()]
        patched = self.done.patched + len(window.patches) - len(refused)
        self.done = replace(self.done, patched=patched)

    def _remove(self, keys: set[Key]) -> None:
        if keys:
            held = read_heads(self._store, self._sides.target, sorted(keys))
            self._writer.delete(list(held), held)
