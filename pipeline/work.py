"""The work of a run, whoever does it: which split is next, how often it is tried, and which document is to blame.

A split that kills lanes is halved until the documents that do it are found: they are rejected, all others are done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pipeline import logs, metrics
from pipeline.errors import BrokenInvariant, LaneDied, TransientError
from pipeline.schemas import Counts, Split, SplitAck

log = logs.logger(__name__)

CREDITS = 2  # splits a lane holds: one that encodes, one that begins or ends

_SPARE_DEATHS = 2  # of a lane's, beyond as many as may be one split's fault
_MOST_IN_VAIN = 16  # documents found to kill lanes, one after another, before it is no document's fault

Key = tuple[str, tuple[int, int] | None, str]
"""What tells a split, or a piece of one, from all others."""


@dataclass
class Pieces:
    """A split that is done in pieces: how many are to come, and the trailers of the others by their first row."""

    whole: Split
    left: int
    acks: list[tuple[int, SplitAck]] = field(default_factory=list)
    cut: bool = False  # some pieces will never run


class Work:
    """The splits that are still to run, and how often each was tried. Knows nothing of what runs them.

    Splits that were together on a lane when it died run again last, each alone on a lane: only a death it was alone
    with counts against a split, so one that kills lanes takes no other with it. After `attempts` deaths it is halved,
    and so is each half that kills a lane, alone again, down to single documents; those that have killed `attempts`
    lanes themselves are rejected. Nothing of this is kept: after a crash of the driver it is found out anew.
    """

    def __init__(self, splits: Sequence[Split], attempts: int, lanes: int = 1) -> None:
        self._waiting = deque(splits)
        self._suspects: deque[Split] = deque()  # to be run alone
        self._pieces: dict[str, Pieces] = {}
        self._failures: Counter[Key] = Counter()
        self._deaths: Counter[Key] = Counter()
        self._attempts = attempts
        self._most_deaths = (attempts + _SPARE_DEATHS) * lanes
        self._useless = 0  # deaths since something ended or was narrowed down
        self._in_vain = 0  # documents found to kill lanes since others were done

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    def take(self, empty: bool) -> tuple[Split, bool] | None:
        """The next split for a lane that is empty or not, and whether it must run alone there."""
        if self._waiting:
            return self._waiting.popleft(), False
        return (self._suspects.popleft(), True) if empty and self._suspects else None

    def clear(self) -> Iterator[tuple[Split, SplitAck]]:
        """Forget all that has not begun; yield what splits did that were done in pieces and get no further."""
        self._waiting.clear()
        for id in {split.id for split in self._suspects}:
            yield from self._drop(id)
        self._suspects.clear()

    def done(self, split: Split, ack: SplitAck) -> Iterator[tuple[Split, SplitAck]]:
        """Take a trailer; yield it, or the whole split's once its pieces have all ended."""
        self._useless = 0
        if not split.poison and ack.counts.read:
            self._in_vain = 0
        if split.piece is None:
            yield split, ack
        else:
            self._pieces[split.id].acks.append((split.piece[0], ack))
            yield from self._ended(split.id, 1)

    def failed(self, split: Split, error: TransientError) -> None:
        """Put a split back that ended with an error which may pass; raise that if it was the last attempt."""
        self._failures[_key(split)] += 1
        if self._failures[_key(split)] >= self._attempts:
            raise error
        metrics.record(metrics.RETRIES, 1, type(error).__name__)
        log.warning("split_retried", split=split.id, error=str(error))
        self._put_back(split)

    def lost(self, splits: Sequence[Split], why: str, machine: bool) -> Iterator[tuple[Split, SplitAck]]:
        """Put back what a lost lane held, or pieces of it; yield a split that is given up, with a trailer saying why.

        `machine`: the lane went with its machine, so no split is to blame. Raises LaneDied when lanes die one after
        another and nothing comes of it.
        """
        metrics.record(metrics.RETRIES, 1, LaneDied.__name__)
        self._useless += 1
        if machine:
            for split in splits:
                self._put_back(split)
        elif len(splits) > 1:
            self._suspects.extend(splits)
        else:
            for split in splits:
                yield from self._blame(split, why)
        if self._useless > self._most_deaths:
            raise _hopeless(f"{self._useless} lanes died one after another", why)
        if self._in_vain > _MOST_IN_VAIN:
            raise _hopeless(
                f"{self._in_vain} documents one after another killed every lane they were on", why
            )

    def _put_back(self, split: Split) -> None:
        (self._suspects if split.piece else self._waiting).appendleft(split)

    def _blame(self, split: Split, why: str) -> Iterator[tuple[Split, SplitAck]]:
        """Count a death against the split that was alone with it, and narrow it down when that is due."""
        self._deaths[_key(split)] += 1
        deaths = self._deaths[_key(split)]
        rows = _rows(split)
        halved = split.piece is not None and rows > 1  # one death of a piece is enough to look closer
        if deaths < self._attempts and not halved:
            self._suspects.appendleft(split)
            return
        self._useless = 0
        self._in_vain += rows == 1 and not split.poison
        if split.poison or not rows:
            yield from self._give_up(split, _given_up(split, deaths, why))
        elif rows == 1:
            self._found(split, deaths, why)
        else:
            self._halve(split)

    def _halve(self, split: Split) -> None:
        start, stop = _range(split)
        middle = (start + stop) // 2
        self._suspects.extendleft(replace(split, piece=piece) for piece in ((middle, stop), (start, middle)))
        self._pieces.setdefault(split.id, Pieces(split, 1)).left += 1
        log.warning("split_halved", split=split.id, uri=split.uri, rows=[start, stop])

    def _found(self, split: Split, deaths: int, why: str) -> None:
        """A single document that kills lanes: a lane is to reject it."""
        start, stop = _range(split)
        message = str(
            LaneDied(
                f"{deaths} lanes died or hung on this document alone, the last with: {why}",
                "A document that a lane lives through",
                "Look at what is special in its text; change it or leave it out",
            )
        )
        self._suspects.appendleft(replace(split, piece=(start, stop), poison=message))
        self._pieces.setdefault(split.id, Pieces(split, 1))
        log.warning("document_kills_lanes", split=split.id, uri=split.uri, row=start)

    def _give_up(self, split: Split, ack: SplitAck) -> Iterator[tuple[Split, SplitAck]]:
        if split.piece is None:
            yield split, ack
        else:
            self._pieces[split.id].acks.append((split.piece[0], ack))
            self._pieces[split.id].left -= 1
            yield from self._drop(split.id)

    def _drop(self, id: str) -> Iterator[tuple[Split, SplitAck]]:
        """Leave the pieces of a split that have not begun."""
        kept = deque(split for split in self._suspects if split.id != id or split.piece is None)
        dropped = len(self._suspects) - len(kept)
        self._suspects = kept
        if id in self._pieces:
            self._pieces[id].cut = True
            yield from self._ended(id, dropped)

    def _ended(self, id: str, pieces: int) -> Iterator[tuple[Split, SplitAck]]:
        self._pieces[id].left -= pieces
        if not self._pieces[id].left:
            done = self._pieces.pop(id)
            yield done.whole, _joined(done)


def _key(split: Split) -> Key:
    return split.id, split.piece, split.poison


def _range(split: Split) -> tuple[int, int]:
    return split.piece or (split.first_row, split.first_row + (split.rows or 0))


def _rows(split: Split) -> int:
    """How many rows a split or a piece has; 0 where only reading tells."""
    start, stop = _range(split)
    return stop - start


def _joined(pieces: Pieces) -> SplitAck:
    """The trailer of a whole split; BrokenInvariant where its pieces do not add up to it."""
    acks = [ack for _, ack in sorted(pieces.acks, key=lambda one: one[0])]
    seconds: Counter[str] = Counter()
    for ack in acks:
        seconds.update(ack.seconds)
    counts = sum((ack.counts for ack in acks), Counts())
    complete = not pieces.cut and all(ack.complete for ack in acks)
    if complete and counts.read != pieces.whole.rows:
        raise BrokenInvariant(
            f"split {pieces.whole.id} of {pieces.whole.uri} has {pieces.whole.rows} rows, and its pieces {counts.read}",
            "Both must be equal before a split is committed",
            "Run again; if it stays, report it as a bug with this message",
        )
    return SplitAck(
        pieces.whole.id,
        counts,
        tuple(rejected for ack in acks for rejected in ack.rejected),
        complete,
        next((ack.error for ack in acks if ack.error is not None), None),
        dict(seconds),
    )


def _given_up(split: Split, attempts: int, why: str) -> SplitAck:
    message = f"{split.uri}, split {split.id}: given up after {attempts} attempts, the last ended with: {why}"
    return SplitAck(split.id, Counts(), complete=False, error=message)


def _hopeless(got: str, why: str) -> LaneDied:
    return LaneDied(
        f"{got}, the last with: {why}",
        "Lanes that live long enough to finish a split",
        "Look for lack of memory, or a machine without the model; then run again",
    )
