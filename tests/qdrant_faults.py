"""What a test server of Qdrant's protocol does with a call, whichever way it came, and the faults planted for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
from qdrant_client import models

from pipeline.errors import HeadwaterError
from pipeline.stores.edge import EdgeStore
from pipeline.stores.points import Points


@dataclass
class Fault:
    """What happens to the next `times` calls of the kind `on` instead of an answer."""

    kind: str  # "status", "hang", "drop", "garbage"; see below for those that carry the call out
    times: int = 1
    on: str = ""  # "": every call
    status: int = 503
    message: str = "planted"
    retry_after: str | None = None
    seconds: float = 0.0
    answer: str = "acknowledged"
    above_points: int = -1  # only upserts of more points than this

    @property
    def after(self) -> bool:
        """Whether the call is carried out: "answer" then says `answer`, "late" says so after `seconds`, "lost" ends the
        connection instead of an answer, and "partial" has done it for the first half of an upsert's points when it
        answers with `status`."""
        return self.kind in ("answer", "late", "lost", "partial")


@dataclass
class Qdrant:
    """The calls, in qdrant-client's own models, whichever protocol they came by."""

    store: EdgeStore
    api_key: str = ""
    faults: list[Fault] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, call: str, points: int = 0) -> Fault | None:
        """Note the call; the fault that hits it, if one is planted."""
        with self.lock:
            self.calls.append(call if call != "upsert" else f"upsert {points}")
            for fault in self.faults:
                if fault.times and fault.on in ("", call) and points > fault.above_points:
                    fault.times -= 1
                    return fault
        return None

    def upsert(self, name: str, found: list[models.PointStruct], where: models.Filter | None = None) -> None:
        by_names: dict[tuple[str, ...], list[tuple[models.PointStruct, dict]]] = {}
        for point in found:
            named = point.vector if isinstance(point.vector, dict) else {"": point.vector}
            by_names.setdefault(tuple(sorted(named)), []).append((point, named))
        for names, some in by_names.items():
            rows = {name: [named[name] for _, named in some] for name in names}
            if any(len({len(row) for row in column}) > 1 for column in rows.values()):
                raise ValueError("vectors of several sizes")
            vectors = {name: np.array(column, dtype=np.float32) for name, column in rows.items()}
            ids, payloads = [str(one.id) for one, _ in some], [one.payload or {} for one, _ in some]
            self.store.upsert(name, Points(ids, vectors, payloads), where)

    def set_payload(self, name: str, change: models.SetPayload) -> None:
        self.store.set_payload(name, change.payload, [str(id) for id in change.points], change.key)

    def update(self, name: str, operations: list[models.UpdateOperation]) -> None:
        for operation in operations:
            change = operation.overwrite_payload
            self.store.overwrite_payloads(
                name, [str(id) for id in change.points], [change.payload] * len(change.points)
            )

    def delete(self, name: str, selector: models.PointsSelector) -> None:
        what = (
            selector.filter
            if isinstance(selector, models.FilterSelector)
            else [str(id) for id in selector.points]
        )
        self.store.delete(name, what)


def linger(fault: Fault | None) -> None:
    """Let an answer be late, if it is planted."""
    if fault and fault.kind == "late":
        time.sleep(fault.seconds)


def status_of(error: Exception) -> int:
    """The status a Qdrant gives for an error of the store."""
    return 404 if isinstance(error, HeadwaterError) and error.got.startswith("no collection") else 400
