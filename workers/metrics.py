"""What a run counts, sent to Ray: it is then on the metrics endpoint of each machine, as `ray_headwater_…`.

Each process of a run (the driver, every lane) sends its own numbers, and Ray's labels keep them apart. Ray passes
them on every ten seconds and when a process ends, also when a lane is ended by `ray.kill`; the last ten seconds of a
process that is killed from outside are lost.
"""

from __future__ import annotations

from ray.util import metrics as ray_metrics

from pipeline.metrics import ALL, BUCKETS, Metric

RayMetric = ray_metrics.Counter | ray_metrics.Gauge | ray_metrics.Histogram


class RaySink:
    """Sends numbers to the Ray that this process is part of; see `pipeline.metrics.Sink`."""

    def __init__(self, collection: str) -> None:
        self._collection = collection
        self._made = {metric: _make(metric) for metric in ALL}

    def record(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None:
        """See `Sink`."""
        made = self._made[metric]
        tags = {"collection": self._collection, **dict(zip(metric.labels, labels, strict=True))}
        match made:
            case ray_metrics.Counter():
                if value:  # Ray refuses to add nothing
                    made.inc(value, tags)
            case ray_metrics.Gauge():
                made.set(value, tags)
            case ray_metrics.Histogram():
                made.observe(value, tags)


def _make(metric: Metric) -> RayMetric:
    labels = ("collection", *metric.labels)
    match metric.kind:
        case "counter":
            return ray_metrics.Counter(metric.name, metric.help, labels)
        case "gauge":
            return ray_metrics.Gauge(metric.name, metric.help, labels)
        case "histogram":
            return ray_metrics.Histogram(metric.name, metric.help, list(BUCKETS), labels)
