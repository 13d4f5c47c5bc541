"""What runs inside Ray's processes; plain classes, so that they are tested without Ray.

Constructors only assign: a constructor that raises inside an actor would lose the error's type.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipeline.config import StoreConfig
from pipeline.job import Job
from pipeline.lane import Lane
from pipeline.schemas import Split, SplitAck
from pipeline.stores import Store, open_store


@dataclass(frozen=True)
class Place:
    """Where a lane runs: its process, and the GPUs that Ray gave it."""

    pid: int
    gpus: str


class LaneActor:
    """One lane in a process of its own. Its death loses nothing: the splits it held are run again elsewhere."""

    def __init__(self, job: Job, store: Store | None) -> None:
        self._job = job
        self._store = store
        self._lane: Lane | None = None

    def open(self) -> Place:
        """Load the encoder and open the store; says where that is. Call once, before any split."""
        store = self._store or open_store(self._job.settings.store)
        self._lane = Lane.open(self._job, store)
        return Place(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    def run_split(self, split: Split) -> SplitAck:
        """Run a split; see `Lane.run_split`."""
        return self._opened().run_split(split)

    def progress(self) -> int:
        """Documents done so far in the splits that are running now."""
        return sum(self._lane.progress().values()) if self._lane else 0

    def stop(self) -> None:
        """End running splits at their next window."""
        self._opened().stop()

    def _opened(self) -> Lane:
        if self._lane is None:
            raise RuntimeError("LaneActor.open was not called. This is a bug")
        return self._lane


class StoreActor:
    """The one process that holds an edge store while lanes elsewhere feed it.

    Killed and restarted, it finds every write it had acknowledged: the engine replays its log.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._store: Store | None = None

    def call(self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call one of the store's methods; opens the store at the first call."""
        if self._store is None:
            self._store = open_store(self._config)
        return getattr(self._store, method)(*arguments, **keywords)

    def process_id(self) -> int:
        """The process that holds the store."""
        return os.getpid()
