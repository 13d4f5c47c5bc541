"""What a run did, as a person, a scheduler and the next run are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.schemas import Counts, Unreadable


@dataclass(frozen=True)
class Summary:
    """What a run did, with everything that earlier attempts of the same run had committed (`earlier`).

    `seconds` is the wall time of this attempt; `resumed_splits` were committed by earlier ones. `refused` says why
    documents that a snapshot lacks were not removed. `finished_at` is set where the run had been finished before, and
    this attempt had nothing to do.
    """

    counts: Counts
    earlier: Counts
    seconds: float
    run: str
    collection: str
    encoder_version: str
    resumed_splits: int
    failed: tuple[Unreadable, ...]
    interrupted: bool
    dead_letter: Path | None
    refused: str = ""
    finished_at: str = ""

    @property
    def exit_code(self) -> int:
        """0 all indexed, 1 failed in part or a removal refused, 3 done with rejected documents, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.refused else 3 if self.counts.rejected else 0

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values; the counts at the top level."""
        return {
            **self.counts.as_dict(),
            "earlier": self.earlier.as_dict(),
            "seconds": round(self.seconds, 3),
            "run": self.run,
            "collection": self.collection,
            "encoder_version": self.encoder_version,
            "resumed_splits": self.resumed_splits,
            "failed": [vars(failed) for failed in self.failed],
            "interrupted": self.interrupted,
            "dead_letter": str(self.dead_letter) if self.dead_letter else None,
            "refused": self.refused,
            "finished_at": self.finished_at,
            "exit_code": self.exit_code,
        }

    @classmethod
    def of_finished(cls, values: Mapping[str, Any], at: str) -> Self:
        """The summary of a run that was finished before, from what `as_dict` gave then."""
        counts = Counts(**{name: values.get(name, 0) for name in Counts().as_dict()})
        return cls(
            counts=counts,
            earlier=counts,
            seconds=values["seconds"],
            run=values["run"],
            collection=values["collection"],
            encoder_version=values["encoder_version"],
            resumed_splits=values["resumed_splits"],
            failed=(),
            interrupted=False,
            dead_letter=Path(values["dead_letter"]) if values["dead_letter"] else None,
            finished_at=at,
        )
