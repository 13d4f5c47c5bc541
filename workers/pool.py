"""The lanes of a run as the driver sees them: started, fed, replaced when they die or hang.

A lane that dies is replaced, never restarted in place, so a dead one is never picked again. The driver awaits
every answer itself and forwards none, so a lane's death can only surface at that lane. Waiting and pausing happen
here in the driver alone: no split is held while anybody sleeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from pipeline import logs
from pipeline.errors import LaneDied, TransientError
from pipeline.job import Job
from pipeline.schemas import Split, SplitAck
from pipeline.stores import Store
from pipeline.work import CREDITS
from workers.actors import LaneActor, Place
from workers.cluster import LaneShare
from workers.store import cause, reason

log = logs.logger(__name__)

POLL_S = 0.25
PLACED_S = 30.0  # after that it is said that lanes wait for room on the cluster


@dataclass(frozen=True)
class Done:
    """A split's trailer has come."""

    split: Split
    ack: SplitAck


@dataclass(frozen=True)
class Failed:
    """A split ended with an error that may pass; its lane lives."""

    split: Split
    error: TransientError


@dataclass(frozen=True)
class Lost:
    """A lane is gone, with the splits it held. `machine`: it went with its machine, so no split is to blame."""

    splits: tuple[Split, ...]
    why: str
    machine: bool


@dataclass(eq=False)
class Handle:
    """One lane: first `place()` is awaited, then `open()`, then it takes splits."""

    actor: ActorHandle[Any]
    starting: Any | None  # the reference of place() or open(); None when the lane is ready
    since: float
    place: Place | None = None
    running: dict[Any, tuple[Split, float]] = field(default_factory=dict)  # reference -> (split, since when)
    alone: bool = False  # holds a split that runs by itself
    documents: int = 0  # done in running splits, when last asked
    moved: float = 0.0  # when that number last changed

    def heard(self, documents: int) -> None:
        """Keep what the lane said it has done; a lane that gets on is not overdue, however long its split."""
        if documents != self.documents:
            self.documents, self.moved = documents, time.monotonic()


class Pool:
    """The lanes of one run. One thread drives it; `progress` and `places` may be called from another."""

    def __init__(self, job: Job, store: Store | None, parts: LaneShare, deadline_s: float) -> None:
        self._arguments = (job, store, os.getcwd())
        self._parts = parts
        self._deadline_s = deadline_s
        self._lanes: list[Handle] = []
        self._told = False
        for _ in range(parts.lanes):
            self._start()

    @property
    def busy(self) -> bool:
        """Whether any lane holds a split."""
        return any(lane.running for lane in self._lanes)

    def hand_out(self, take: Callable[[bool], tuple[Split, bool] | None]) -> None:
        """Fill the lanes evenly: one split each before anybody gets a second.

        `take(empty)` gives the next split for a lane that is empty or not, and whether it has to run alone.
        """
        for credit in range(1, CREDITS + 1):
            for lane in self._lanes:
                if lane.starting is not None or len(lane.running) >= (1 if lane.alone else credit):
                    continue
                if (taken := take(not lane.running)) is not None:
                    split, lane.alone = taken
                    lane.running[lane.actor.run_split.remote(split)] = (split, time.monotonic())

    def collect(self) -> Iterator[Done | Failed | Lost]:
        """What ended within a short wait. Raises what would meet every split, and LaneDied if no lane ever starts."""
        starting = [lane.starting for lane in self._lanes if lane.starting is not None]
        running = [reference for lane in self._lanes for reference in lane.running]
        ended, _ = ray.wait([*starting, *running], num_returns=1, timeout=POLL_S)
        for lane in list(self._lanes):
            try:
                if lane.starting in ended:
                    self._started(lane)
                for reference in [reference for reference in ended if reference in lane.running]:
                    yield self._ended(lane, reference)
            except RayTaskError as error:
                raise cause(error) from error
            except RayError as error:
                yield self._lost(lane, reason(error), machine=not _died_alone(lane, error))
                continue
            if overdue := self._overdue(lane):
                yield self._lost(lane, overdue, machine=False)
        self._check_placed()

    def stop(self) -> None:
        """End running splits at their next window."""
        for lane in self._lanes:
            lane.actor.stop.remote()

    def progress(self) -> int:
        """Documents done so far in the running splits; the last known number of a lane that does not answer."""
        asked: dict[Any, Handle] = {
            lane.actor.progress.remote(): lane for lane in list(self._lanes) if lane.starting is None
        }
        if asked:
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=1.0)
            for reference in answered:
                with suppress(RayError):
                    asked[reference].heard(cast(int, ray.get(reference)))
        return sum(lane.documents for lane in list(self._lanes))

    def places(self) -> list[Place]:
        """Where the lanes run that are ready."""
        return [lane.place for lane in list(self._lanes) if lane.place is not None and lane.starting is None]

    def kill(self) -> None:
        """End all lanes at once."""
        for lane in self._lanes:
            ray.kill(lane.actor)
        self._lanes = []

    def _start(self) -> None:
        actor: Any = (
            ray.remote(LaneActor)
            .options(
                num_cpus=self._parts.cpus,
                num_gpus=self._parts.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CREDITS + 2,  # two splits, and room for progress() and stop()
                scheduling_strategy="SPREAD",
            )
            .remote(*self._arguments)
        )
        self._lanes.append(Handle(actor, actor.place.remote(), time.monotonic()))

    def _started(self, lane: Handle) -> None:
        answer: Any = ray.get(cast("ray.ObjectRef[Any]", lane.starting))
        lane.since = time.monotonic()
        if lane.place is None:
            lane.place = cast(Place, answer)
            lane.starting = lane.actor.open.remote()
        else:
            lane.starting = None
            log.info("lane_ready", **vars(lane.place))

    def _ended(self, lane: Handle, reference: Any) -> Done | Failed:  # noqa: ANN401 - a reference
        split, _ = lane.running[reference]
        try:
            outcome: Done | Failed = Done(split, cast(SplitAck, ray.get(reference)))
        except RayTaskError as error:
            if not isinstance(error.cause, TransientError):
                raise
            outcome = Failed(split, error.cause)
        del lane.running[reference]
        lane.documents = 0  # until asked again: what was done is in the trailer now
        lane.alone = lane.alone and bool(lane.running)
        return outcome

    def _overdue(self, lane: Handle) -> str:
        """What a lane has not done in time; "" for a good one. Waiting for room on the cluster is no fault."""
        late = time.monotonic() - self._deadline_s
        if lane.place is not None and lane.starting is not None and lane.since < late:
            return f"the lane was not ready within {self._deadline_s:.0f} s"
        if any(max(since, lane.moved) < late for _, since in lane.running.values()):
            return f"no document done and no trailer within {self._deadline_s:.0f} s"
        return ""

    def _lost(self, lane: Handle, why: str, machine: bool) -> Lost:
        """Kill what may be left of a lane, start another, and give back the splits it held."""
        splits = [split.id for split, _ in lane.running.values()]
        where = vars(lane.place) if lane.place else {}
        log.warning("lane_lost", why=why, machine_lost=machine, splits=splits, **where)
        ray.kill(lane.actor)
        self._lanes.remove(lane)
        self._start()
        return Lost(tuple(split for split, _ in lane.running.values()), why, machine)

    def _check_placed(self) -> None:
        """Say once that lanes wait for room; give up where no lane at all got any by the deadline."""
        unplaced = [lane for lane in self._lanes if lane.place is None]
        waited = max((time.monotonic() - lane.since for lane in unplaced), default=0.0)
        if waited < PLACED_S:
            return
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        message = (
            f"{len(unplaced)} of {len(self._lanes)} lanes wait for room on the Ray cluster: a lane takes "
            f"{self._parts.cpus:g} CPUs and {self._parts.gpus:g} GPUs of one machine, and "
            f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free on all"
        )
        if waited > self._deadline_s and len(unplaced) == len(self._lanes):
            raise LaneDied(
                message, "Room for one lane", "End other work there, or set run.lanes or encoder.threads"
            )
        if not self._told:
            self._told = True
            log.warning("lanes_wait", why=message)


def _died_alone(lane: Handle, error: RayError) -> bool:
    """Whether a lane's process died on a machine that lives on: then what it held may be to blame.

    A machine's loss first shows as an actor that cannot be reached, later as one whose node is no longer alive.
    """
    if not isinstance(error, ActorDiedError) or error.preempted:
        return False
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    return lane.place is None or lane.place.node in alive
