"""Whether a version holds the documents of another one, all of them and no others: compared by buckets of hashes.

Memory holds one number a bucket for either side, and the documents of buckets that differ.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.schemas import Observer, Progress, point_id
from pipeline.stores import OURS, Head, Key, Store, scan_documents, scan_points
from pipeline.upgrade.decision import Check, Outcome
from pipeline.upgrade.questions import document_name
from pipeline.versions import Contract

BUCKETS = 4096
_SHOWN = 10


@dataclass(frozen=True)
class Complete:
    """How the new version differs from the old one, in documents; `samples` names some of them.

    `writing` are being changed on either side. `points` counts the new version's, `promised` what its heads say there
    are; `versions` counts its points by encoder version, `foreign` those of versions that its contract does not allow.
    """

    documents: int
    buckets: int
    missing: int
    changed: int
    extra: int
    writing: int
    points: int
    promised: int
    versions: dict[str, int]
    foreign: int
    samples: dict[str, list[str]]


def compare_versions(
    store: Store, old: tuple[str, Contract], new: tuple[str, Contract], observe: Observer = lambda _: None
) -> Complete:
    """Compare two versions, each a physical collection and its contract, document by document and point by point.

    How many chunks a document has counts where both sides may be cut alike.
    """
    observe(Progress("comparing documents"))
    compared = _compare(store, old[0], new[0], old[1].chunker_version in new[1].chunker_versions)
    found = compared.differing
    observe(Progress("counting points"))
    versions: dict[str, int] = {}
    for version in _versions(store, new[0]):
        versions[version] = versions.get(version, 0) + 1
    allowed = new[1].encoder_versions
    return Complete(
        documents=compared.documents,
        buckets=compared.buckets,
        points=sum(versions.values()),
        promised=compared.promised,
        versions=versions,
        foreign=sum(count for version, count in versions.items() if version not in allowed),
        samples={name: _named(keys) for name, keys in found.items() if keys},
        **{name: len(keys) for name, keys in found.items()},
    )


def count_differing(store: Store, old: str, new: str) -> int:
    """How many documents one version has and the other has not, or not whole in its text, metadata and sequence."""
    return sum(map(len, _compare(store, old, new, chunks=False).differing.values()))


def check_documents(found: Complete) -> Check:
    """All must agree; documents that are being changed are asked for again."""
    wrong = found.missing + found.changed + found.extra
    outcome: Outcome = "fail" if wrong else "hold" if found.writing else "pass"
    said = (
        f"of {found.documents:,} documents {found.missing} are missing, {found.changed} are not as in the old version, "
        f"and {found.extra} are not in it ({found.buckets} of {BUCKETS} buckets differ)"
    )
    if found.writing:
        said += f"; {found.writing} are being changed: look again"
    elif wrong:
        said += f", such as {', '.join(map(repr, next(iter(found.samples.values()))[:3]))}: reindex again"
    return Check("documents", outcome, wrong + found.writing, "0 differ", said)


def check_points(found: Complete) -> Check:
    """The contract must allow all of them, and heads promise as many as there are."""
    torn = found.points - found.promised
    said = (
        f"{found.foreign} of {found.points:,} points are of encoder versions that the contract does not list"
    )
    if torn:
        said += f"; there are {abs(torn)} {'more' if torn > 0 else 'fewer'} points than heads promise"
    certain = found.foreign or (torn and not found.writing)
    outcome: Outcome = "fail" if certain else "hold" if torn else "pass"
    return Check("points", outcome, found.foreign + abs(torn), "0 are wrong", said)


@dataclass(frozen=True)
class _Compared:
    """Documents of the old version, chunks that heads of the new one promise, buckets and documents that differ."""

    documents: int
    promised: int
    buckets: int
    differing: dict[str, set[Key]]


def _compare(store: Store, old: str, new: str, chunks: bool) -> _Compared:
    (before, documents, _), (after, _, promised) = (_buckets(store, side, chunks) for side in (old, new))
    buckets = {n for n, (left, right) in enumerate(zip(before, after, strict=True)) if left != right}
    theirs, ours = ({}, {}) if not buckets else (_within(store, side, buckets) for side in (old, new))
    writing = {key for side in (theirs, ours) for key, head in side.items() if head.writing}
    both = theirs.keys() & ours.keys() - writing
    differing = {
        "missing": theirs.keys() - ours.keys() - writing,
        "changed": {key for key in both if _said(theirs[key], chunks) != _said(ours[key], chunks)},
        "extra": ours.keys() - theirs.keys() - writing,
        "writing": writing,
    }
    return _Compared(documents, promised, len(buckets), differing)


def _buckets(store: Store, physical: str, chunks: bool) -> tuple[list[int], int, int]:
    """One number a bucket, the exclusive or of its documents' hashes; how many documents, and chunks, there are."""
    buckets = [0] * BUCKETS
    documents = promised = 0
    for page in scan_documents(store, physical):
        for key, head in page.items():
            half = [physical] if head.writing else []  # which is like nothing, also where both sides are
            said = json.dumps([*key, *_said(head, chunks), *half], ensure_ascii=False)
            hashed = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            buckets[_bucket(key)] ^= int.from_bytes(hashed, "big")
            documents += 1
            promised += head.chunk_count
    return buckets, documents, promised


def _within(store: Store, physical: str, buckets: set[int]) -> dict[Key, Head]:
    pages = scan_documents(store, physical)
    return {key: head for page in pages for key, head in page.items() if _bucket(key) in buckets}


def _bucket(key: Key) -> int:
    return uuid.UUID(point_id(*key, 0)).int % BUCKETS


def _said(head: Head, chunks: bool) -> tuple[str, str, int, int]:
    return head.text_hash, head.metadata_hash, head.sequence, head.chunk_count if chunks else 0


def _versions(store: Store, physical: str) -> Iterator[str]:
    for page in scan_points(store, physical, None):
        for _, payload in page:
            yield payload.get(OURS, {}).get("encoder_version", "none")


def _named(keys: set[Key]) -> list[str]:
    return [document_name(*key) for key in sorted(keys)[:_SHOWN]]
