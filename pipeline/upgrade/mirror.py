"""The mirror: brings one version of a collection in step with another that is cut into the same chunks.

    thread "read"    compare heads ► read what differs ► tokenize      ─┐ windows
    calling thread   embed the texts, or map the vectors by a bridge   ─┤ windows with their vectors
    thread "write"   wait for a turn, write, patch                     ─┘

Once it is to stop, what has no vectors yet gets none: it is left for the next pass, but for patches, which need none.

It remembers nothing: both versions are the truth, and a document is what its head says. New and changed documents are
copied chunk by chunk as they stand, with vectors of the target's own; where metadata alone is new, payloads are written
over; what the source does not have any more is deleted. So it can be killed at any moment and run again, and repeated
while others write the source until nothing differs; and what was deleted there never comes back, for it is not there.

What was forgotten is asked in the turn in which something is written, and who forgets waits for the end of it: a
document that was read before it was forgotten is not written after, wherever the mirror dies.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.lane.pipe import Pipe, PipeClosed
from pipeline.schemas import Observer
from pipeline.stores import (
    DocumentWriter,
    Store,
    Suppressions,
    Tombstones,
    count_stored,
    read_heads,
    remove_held,
    scan_documents,
)
from pipeline.upgrade.difference import Mirrored, Sides
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.reading import Reading, Window
from pipeline.upgrade.telling import Told
from pipeline.upgrade.turns import Turn
from pipeline.upgrade.vectors import Maker
from pipeline.upgrade.writing import Writing

_Made = tuple[Window, NDArray[np.float32]]


def mirror(
    store: Store,
    sides: Sides,
    maker: Maker,
    limits: Limits,
    stop: threading.Event,
    observe: Observer = lambda _: None,
    turn: Turn | None = None,
) -> Mirrored:
    """Make the target what the source is, in one pass over both; vectors are the maker's.

    A crash leaves a target that the next pass brings in step. Ends early, with all documents whole, once `stop` is set.
    Whatever is written is written in a `turn`. Of two versions the caller holds the target's lease, by which the store
    is guarded, and the source is only read; in place others may write between two turns.
    """
    turn = turn or (lambda: nullcontext(store))
    told = Told(observe, count_stored(store, sides.source).documents)
    reading = Reading(store, sides, maker, limits, stop, told)
    writing = Writing(sides, maker.maps, turn, told)
    tombstones = 0 if sides.in_place else mirror_tombstones(store, sides, turn)
    dropped = _copy(reading, maker, writing, sum(sides.widths.values()), stop)
    deleted = 0 if sides.in_place else _delete_absent(store, sides, stop, turn)
    store.flush()
    return replace(
        writing.done,
        documents=reading.seen,
        deleted=deleted,
        tombstones=tombstones,
        left=reading.left + writing.left + dropped,
        rejected=(*reading.rejected, *writing.rejected),
        stopped=stop.is_set(),
    )


def mirror_tombstones(store: Store, sides: Sides, turn: Turn) -> int:
    """Give the target the source's tombstones and no others; how many were set or removed. Safe to repeat."""
    theirs, ours = Tombstones(store, sides.source), Tombstones(store, sides.target)
    changed = 0
    for page in theirs.scan():
        held = ours.find(list(page))
        fresh = {key: sequence for key, sequence in page.items() if held.get(key) != sequence}
        if fresh:
            with turn() as guarded:
                for key in Suppressions(guarded, sides.name).find(list(fresh)):
                    del fresh[key]
                Tombstones(guarded, sides.target).set(fresh)
        changed += len(fresh)
    for page in ours.scan():
        gone = page.keys() - theirs.find(list(page)).keys()
        ours.remove(gone)
        changed += len(gone)
    return changed


def _copy(reading: Reading, maker: Maker, writing: Writing, width: int, stop: threading.Event) -> int:
    """Run the three threads; how many documents that were read were dropped, as it was to stop.

    One window waits in each pipe, so five are in memory at most.
    """
    windows: Pipe[Window] = Pipe(1)
    made: Pipe[_Made] = Pipe(1)
    dropped = 0
    with ThreadPoolExecutor(2, thread_name_prefix="mirror") as threads:
        read = threads.submit(copy_context().run, _read, reading, windows)
        write = threads.submit(copy_context().run, _write, writing, made)
        try:
            for window in windows:
                if stop.is_set():
                    dropped += len(window.copies)
                    window = Window(patches=window.patches)
                given = [one for document in window.copies for one in document.given]
                rows = maker.make(given) if given else np.empty((0, width), np.float32)
                made.put((window, rows), 1)
        except PipeClosed:
            pass  # the writing thread failed; its result below raises why
        finally:
            windows.abandon()
            made.end()
        read.result()
        write.result()
    return dropped


def _read(reading: Reading, windows: Pipe[Window]) -> None:
    error: BaseException | None = None
    try:
        for window in reading.windows():
            windows.put(window, 1)
    except PipeClosed:
        pass
    except BaseException as broken:  # noqa: BLE001 - raised again by the thread that makes vectors
        error = broken
    windows.end(error)


def _write(writing: Writing, made: Pipe[_Made]) -> None:
    try:
        for window, rows in made:
            writing.write(window, rows)
    except BaseException:
        made.abandon()
        raise


def _delete_absent(store: Store, sides: Sides, stop: threading.Event, turn: Turn) -> int:
    """Delete the documents of the target that the source does not have; how many there were."""
    deleted = 0
    for page in scan_documents(store, sides.target):
        if stop.is_set():
            break
        gone = sorted(page.keys() - read_heads(store, sides.source, list(page)).keys())
        if not gone:
            continue
        with turn() as guarded:
            forgotten = Suppressions(guarded, sides.name).find(gone)  # perhaps they are gone already
            for key in forgotten:
                remove_held(guarded, sides.target, "points", key)
            writer = DocumentWriter(guarded, sides.target)
            writer.delete([key for key in gone if key not in forgotten], page)
        deleted += len(gone)
    return deleted
