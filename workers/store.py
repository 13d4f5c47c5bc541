"""A store on the other side of an actor: every method of `Store` is the same call, made there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import StoreConfig
from pipeline.errors import StoreUnavailable
from pipeline.stores import Store
from workers.actors import StoreActor


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

    def process_id(self) -> int:
        """The process that holds the store."""
        return cast(int, ray.get(self._actor.process_id.remote()))

    def close(self) -> None:
        """Let go of the folder and end the actor; safe to repeat."""
        with suppress(RayError):
            ray.get(self._actor.call.remote("close", (), {}))
        ray.kill(self._actor)


def open_remote(config: StoreConfig, purpose: str = "") -> RemoteStore:
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
    actor = ray.remote(StoreActor).options(**options).remote(config, os.getcwd(), purpose)
    return RemoteStore(cast("ActorHandle[Any]", actor))


def cause(error: RayTaskError) -> Exception:
    """The error that was raised on the other side, with its own type where it has one of ours or of Python's."""
    return error.cause if isinstance(error.cause, Exception) else error


def reason(error: RayError) -> str:
    """What Ray says of a death, on one line of bearable length."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= 400 else f"{text[:400]}…"
