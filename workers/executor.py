"""The Ray executor: hands splits to lanes, replaces the dead ones, bounds every wait.

The driver sees splits and trailers only, so one driver feeds any number of GPUs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from pipeline.config import Settings, StoreConfig
from pipeline.errors import HeadwaterError, LaneDied, TransientError
from pipeline.job import Job
from pipeline.schemas import Counts, Split, SplitAck
from pipeline.stores import Store, open_store
from workers.actors import LaneActor, Place
from workers.cluster import LaneShare, cluster_size, connect, share, with_threads
from workers.store import open_remote

CREDITS = 2  # splits a lane holds: one that encodes, one that begins or ends
POLL_S = 0.25
DEATHS_PER_LANE = 5  # without a trailer in between; a broken machine must not be tried for ever


@dataclass
class Handle:
    """A lane as the driver sees it."""

    actor: ActorHandle[Any]
    opening: Any | None  # the reference of open(), until it returned
    running: dict[Any, tuple[Split, float]] = field(default_factory=dict)  # reference -> (split, since when)
    place: Place | None = None
    dead: bool = False


class RayExecutor:
    """Runs splits on lanes that are Ray actors, one per GPU, or one per share of the CPUs.

    A lane that dies is replaced, never restarted in place, so a dead one is never picked again; what it held is run
    again. A split is given up after `run.split_attempts` lanes died or hung on it, and reported as failed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started_here = False
        self._store: Store | None = None
        self._lanes: list[Handle] = []
        self._attempts: dict[str, int] = {}
        self._deaths = 0  # since the last trailer
        self._known_progress = 0

    def open_store(self, config: StoreConfig) -> Store:
        """A server is opened by every lane for itself; an edge store is held by one actor that all feed."""
        self._started_here = connect()
        if config.url.startswith("edge:"):
            self._store = open_remote(config)
            return self._store
        return open_store(config)

    def run(
        self, job: Job, splits: Sequence[Split], stop: threading.Event
    ) -> Iterator[tuple[Split, SplitAck]]:
        """Run splits on lanes; see `ingest.Executor`."""
        parts = share(self._settings, *cluster_size())
        job = replace(job, settings=with_threads(job.settings, parts.threads))
        waiting = deque(splits)
        for _ in range(min(parts.lanes, len(splits))):
            self._start(job, parts)
        told = False
        while waiting or any(lane.running for lane in self._lanes):
            if stop.is_set() and not told:
                told = True
                waiting.clear()
                for lane in self._lanes:
                    lane.actor.stop.remote()
                continue
            self._hand_out(waiting)
            for split, ack, died in self._collect():
                if ack is not None:
                    self._deaths = 0
                    yield split, ack
                elif self._attempts.get(split.id, 0) < self._settings.run.split_attempts and not told:
                    waiting.appendleft(split)
                elif not told:
                    yield split, _given_up(split, self._attempts[split.id], died)
            self._replace_dead(job, parts)

    def progress(self) -> int:
        """Documents done so far in the splits that are running now; the last known number where a lane is busy."""
        asked = [lane.actor.progress.remote() for lane in list(self._lanes) if lane.opening is None]
        with suppress(RayError):
            self._known_progress = sum(ray.get(asked, timeout=1.0))
        return self._known_progress

    def places(self) -> list[Place]:
        """Where the lanes run that are ready."""
        return [lane.place for lane in self._lanes if lane.place is not None]

    def close(self) -> None:
        """Kill the lanes, and the Ray that was started for this run."""
        for lane in self._lanes:
            ray.kill(lane.actor)
        self._lanes = []
        if self._started_here:
            ray.shutdown()

    def _start(self, job: Job, parts: LaneShare) -> None:
        actor: Any = (
            ray.remote(LaneActor)
            .options(
                num_cpus=parts.cpus,
                num_gpus=parts.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CREDITS + 2,  # two splits, and room for progress() and stop()
                scheduling_strategy="SPREAD",
            )
            .remote(job, self._store)
        )
        self._lanes.append(Handle(actor, actor.open.remote()))

    def _hand_out(self, waiting: deque[Split]) -> None:
        """Fill the lanes evenly: one split each before anybody gets a second."""
        for credit in range(1, CREDITS + 1):
            for lane in self._lanes:
                if waiting and lane.opening is None and len(lane.running) < credit:
                    split = waiting.popleft()
                    lane.running[lane.actor.run_split.remote(split)] = (split, time.monotonic())

    def _collect(self) -> Iterator[tuple[Split, SplitAck | None, str]]:
        """What ended within a short wait: trailers, and the splits that dead lanes held with the reason."""
        openings = [lane.opening for lane in self._lanes if lane.opening is not None]
        running = [reference for lane in self._lanes for reference in lane.running]
        ended, _ = ray.wait([*openings, *running], num_returns=1, timeout=POLL_S)
        for lane in self._lanes:
            if lane.opening in ended:
                yield from self._opened(lane)
            for reference in [r for r in ended if r in lane.running]:
                yield from self._ended(lane, reference)
            if not lane.dead and any(
                time.monotonic() - since > self._deadline_s for _, since in lane.running.values()
            ):
                yield from self._lost(lane, f"no trailer within {self._deadline_s:.0f} s")

    @property
    def _deadline_s(self) -> float:
        return self._settings.run.split_deadline_s

    def _opened(self, lane: Handle) -> Iterator[tuple[Split, SplitAck | None, str]]:
        try:
            lane.place = ray.get(cast("ray.ObjectRef[Place]", lane.opening))
            lane.opening = None
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, HeadwaterError) else error) from None
        except RayError as error:
            yield from self._lost(lane, str(error))

    def _ended(self, lane: Handle, reference: Any) -> Iterator[tuple[Split, SplitAck | None, str]]:  # noqa: ANN401
        if reference not in lane.running:  # its lane was lost a moment ago
            return
        try:
            ack = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(error.cause, TransientError):
                raise (error.cause if isinstance(error.cause, HeadwaterError) else error) from None
            split, _ = lane.running.pop(reference)
            self._attempts[split.id] = self._attempts.get(split.id, 0) + 1
            if self._attempts[split.id] >= self._settings.run.split_attempts:
                raise error.cause from None
            yield split, None, str(error.cause)
        except RayError as error:
            yield from self._lost(lane, str(error))
        else:
            split, _ = lane.running.pop(reference)
            yield split, ack, ""

    def _lost(self, lane: Handle, why: str) -> Iterator[tuple[Split, SplitAck | None, str]]:
        """Kill what may be left of a lane, and give back the splits it held."""
        ray.kill(lane.actor)
        lane.dead = True
        self._deaths += 1
        held = [split for split, _ in lane.running.values()]
        lane.running.clear()
        if self._deaths > DEATHS_PER_LANE * len(self._lanes):
            raise LaneDied(
                f"{self._deaths} lanes died one after another, the last with: {why}",
                "Lanes that live long enough to finish a split",
                "Look for lack of memory, or a machine without the model; then run again",
            )
        for split in held:
            self._attempts[split.id] = self._attempts.get(split.id, 0) + 1
            yield split, None, why

    def _replace_dead(self, job: Job, parts: LaneShare) -> None:
        dead = sum(lane.dead for lane in self._lanes)
        self._lanes = [lane for lane in self._lanes if not lane.dead]
        for _ in range(dead):
            self._start(job, parts)


def _given_up(split: Split, attempts: int, why: str) -> SplitAck:
    message = f"{split.uri}, split {split.id}: given up after {attempts} attempts, the last ended with: {why}"
    return SplitAck(split.id, Counts(), complete=False, error=message)
