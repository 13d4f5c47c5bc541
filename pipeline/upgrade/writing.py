"""The mirror's writing side: whole documents by the write protocol, a window a turn, and what could not be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PointTooLarge
from pipeline.stores import (
    OURS,
    DocumentWriter,
    Head,
    Key,
    Points,
    Store,
    Suppressions,
    read_heads,
    remove_held,
)
from pipeline.upgrade.difference import Mirrored, Sides, Untaken
from pipeline.upgrade.reading import Document, Patch, Window
from pipeline.upgrade.telling import Told
from pipeline.upgrade.turns import Turn
from pipeline.upgrade.vectors import BRIDGE

Rows = NDArray[np.float32]

_NO_VECTOR = "a chunk of it gets no usable vector: zero, not finite, or for want of memory"


class Writing:
    """Writes windows in order. `done` is what the store acknowledged; `rejected` documents are not in the target.

    `left`: how many are for the next pass, as others have changed them since they were read.
    """

    def __init__(self, sides: Sides, mapped: bool, turn: Turn, told: Told) -> None:
        self.done = Mirrored()
        self.rejected: list[Untaken] = []
        self.left = 0
        self._sides, self._mapped, self._turn, self._told = sides, mapped, turn, told
        self._names, self._cuts = list(sides.widths), np.cumsum([*sides.widths.values()])[:-1].tolist()

    def write(self, window: Window, rows: Rows) -> None:
        """Write a window whose documents' chunks have these rows: float32[n, width]; see `DocumentWriter`."""
        if not (window.copies or window.patches):
            return
        with self._turn() as store:
            usable = list(self._usable(window.copies, rows))
            held: dict[Key, Head | None] = {document.key: document.held for document in window.copies}
            held |= {patch.key: patch.held for patch in window.patches}
            fresh = self._fresh(store, held)
            self._copy(store, [pair for pair in usable if pair[0].key in fresh])
            self._patch(store, [patch for patch in window.patches if patch.key in fresh])
        self._told.add(len(held))

    def _fresh(self, store: Store, held: Mapping[Key, Head | None]) -> set[Key]:
        """The documents that are still to be written; what was forgotten since they were read goes, if it is there."""
        forgotten = Suppressions(store, self._sides.name).find(list(held))
        for key in forgotten:
            remove_held(store, self._sides.target, "points", key)
        if not self._sides.in_place:
            return held.keys() - forgotten
        now = read_heads(store, self._sides.target, list(held))
        changed = {key for key, head in held.items() if now.get(key) != head}
        self.left += len(changed - forgotten)
        return held.keys() - forgotten - changed

    def _copy(self, store: Store, wanted: list[tuple[Document, Rows]]) -> None:
        writer = DocumentWriter(store, self._sides.target)
        held = {document.key: document.held for document, _ in wanted if document.held}
        while wanted:
            points = self._points(wanted)
            try:
                if self._sides.in_place:
                    writer.rewrite(points)
                else:
                    writer.write(points, held)
                break
            except PointTooLarge as error:
                lost = next(document for document, _ in wanted if error.point_id in document.ids)
                wanted = [pair for pair in wanted if pair[0] is not lost]
                self.rejected.append(Untaken(*lost.key, "too_large", str(error)))
                if not self._sides.in_place:  # there the document itself would go
                    writer.delete([lost.key], read_heads(store, self._sides.target, [lost.key]))
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

    def _patch(self, store: Store, patches: list[Patch]) -> None:
        """Give points the source's payloads; what these say of the vectors stays as it is in the target."""
        fresh = {id: payload for patch in patches for id, payload in patch.payloads.items()}

        def change(id: str, payload: dict[str, Any]) -> dict[str, Any]:
            made = {
                name: payload[OURS][name] for name in ("encoder_version", BRIDGE) if name in payload[OURS]
            }
            ours = {name: value for name, value in fresh[id][OURS].items() if name != BRIDGE}
            return fresh[id] | {OURS: ours | made}

        writer = DocumentWriter(store, self._sides.target)
        refused = writer.patch({patch.key: patch.held for patch in patches}, change)
        self.rejected += [Untaken(*key, "too_large", str(error)) for key, error in refused.items()]
        self.done = replace(self.done, patched=self.done.patched + len(patches) - len(refused))
