"""Whether a collection holds what a run has counted: two counts at the run's end."""

from __future__ import annotations

import time

from pipeline.errors import CountMismatch
from pipeline.schemas import Counts
from pipeline.stores import Held, Store, count_stored

_LOOKS = 3  # a replica may count what it has not applied yet
_PAUSE_S = 2.0


def check_held(store: Store, collection: str, done: Counts, was_empty: bool) -> None:
    """Raise CountMismatch where the collection cannot hold what trailers say; call it while the lease is held.

    `done` is what trailers of this process add up to: what earlier attempts did may have been forgotten since. All of
    its documents must be there, so the collection never holds fewer. More it holds rightly, unless it `was_empty`
    when the run began and all of the run's trailers came. What differs is counted again, some seconds later.
    """
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE_S)
        held = count_stored(store, collection)
        expected = _expected(held, done, was_empty)
        if not expected:
            return
    raise _mismatch(collection, held, expected)


def _expected(held: Held, done: Counts, was_empty: bool) -> str:
    """What should be held; "" where it is."""
    documents = done.indexed + done.unchanged + done.patched
    # Of documents that a split's first attempt wrote, a second one only says how many they are, or rejects them.
    known = not (done.unchanged or done.patched or done.rejected)
    if held.documents < documents or held.points < done.points:
        return f"at least {documents} documents and {done.points} points"
    most = documents + done.rejected
    if was_empty and (held.documents > most or (known and held.points > done.points)):
        return f"{documents} documents and {done.points} points, as it was empty"
    return ""


def _mismatch(collection: str, held: Held, expected: str) -> CountMismatch:
    return CountMismatch(
        f"collection {collection!r} holds {held.documents} documents and {held.points} points of ours",
        f"After this run {expected}",
        "See what differs with headwater audit, and mend it with headwater audit --repair",
    )
