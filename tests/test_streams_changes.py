"""When a source without an end is looked at again."""

import threading

from pipeline.errors import SourceError
from pipeline.streams import changes


def test_after_failures_it_waits_ever_longer_but_never_for_long(monkeypatch):
    waits = []
    monkeypatch.setattr(changes, "pause", lambda seconds, _: waits.append(seconds))
    backoff = changes.Backoff(threading.Event())
    for _ in range(2000):  # more than a night of them
        backoff.failed(SourceError("it is away"))
    backoff.over()
    backoff.failed(SourceError("it is away again"))
    assert waits[:6] == [2, 4, 8, 16, 30, 30]
    assert waits[-2:] == [30, 2]
