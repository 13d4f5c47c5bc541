"""How two versions of a collection differ, by their documents' heads alone; and what a pass over both has done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.stores import Head, Key


@dataclass(frozen=True)
class Sides:
    """Two versions of a collection called `name`: `source` as it is, and `target` as it is to be.

    widths: the target's vectors by name, in the order of a maker's rows. accept: the encoder versions that its
    documents may have and be left as they are. Where both are one, vectors of other versions are replaced in place.
    """

    name: str
    source: str
    target: str
    widths: Mapping[str, int]
    accept: frozenset[str]

    @property
    def in_place(self) -> bool:
        """Whether both are one."""
        return self.source == self.target


@dataclass(frozen=True)
class Untaken:
    """A document that a version cannot have, and why: without it that version is not complete."""

    namespace: str
    document_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Mirrored:
    """What a pass did, in documents; `chunks` and `tokens` are those written and embedded.

    `documents` counts the source's. `left` are those that still differ: they changed while they were read, or the
    limits did not let them be copied. `tombstones` were set or removed. `stopped`: not all was looked at.
    """

    documents: int = 0
    copied: int = 0
    mapped: int = 0
    patched: int = 0
    deleted: int = 0
    chunks: int = 0
    tokens: int = 0
    tombstones: int = 0
    left: int = 0
    rejected: tuple[Untaken, ...] = ()
    stopped: bool = False

    @property
    def changed(self) -> int:
        """How much differed, and does no more."""
        return self.copied + self.mapped + self.patched + self.deleted + self.tombstones

    @property
    def equal(self) -> bool:
        """Whether the target now is what the source was when it was read."""
        return not (self.left or self.rejected or self.stopped)

    def after(self, before: Mirrored) -> Mirrored:
        """Two passes together: what both did, and what is left after this one."""
        done = ("copied", "mapped", "patched", "deleted", "chunks", "tokens", "tombstones")
        return replace(self, **{name: getattr(self, name) + getattr(before, name) for name in done})

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values, and the documents that were rejected."""
        return {**vars(self), "rejected": [vars(one) for one in self.rejected]}


@dataclass(frozen=True)
class Difference:
    """What of a page of documents differs, texts or metadata alone; `unsettled` are being changed in the source."""

    texts: dict[Key, Head]
    metadata: dict[Key, Head]
    unsettled: int


def compare(source: Mapping[Key, Head], target: Mapping[Key, Head], accept: frozenset[str]) -> Difference:
    """Compare documents by their heads; those of the target may have the encoder versions `accept`.

    In how many chunks a document is cut does not count: the target may have it from a run with a chunker of its own.
    """
    found = Difference({}, {}, sum(head.writing for head in source.values()))
    for key, head in source.items():
        held = target.get(key)
        if head.writing:
            continue
        if held is None or not _same_text(head, held, accept):
            found.texts[key] = head
        elif replace(head, encoder_version=held.encoder_version, chunk_count=held.chunk_count) != held:
            found.metadata[key] = head
    return found


def _same_text(head: Head, held: Head, accept: frozenset[str]) -> bool:
    return head.text_hash == held.text_hash and held.encoder_version in accept and not held.writing
