"""Reading what Prometheus would read."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pipeline.metrics import Metric

OUTCOMES = ("indexed", "unchanged", "patched", "deleted", "stale", "rejected")


class Kept:
    """A sink that adds up, by name and label."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()

    def record(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None:
        assert len(labels) == len(metric.labels)
        self.total["/".join([metric.name, *labels])] += value


def scrape(port: int) -> dict[str, float]:
    """The page of a port, read; see `read`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        return read(page.read().decode())


def read(page: str, prefix: str = "headwater_", collection: str = "docs") -> dict[str, float]:
    """A collection's samples by name without the prefix, and label if it has one of its own, summed over processes.

    `documents_total/indexed`, `chunks_total`, `upsert_seconds_count`; buckets are left out.
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if not sample.name.startswith(prefix) or sample.name.endswith("_bucket"):
                continue
            if sample.labels["collection"] != collection:
                continue
            ours = [
                sample.labels[key] for key in ("outcome", "reason", "kind", "cause") if key in sample.labels
            ]
            key = "/".join([sample.name.removeprefix(prefix), *ours])
            found[key] = found.get(key, 0) + sample.value
    return found


def counted(page: Mapping[str, float]) -> dict[str, int]:
    """What a page says in the words of a run's JSON summary."""
    outcomes = {name: int(page.get(f"documents_total/{name}", 0)) for name in OUTCOMES}
    points = {
        name: int(page.get(f"{metric}_total", 0))
        for name, metric in {
            "removed": "documents_removed", "points_removed": "points_removed", "chunks": "chunks",
            "points": "points", "tokens": "tokens", "truncated": "documents_truncated",
        }.items()
    }  # fmt: skip
    return {"read": sum(outcomes.values()), **outcomes, **points}


def done(summary: Mapping[str, Any]) -> dict[str, int]:
    """What this attempt did, of a run's JSON summary."""
    names = ("read", *OUTCOMES, "removed", "points_removed", "chunks", "points", "tokens", "truncated")
    return {name: summary[name] - summary["earlier"][name] for name in names}


def reasons(page: Mapping[str, float]) -> dict[str, int]:
    """Rejected documents by reason."""
    name = "documents_rejected_total/"
    return {key.removeprefix(name): int(value) for key, value in page.items() if key.startswith(name)}
