"""The counts of a running split, taken at both of its ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pipeline.errors import BrokenInvariant
from pipeline.schemas import Counts, Rejected, Split


@dataclass
class Tally:
    """What a split has done so far, counted at both ends: the trailer compares them.

    `rows` and `made` (chunks) are counted where they are read; `arrived` (chunks) and `counts` where they are
    written. A window lost, cut short or doubled in between makes them differ. `cut` says that the split was stopped
    before its end.
    """

    rows: int = 0
    made: int = 0
    arrived: int = 0
    counts: Counts = field(default_factory=Counts)
    rejected: list[Rejected] = field(default_factory=list)
    cut: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, stage: str, since: float) -> None:
        """Add the time since `since` to a stage's busy seconds."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - since

    def check_trailer(self, split: Split) -> None:
        """Raise BrokenInvariant unless what was read is what was written."""
        if (self.rows, self.made) != (self.counts.read, self.arrived):
            raise BrokenInvariant(
                f"split {split.id} of {split.uri}: {self.rows} rows and {self.made} chunks were read, "
                f"{self.counts.read} and {self.arrived} were written or rejected",
                "Both must be equal before a split is committed",
                "Run again; if it stays, report it as a bug with this message",
            )
