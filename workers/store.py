"""A store on the other side of an actor: every method of `Store` is the same call, made there."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import logs
from pipeline.config import StoreConfig
from pipeline.errors import StoreUnavailable
from pipeline.owner import Owner
from pipeline.stores import Purpose, Seat, Store
from workers.actors import StoreActor

_SIGN_S = 1.0

log = logs.logger(__name__)


class RemoteStore:
    """Forwards a Store's methods to a StoreActor; picklable, so lanes anywhere can hold one.

    Every method waits for the actor's answer, so what `Store` promises of a return still holds.
    """

    def __init__(self, actor: ActorHandle[Any]) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the method it stands for
            try:
                return ray.get(self._actor.call.remote(method, arguments, keywords))
            except RayTaskError as error:
                raise cause(error) from error
            except RayActorError as error:
                raise StoreUnavailable(
                    f"the process that holds the store died: {reason(error)}",
                    "One process that holds it",
                    "Run again: what was acknowledged is there",
                ) from error

        return call

    def as_store(self) -> Store:
        """Typed as the store that it stands for."""
        return cast(Store, self)


class StoreProcess:
    """The actor that holds a store's folder, minded by the driver, which is on the same machine.

    An actor that gives no sign of life for `silent_s` seconds is killed by its process id, for Ray would wait for it;
    then Ray starts it anew and repeats the calls it was in. What it had acknowledged is there.
    """

    def __init__(self, actor: ActorHandle[Any], silent_s: float) -> None:
        self.store = RemoteStore(actor).as_store()
        self._actor: Any = actor  # Ray says of its methods that they never return
        self._silent_s = silent_s
        self._owner: Owner | None = None
        self._over = threading.Event()
        self._minder = threading.Thread(target=self._mind, name="store-process", daemon=True)
        self._minder.start()

    def process_id(self) -> int:
        """The process that holds the store."""
        return cast(Owner, ray.get(self._actor.owner.remote())).pid

    def close(self) -> None:
        """Let go of the folder and end the actor; safe to repeat."""
        self._over.set()
        self._minder.join()
        with suppress(RayError):
            ray.get(self._actor.call.remote("close", (), {}), timeout=self._silent_s)
        ray.kill(self._actor)
        if self._owner is not None:
            self._owner.kill()

    def _mind(self) -> None:
        while not self._over.wait(_SIGN_S):
            sign: Any = self._actor.owner.remote()
            since = time.monotonic()
            while not (given := ray.wait([sign], timeout=_SIGN_S)[0]) and not self._over.is_set():
                if self._owner is not None and time.monotonic() - since > self._silent_s:
                    log.warning("store_silent", process=str(self._owner), silent_s=self._silent_s)
                    self._owner.kill()
                    self._owner = None
                    break
            if given:
                with suppress(RayError):  # whoever calls the store is told
                    self._owner = ray.get(sign)


def open_remote(config: StoreConfig, purpose: Purpose | None = None) -> StoreProcess:
    """Give a store in a folder to one actor on this node, where the folder is; lanes anywhere feed it.

    A restarted actor opens the folder again, and Ray repeats the calls it was in: every call of a lane is
    idempotent. Creating a collection is not; interrupted just then it is an error, and the run can be started again.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 3,
        "max_concurrency": 4,
        "scheduling_strategy": here,
    }
    seat = Seat(uuid.uuid4().hex, Owner.here())
    actor = ray.remote(StoreActor).options(**options).remote(config, os.getcwd(), purpose, seat)
    return StoreProcess(cast("ActorHandle[Any]", actor), config.timeout_s)


def cause(error: RayTaskError) -> Exception:
    """The error that was raised on the other side, with its own type where it has one of ours or of Python's."""
    return error.cause if isinstance(error.cause, Exception) else error


def reason(error: RayError) -> str:
    """What Ray says of a death, on one line of bearable length."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= 400 else f"{text[:400]}…"
