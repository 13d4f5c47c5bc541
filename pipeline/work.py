"""The splits of a run that are still to be done, whoever runs them: which is next, and how often each is tried."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from pipeline import logs, metrics
from pipeline.errors import TransientError
from pipeline.schemas import Counts, Split, SplitAck

log = logs.logger(__name__)

CREDITS = 2  # splits a lane holds: one that encodes, one that begins or ends


class Work:
    """The splits that are still to run, and how often each was tried.

    Splits that were together on a lane when it died run again last, each alone on a lane: only a death it was alone
    with counts against a split, so one that kills lanes takes no other with it.
    """

    def __init__(self, splits: Sequence[Split], attempts: int) -> None:
        self._waiting = deque(splits)
        self._suspects: deque[Split] = deque()
        self._tried: Counter[str] = Counter()
        self._attempts = attempts

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    def take(self, empty: bool) -> tuple[Split, bool] | None:
        """The next split for a lane that is empty or not, and whether it must run alone there."""
        if self._waiting:
            return self._waiting.popleft(), False
        return (self._suspects.popleft(), True) if empty and self._suspects else None

    def clear(self) -> None:
        """Forget all that has not begun."""
        self._waiting.clear()
        self._suspects.clear()

    def failed(self, split: Split, error: TransientError) -> None:
        """Put a split back that ended with an error which may pass; raise that if it was the last attempt."""
        self._tried[split.id] += 1
        if self._tried[split.id] >= self._attempts:
            raise error
        metrics.record(metrics.RETRIES, 1, type(error).__name__)
        log.warning("split_retried", split=split.id, error=str(error))
        self._waiting.appendleft(split)

    def lost(self, splits: Sequence[Split], why: str, machine: bool) -> Iterator[tuple[Split, SplitAck]]:
        """Put back what a lost lane held; yield the split that is given up, with a trailer that says why.

        `machine`: the lane went with its machine, so no split is to blame.
        """
        if machine:
            self._waiting.extendleft(splits)
            return
        if len(splits) > 1:
            self._suspects.extend(splits)
            return
        for split in splits:
            self._tried[split.id] += 1
            if self._tried[split.id] < self._attempts:
                self._suspects.append(split)
            else:
                yield split, _given_up(split, self._tried[split.id], why)


def _given_up(split: Split, attempts: int, why: str) -> SplitAck:
    message = f"{split.uri}, split {split.id}: given up after {attempts} attempts, the last ended with: {why}"
    return SplitAck(split.id, Counts(), complete=False, error=message)
