"""What runs inside Ray's processes; plain classes, so that they are tested without Ray.

Constructors only assign: a constructor that raises inside an actor would lose the error's type.
"""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline import logs, metrics
from pipeline.config import StoreConfig
from pipeline.job import Job
from pipeline.lane import Lane
from pipeline.owner import Owner
from pipeline.schemas import Split, SplitAck
from pipeline.stores import Purpose, Seat, Store, open_store
from workers.metrics import RaySink


@dataclass(frozen=True)
class Place:
    """Where a lane runs: its process, its machine by Ray's id, and the GPUs that Ray gave it."""

    pid: int
    node: str
    gpus: str


class LaneActor:
    """One lane in a process of its own. Its death loses nothing: the splits it held are run again elsewhere.

    `folder` is the driver's working folder: paths relative to it mean the same here, where it exists.
    """

    def __init__(self, job: Job, store: Store | None, folder: str) -> None:
        self._job = job
        self._store = store
        self._folder = folder
        self._lane: Lane | None = None

    def place(self) -> Place:
        """Where this lane was put; answers as soon as its process has started."""
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return Place(os.getpid(), node, os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    def open(self) -> None:
        """Load the encoder and open the store. Call once, before any split.

        From here on the process's log lines name the run, and its numbers go to Ray.
        """
        with _crossing():
            _enter(self._folder)
            logs.configure(self._job.settings)
            logs.set_run(self._job.run)
            metrics.send_to(RaySink(self._job.settings.store.collection))
            # Tokenizers would else take every core in each lane.
            os.environ.setdefault("RAYON_NUM_THREADS", str(self._job.settings.encoder.threads))
            store = self._store or open_store(self._job.settings.store)
            self._lane = Lane.open(self._job, store)

    def run_split(self, split: Split) -> SplitAck:
        """Run a split; see `Lane.run_split`."""
        with _crossing():
            return self._opened().run_split(split)

    def progress(self) -> int:
        """Documents done so far in the splits that are running now."""
        return sum(self._lane.progress().values()) if self._lane else 0

    def stop(self) -> None:
        """End running splits at their next window."""
        if self._lane:
            self._lane.stop()

    def _opened(self) -> Lane:
        if self._lane is None:
            raise RuntimeError("LaneActor.open was not called. This is a bug")
        return self._lane


class StoreActor:
    """The one process that holds a store's folder while lanes elsewhere feed it.

    Killed and restarted, it finds every write it had acknowledged, and in the folder its predecessor in the same seat,
    if that one still lives.
    """

    def __init__(
        self, config: StoreConfig, folder: str, purpose: Purpose | None = None, seat: Seat | None = None
    ) -> None:
        self._config = config
        self._folder = folder
        self._purpose = purpose
        self._seat = seat
        self._store: Store | None = None
        self._opening = threading.Lock()  # lanes call at the same time, and only one may take the folder

    def call(self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call one of the store's methods; opens the store at the first call."""
        with _crossing():
            return getattr(self._opened(), method)(*arguments, **keywords)

    def owner(self) -> Owner:
        """The process that holds the store; an answer is a sign of life, too."""
        return Owner.here()

    def _opened(self) -> Store:
        with self._opening:
            if self._store is None:
                _enter(self._folder)
                self._store = open_store(self._config, self._purpose, self._seat)
            return self._store


def _enter(folder: str) -> None:
    with suppress(OSError):  # on a machine without it, a relative path will be named as missing
        os.chdir(folder)


@contextmanager
def _crossing() -> Iterator[None]:
    """Let errors cross to the driver: one that cannot be unpickled there becomes a RuntimeError with its traceback.

    Ray would report it as an error of its own, as if the process had died.
    """
    try:
        yield
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - whatever a foreign class raises
            raise RuntimeError("".join(traceback.format_exception(error))) from None
        raise
