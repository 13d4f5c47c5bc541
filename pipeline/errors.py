"""Every exception Headwater raises; transient or terminal is the type.

HeadwaterError
├── TransientError            the same call may succeed later: retried, with a bound
│   ├── StoreUnavailable      the store did not answer, or answered 5xx
│   ├── StoreOverloaded       the store asked us to slow down (429); carries retry_after_s
│   ├── LaneDied              a lane's process or node went away
│   │   └── LaneHung          a lane in this process stands still, and so does what waits for its threads
│   └── CollectionHeld        another run works on the collection (exit code 0)
└── TerminalError             the same call fails again: reported, never retried
    ├── UsageError            the caller's flags, config or mapping are wrong (exit code 2)
    ├── SourceError           a source cannot be read
    │   └── ChangesLost       what its commits changed is not to be had any more: all of it is read
    ├── EncoderError          a model cannot be loaded, exported or run
    │   ├── ParityError       the exported graph does not reproduce the model
    │   ├── ProviderError     the execution provider asked for is not to be had
    │   └── InputsTooLarge    inputs that alone are more than memory holds; carries all vectors, and their rows
    ├── StoreError            the store refused
    │   ├── StoreHeld         another process has the folder open; carries who and what for
    │   ├── StoreUnauthorized 401 or 403
    │   ├── StoreFull         no space left
    │   └── PointTooLarge     one point is more than the store takes in a request; carries point_id
    ├── DeletesRefused        a snapshot lacks more documents than may be removed
    ├── LeaseLost             another run has taken the collection over
    ├── CountMismatch         the collection does not hold what a run counted
    ├── CollectionMismatch    the collection was made for another encoder, dimension or distance
    ├── UpgradeRefused        a version of a collection must not take another's place, or go
    └── BrokenInvariant       a bug of ours: the numbers of a split do not add up
"""

from __future__ import annotations

from typing import Any


class HeadwaterError(Exception):
    """An error in three parts: what we got, what we need, what to do.

    All parts are positional and passed to `Exception`, so the type and its parts survive pickling, and so Ray.
    """

    def __init__(self, got: str, need: str = "", do: str = "") -> None:
        super().__init__(got, need, do)
        self.got = got
        self.need = need
        self.do = do

    def __str__(self) -> str:
        parts = (part.rstrip(".") for part in (self.got, self.need, self.do) if part)
        return " ".join(part if part.endswith("?") else f"{part}." for part in parts)


class TransientError(HeadwaterError):
    """The same call may succeed later."""


class StoreUnavailable(TransientError):
    """The store did not answer, or answered with a server error."""


class StoreOverloaded(TransientError):
    """The store asked for a pause of `retry_after_s` seconds."""

    def __init__(self, got: str, need: str = "", do: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(got, need, do)
        self.args = (got, need, do, retry_after_s)
        self.retry_after_s = retry_after_s


class LaneDied(TransientError):
    """A lane's process or node went away in the middle of a split."""


class LaneHung(LaneDied):
    """A lane in this process stands still. Its threads cannot be ended, and a process that ends waits for them."""


class CollectionHeld(TransientError):
    """Another run works on the collection: there is nothing for this one to do."""


class TerminalError(HeadwaterError):
    """The same call would fail again."""


class UsageError(TerminalError):
    """Flags, configuration or column mapping are wrong."""


class SourceError(TerminalError):
    """A source, or a part of it, cannot be read."""


class ChangesLost(SourceError):
    """What a source's commits changed is not to be had any more; what it holds now is."""


class EncoderError(TerminalError):
    """A model cannot be loaded, exported or run."""


class ParityError(EncoderError):
    """The exported graph does not reproduce the model it was made from."""


class ProviderError(EncoderError):
    """The execution provider that was asked for is not available."""


class InputsTooLarge(EncoderError):
    """Inputs, by their numbers `rows`, of which each alone is more than memory holds.

    `vectors` (float32[n, dims]) are those of all inputs, NaN for these.
    """

    def __init__(
        self,
        got: str,
        need: str = "",
        do: str = "",
        vectors: Any = None,  # noqa: ANN401 - this floor knows no arrays
        rows: tuple[int, ...] = (),
    ) -> None:
        super().__init__(got, need, do)
        self.args = (got, need, do, vectors, rows)
        self.vectors = vectors
        self.rows = rows


class StoreError(TerminalError):
    """The store refused a request."""


class StoreHeld(StoreError):
    """Another process has the store's folder open, for this purpose on this collection; "": that is unknown."""

    def __init__(
        self, got: str, need: str = "", do: str = "", purpose: str = "", collection: str = ""
    ) -> None:
        super().__init__(got, need, do)
        self.args = (got, need, do, purpose, collection)
        self.purpose = purpose
        self.collection = collection


class StoreUnauthorized(StoreError):
    """The store refused our credentials, or wants some."""


class StoreFull(StoreError):
    """The store, or the disk under it, has no space left."""


class PointTooLarge(StoreError):
    """The point `point_id` alone is more than the store takes in a request: its document cannot be stored."""

    def __init__(self, got: str, need: str = "", do: str = "", point_id: str = "") -> None:
        super().__init__(got, need, do)
        self.args = (got, need, do, point_id)
        self.point_id = point_id


class DeletesRefused(TerminalError):
    """A snapshot lacks more documents than may be removed; none was."""


class LeaseLost(TerminalError):
    """Another run has taken the collection over; what was committed stands."""


class CountMismatch(TerminalError):
    """After a run the collection does not hold as many documents and points as the run's trailers add up to."""


class CollectionMismatch(TerminalError):
    """The collection was made for another encoder, dimension or distance."""


class UpgradeRefused(TerminalError):
    """A version of a collection must not take another's place, or must not go; all are as they were."""


class BrokenInvariant(TerminalError):
    """The numbers of a split do not add up; nothing of it is committed."""


def first_line(error: BaseException) -> str:
    """What a library's error says first; the type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
