"""Whether a collection holds what a run has counted: two counts at the run's end."""

from __future__ import annotations

from pipeline.errors import CountMismatch
from pipeline.schemas import Counts
from pipeline.stores import Held, Store, count_stored


def check_held(store: Store, collection: str, done: Counts, was_empty: bool) -> None:
    """Raise CountMismatch where the collection cannot hold what trailers say; call it while the lease is held.

    `done` is what trailers of this process add up to: what earlier attempts did may have been forgotten since. All of
    its documents must be there, so the collection never holds fewer. More it holds rightly, unless it `was_empty`
    when the run began and all of the run's trailers came.
    """
    held = count_stored(store, collection)
    documents = done.indexed + done.unchanged + done.patched
    # Of documents that a split's first attempt wrote, a second one only says how many they are.
    known = not (done.unchanged or done.patched)
    if held.documents < documents or held.points < done.points:
        raise _mismatch(collection, held, f"at least {documents} documents and {done.points} points")
    if was_empty and (held.documents > documents or (known and held.points > done.points)):
        raise _mismatch(collection, held, f"{documents} documents and {done.points} points, as it was empty")


def _mismatch(collection: str, held: Held, expected: str) -> CountMismatch:
    return CountMismatch(
        f"collection {collection!r} holds {held.documents} documents and {held.points} points of ours",
        f"After this run {expected}",
        "See what differs with headwater audit, and mend it with headwater audit --repair",
    )
