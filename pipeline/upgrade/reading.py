"""The mirror's reading side: which documents differ, and what their points are to be made from."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pipeline.stores import (
    OURS,
    Chunk,
    Head,
    Key,
    Store,
    read_documents,
    read_heads,
    scan_documents,
)
from pipeline.upgrade.difference import Sides, Untaken, compare
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.telling import Told
from pipeline.upgrade.vectors import Maker

_WINDOW_POINTS = 1024  # where their tokens do not fill it sooner


@dataclass(frozen=True)
class Document:
    """A document to be copied: its points' ids and payloads in order, and what each vector is made from.

    `held` is the target's head of it, None where it has none.
    """

    key: Key
    held: Head | None
    ids: list[str]
    payloads: list[dict[str, Any]]
    given: list[NDArray[Any]]
    tokens: int


@dataclass(frozen=True)
class Patch:
    """A document whose points get other payloads, by their ids; `held` is the target's head of it."""

    key: Key
    held: Head
    payloads: dict[str, dict[str, Any]]


@dataclass
class Window:
    """What is written at once: documents whose vectors are made together, and patches."""

    copies: list[Document] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    tokens: int = 0
    points: int = 0

    def add(self, document: Document) -> None:
        """Take a document to be copied."""
        self.copies.append(document)
        self.tokens += document.tokens
        self.points += len(document.ids)


class Reading:
    """One pass over the source. `seen`, `left` and `rejected` are true when `windows` has come to its end."""

    def __init__(
        self,
        store: Store,
        sides: Sides,
        maker: Maker,
        limits: Limits,
        stop: threading.Event,
        told: Told,
    ) -> None:
        self.seen = self.left = 0
        self.rejected: list[Untaken] = []
        self._store, self._sides, self._maker = store, sides, maker
        self._limits, self._stop, self._told = limits, stop, told

    def windows(self) -> Iterator[Window]:
        """Compare page by page, and gather what differs; ends early once `stop` is set."""
        window = Window()
        for page in scan_documents(self._store, self._sides.source):
            held = read_heads(self._store, self._sides.target, list(page))
            found = compare(page, held, self._sides.accept)
            window.patches = self._patches(found.metadata, held)
            patched = {patch.key for patch in window.patches}
            found.texts.update((key, head) for key, head in found.metadata.items() if key not in patched)
            self.left += found.unsettled
            self._told.add(len(page) - len(patched) - len(found.texts) - found.unsettled)
            for document in self._documents(found.texts, held):
                window.add(document)
                if window.points >= _WINDOW_POINTS or window.tokens >= self._maker.window_tokens:
                    yield window
                    window = Window()
            if window.patches or self._stop.is_set():
                yield window
                window = Window()
            if self._stop.is_set():
                return
            self.seen += len(page)
        yield window

    def _patches(self, documents: Mapping[Key, Head], held: Mapping[Key, Head]) -> list[Patch]:
        """Patches of documents whose chunks are the same on both sides; the others are to be copied."""
        ours = {key: held[key] for key in documents}
        cut = {
            key: [_span(chunk) for chunk in chunks]
            for whole in read_documents(self._store, self._sides.target, ours)
            for key, chunks in whole.items()
        }
        return [
            Patch(key, held[key], {chunk.id: chunk.payload for chunk in chunks})
            for whole in read_documents(self._store, self._sides.source, documents)
            for key, chunks in whole.items()
            if cut.get(key) == [_span(chunk) for chunk in chunks]
        ]

    def _documents(self, texts: Mapping[Key, Head], held: Mapping[Key, Head]) -> Iterator[Document]:
        """Read the documents to be copied, as far as the limits go; those that cannot be are rejected."""
        decided = 0
        for document in self._whole(texts, held):
            why = next(filter(None, map(self._maker.refuses, document.given)), None)
            if not why and not self._limits.take(document.tokens):
                break
            decided += 1
            if why:
                self.rejected.append(Untaken(*document.key, *why))
                self._told.add(1)
            else:
                yield document
        self.left += len(texts) - decided

    def _whole(self, texts: Mapping[Key, Head], held: Mapping[Key, Head]) -> Iterator[Document]:
        if self._limits.reached:
            return
        self._limits.wait(self._stop, self._told.observe)
        for whole in read_documents(self._store, self._sides.source, texts, self._maker.maps):
            for key, chunks in whole.items():
                if self._stop.is_set():
                    return
                given = [self._maker.read(chunk) for chunk in chunks]
                payloads = [self._stamped(chunk.payload) for chunk in chunks]
                tokens = sum(map(self._maker.tokens, given))
                ids = [chunk.id for chunk in chunks]
                yield Document(key, held.get(key), ids, payloads, given, tokens)
            self._limits.wait(self._stop, self._told.observe)  # before the next are read, not after

    def _stamped(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {OURS: self._maker.stamp(payload[OURS])}


def _span(chunk: Chunk) -> tuple[int, int]:
    return chunk.payload[OURS]["start"], chunk.payload[OURS]["end"]
