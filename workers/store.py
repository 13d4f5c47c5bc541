"""A store on the other side of an actor: every method of `Store` is the same call, made there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import StoreConfig
from pipeline.errors import HeadwaterError, StoreUnavailable
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
                raise (error.cause if isinstance(error.cause, HeadwaterError) else error) from None
            except RayActorError as error:
                raise StoreUnavailable(
                    f"the process that holds the edge store died: {error}",
                    "One process that holds it",
                    "Run again: what was acknowledged is there",
                ) from error

        return call


def open_remote(config: StoreConfig) -> Store:
    """Give the edge store to one actor on this node, where its folder is; lanes anywhere feed it.

    A restarted actor opens the folder again; every call is idempotent, so Ray may repeat one.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 3,
        "max_concurrency": 4,
        "scheduling_strategy": here,
    }
    actor = ray.remote(StoreActor).options(**options).remote(config)
    return cast(Store, RemoteStore(cast("ActorHandle[Any]", actor)))
