"""The local executor: one lane in this process, no Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pipeline.config import StoreConfig
from pipeline.errors import LaneHung, TransientError
from pipeline.job import Job
from pipeline.lane import Lane
from pipeline.schemas import Split, SplitAck
from pipeline.stores import Purpose, Store, open_store
from pipeline.work import CREDITS, Work


class Deadline:
    """How long a lane may go without a document done."""

    def __init__(self, seconds: float) -> None:
        self.missed = False
        self._seconds = seconds
        self._seen: object = None
        self._since = time.monotonic()

    def check(self, running: Sequence[Split], progress: dict[str, int]) -> None:
        """Raise LaneHung where these splits run, and were as far as this, ever since the deadline began."""
        seen = [split.id for split in running], progress
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        if time.monotonic() - self._since <= self._seconds:
            return
        self.missed = True
        where = " and ".join(
            f"{split.uri} from row {split.first_row} (split {split.id})" for split in running
        )
        raise LaneHung(
            f"no document done for {self._seconds:g} s in {where}",
            "An encoder and a store that get on",
            "Run again: what is committed is not read again. If it stands still there again, --executor ray finds the "
            "document and rejects it; if it is only slow, raise run.split_deadline_s",
        )


class LocalExecutor:
    """Runs splits on one lane that shares the driver's store."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._lane: Lane | None = None
        self._stopped = False  # the lane takes no more splits

    def open_store(self, config: StoreConfig, purpose: Purpose | None = None) -> Store:
        """Open the store the lane will write to."""
        self._store = open_store(config, purpose)
        return self._store

    def run(
        self, job: Job, splits: Sequence[Split], stop: threading.Event
    ) -> Generator[tuple[Split, SplitAck]]:
        """Run splits two at a time, after an error that may pass again; see `ingest.Executor`.

        A lane that came to the end of its splits runs those of the next call, too. Raises LaneHung where no document
        is done for `run.split_deadline_s`: the lane's threads go on, and the process is to be ended without them.
        """
        lane = self._open_lane(job)
        work = Work(splits, job.settings.run.split_attempts)
        running: dict[Future[SplitAck], Split] = {}
        deadline = Deadline(job.settings.run.split_deadline_s)
        threads = ThreadPoolExecutor(CREDITS, thread_name_prefix="lane")
        try:
            while True:
                while len(running) < CREDITS and not stop.is_set() and (taken := work.take(not running)):
                    split, _ = taken
                    running[threads.submit(lane.run_split, split)] = split
                if not running:
                    return
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                if stop.is_set():
                    self._stop(lane)
                if not done:
                    deadline.check(list(running.values()), lane.progress())
                for future in done:
                    split, error = running.pop(future), future.exception()
                    if isinstance(error, TransientError):
                        work.failed(split, error)
                    else:
                        yield from work.done(split, future.result())
        finally:
            if running:
                self._stop(lane)
            threads.shutdown(wait=not deadline.missed)

    def _open_lane(self, job: Job) -> Lane:
        if self._lane and self._stopped:
            self._lane.close()
            self._lane = None
        if self._lane is None:
            self._lane = Lane.open(job, self._store or self.open_store(job.settings.store))
            self._stopped = False
        return self._lane

    def _stop(self, lane: Lane) -> None:
        self._stopped = True
        lane.stop()

    def progress(self) -> int:
        """Documents done so far in the splits that are running now."""
        return sum(self._lane.progress().values()) if self._lane else 0

    def close(self) -> None:
        """Free the lane's encoder, then close the store."""
        if self._lane:
            self._lane.close()
        if self._store:
            self._store.close()
