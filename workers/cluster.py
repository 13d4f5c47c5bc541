"""Which Ray a run uses, how many lanes it gets and what each of them is given."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import ray

from pipeline.config import Settings
from pipeline.errors import TransientError, UsageError

_ANSWER_S = 5.0


def connect() -> bool:
    """Connect to the Ray that RAY_ADDRESS names (as inside a submitted job), else start one on this machine.

    Returns whether this process was not connected before, and so has to disconnect. Ray prints the deaths of
    workers to stdout. Raises TransientError where nothing answers at that address, UsageError for an address of
    Ray Client.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Never a plain init: it would follow a stale address that a crashed cluster left behind.
        with _own_signals():
            ray.init(
                address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        return True
    _check_answers(address)
    try:
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise _unreachable(address, str(error)) from error
    return True


def _check_answers(address: str) -> None:
    """Ask first: Ray itself tries for minutes to reach an address where nothing is."""
    if address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS is {address}, an address of Ray Client",
            "A run's driver is part of its cluster",
            "Start it with ray job submit --address http://HEAD:8265 -- headwater ingest …",
        )
    if address == "auto":
        return
    try:
        parts = urlsplit(f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, why: str) -> TransientError:
    return TransientError(
        f"no Ray can be joined at RAY_ADDRESS {address}: {why}",
        "A running Ray there, or no RAY_ADDRESS to start one on this machine",
        "Check the address, or unset RAY_ADDRESS; where Ray wants a token, set RAY_AUTH_MODE=token",
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers: Ray's own for SIGTERM ends the driver at once, where ours drains."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has, as Ray counts it; other work may be using it."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class LaneShare:
    """How many lanes a run has, and what one of them takes: CPUs, GPUs, threads."""

    lanes: int
    cpus: float
    gpus: float
    threads: int


def nodes() -> list[Node]:
    """The living machines of the cluster."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [Node(float(has.get("CPU", 0)), float(has.get("GPU", 0))) for has in found]


def share(settings: Settings, nodes: Sequence[Node]) -> LaneShare:
    """Divide a cluster's CPUs and GPUs among lanes that each fit on one machine.

    One lane per GPU; it asks for one CPU only, so that CPUs never decide how many GPUs are used. Without GPUs a
    lane has `encoder.threads` CPUs, or as many as the smallest machine has, and there are as many lanes as fit;
    `run.lanes` divides what there is by its number instead. Raises UsageError where GPUs were asked for and the
    cluster has none.
    """
    gpus = sum(int(node.gpus) for node in nodes)
    lanes, threads = settings.run.lanes, settings.encoder.threads
    if settings.encoder.provider == "cuda" or (settings.encoder.provider == "auto" and gpus > 0):
        if not gpus:
            raise UsageError(
                "encoder.provider is cuda and this Ray cluster has no GPU",
                "One GPU per lane",
                "Add GPU nodes, or set encoder.provider to auto or cpu",
            )
        lanes = lanes or gpus
        on_one = math.ceil(lanes / gpus)
        part = min(node.cpus / (node.gpus * on_one) for node in nodes if node.gpus >= 1)
        return LaneShare(lanes, min(1.0, part), 1 / on_one, threads or max(1, int(part)))
    cpus = [node.cpus for node in nodes if node.cpus] or [1.0]
    if not lanes:
        threads = threads or max(1, int(min(cpus)))
        lanes = max(1, sum(int(has // threads) for has in cpus))
    part = _largest_part(cpus, lanes)
    threads = threads or max(1, int(part))
    return LaneShare(lanes, cpus=min(float(threads), part), gpus=0, threads=threads)


def _largest_part(amounts: Sequence[float], parts: int) -> float:
    """The largest part of which these amounts hold so many, each part from one amount; 0 of nothing."""
    sizes = sorted({amount / n for amount in amounts if amount for n in range(1, parts + 1)}, reverse=True)
    fits = (size for size in sizes if sum(int(amount / size + 1e-9) for amount in amounts) >= parts)
    return next(fits, 0.0)


def with_threads(settings: Settings, threads: int) -> Settings:
    """The same settings for a lane that has this many threads; Ray's own limit does not reach onnxruntime."""
    encoder = settings.encoder.model_copy(update={"threads": threads})
    return settings.model_copy(update={"encoder": encoder})
