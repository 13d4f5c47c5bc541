"""Which Ray a run uses, how many lanes it gets and what each of them is given."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray

from pipeline.config import Settings
from pipeline.errors import UsageError


def connect() -> bool:
    """Connect to the Ray that RAY_ADDRESS names (as inside a submitted job), else start one on this machine.

    Returns whether it was started here. Nothing is printed to stdout, which belongs to the run's JSON.
    """
    if ray.is_initialized():
        return False
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An explicit "local": a plain init would follow a stale address that a crashed cluster left behind.
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


@dataclass(frozen=True)
class LaneShare:
    """How many lanes a run has, and what one of them takes: CPUs, GPUs, threads of its encoder."""

    lanes: int
    cpus: float
    gpus: float
    threads: int


def share(settings: Settings, cpus: int, gpus: int) -> LaneShare:
    """Divide a cluster's CPUs and GPUs among lanes: one lane per GPU, or the CPUs in equal parts.

    A lane on a GPU asks for one CPU only, so that CPUs never decide how many GPUs are used. Raises UsageError where
    GPUs were asked for and the cluster has none.
    """
    wants_gpu = settings.encoder.provider == "cuda" or (settings.encoder.provider == "auto" and gpus > 0)
    if wants_gpu and not gpus:
        raise UsageError(
            "encoder.provider is cuda and this Ray cluster has no GPU",
            "One GPU per lane",
            "Add GPU nodes, or set encoder.provider to auto or cpu",
        )
    lanes = settings.run.lanes or (gpus if wants_gpu else 1)
    if wants_gpu:
        return LaneShare(lanes, cpus=1, gpus=min(1.0, gpus / lanes), threads=settings.encoder.threads)
    threads = settings.encoder.threads or max(1, cpus // lanes)
    return LaneShare(lanes, cpus=min(float(threads), cpus / lanes), gpus=0, threads=threads)


def cluster_size() -> tuple[int, int]:
    """CPUs and GPUs of the whole cluster, as Ray counts them."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 1)), int(resources.get("GPU", 0))


def with_threads(settings: Settings, threads: int) -> Settings:
    """The same settings for a lane that has this many threads; Ray's own limit does not reach onnxruntime."""
    encoder = settings.encoder.model_copy(update={"threads": threads})
    return settings.model_copy(update={"encoder": encoder})
