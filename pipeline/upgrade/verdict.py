"""What a gate says: its checks, the rankings compared, and the verdict, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.bootstrap import Paired, paired
from pipeline.upgrade.asking import scores, worst
from pipeline.upgrade.completeness import Complete
from pipeline.upgrade.decision import Check, Outcome, as_dict, exit_code_of, outcome_of
from pipeline.upgrade.questions import Questions

Ranked = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False)
class Compared:
    """Two versions on the same questions: means by measure, and `differences` float64[queries] of the first measure.

    `words`: what BM25 finds, where that was asked, and `over_words` float64[queries]: new less that.
    """

    source: str
    judged: bool
    measure: str
    old: dict[str, float]
    new: dict[str, float]
    differences: NDArray[np.float64]
    worst: list[dict[str, Any]]
    words: dict[str, float] | None = None
    over_words: NDArray[np.float64] | None = None

    @property
    def difference(self) -> Paired | None:
        """New less old, with its interval; None where nothing was asked."""
        return paired(self.differences) if len(self.differences) else None

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        found = self.difference
        return {
            "source": self.source,
            "judged": self.judged,
            "queries": len(self.differences),
            "old": self.old,
            "new": self.new,
            "bm25": self.words,
            "measure": self.measure,
            "difference": found and round(found.mean, 5),
            "interval": found and [round(found.low, 5), round(found.high, 5)],
            "worst": self.worst,
        }


def compare_ranked(questions: Questions, old: Ranked, new: Ranked, words: Ranked | None = None) -> Compared:
    """Score rankings of the same questions."""
    if not questions.texts:
        return Compared(questions.source, questions.judged, "", {}, {}, np.empty(0), [])
    before, after = scores(old, questions), scores(new, questions)
    by_words = scores(words, questions) if words is not None else None
    measure = next(iter(before))
    differences = after[measure] - before[measure]
    return Compared(
        questions.source,
        questions.judged,
        measure,
        _means(before),
        _means(after),
        differences,
        worst(questions, old, new, differences),
        _means(by_words) if by_words else None,
        after[measure] - by_words[measure] if by_words else None,
    )


def _means(values: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    return {name: round(float(each.mean()), 5) for name, each in values.items()}


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether readers of one version may be moved to another: pass, hold or fail.

    `old`, `new`: the physical collections. `overlap`: the mean share of the 10 best documents of the old version that
    are among those of the new one, which decides nothing.
    """

    old: str
    new: str
    checks: tuple[Check, ...]
    compared: tuple[Compared, ...]
    documents: Complete
    overlap: float | None

    @property
    def outcome(self) -> Outcome:
        """Fail where a check failed, hold where one holds, else pass."""
        return outcome_of(self.checks)

    @property
    def exit_code(self) -> int:
        """0 pass, 5 hold, 6 fail."""
        return exit_code_of(self.outcome)

    @property
    def why(self) -> str:
        """What speaks against it, in a line; "" where nothing does."""
        return "; ".join(
            f"{one.name}: {one.sentence}" for one in self.checks if one.outcome == self.outcome != "pass"
        )

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "verdict": self.outcome,
            "old": self.old,
            "new": self.new,
            "checks": [as_dict(check) for check in self.checks],
            "compared": [one.as_dict() for one in self.compared],
            "overlap@10": self.overlap,
            "documents": vars(self.documents),
        }
