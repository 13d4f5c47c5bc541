"""Pass, hold or fail: decided from numbers alone. What is not certain is never a pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.evaluation.bootstrap import Paired

Outcome = Literal["pass", "hold", "fail"]

HELD, FAILED = 5, 6
"""The exit codes of a gate that does not open."""

_EXIT_CODES: dict[Outcome, int] = {"pass": 0, "hold": HELD, "fail": FAILED}


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what was found, what would have passed, and what that means in a sentence."""

    name: str
    outcome: Outcome
    number: float | None
    bar: str
    sentence: str


def outcome_of(checks: Sequence[Check]) -> Outcome:
    """Fail where one failed, hold where one holds or there are none, else pass."""
    found = {check.outcome for check in checks}
    return "fail" if "fail" in found else "hold" if "hold" in found or not found else "pass"


def exit_code_of(outcome: Outcome) -> int:
    """0 pass, 5 hold, 6 fail."""
    return _EXIT_CODES[outcome]


def judge_difference(found: Paired, tolerance: float, least: int, lost: float = 0.0) -> tuple[Outcome, str]:
    """Whether new is not worse than old by more than `tolerance`, and why; nothing is decided by fewer than `least`.

    Worse by more than `lost` with 95 % certainty fails; not worse by more than the tolerance with the same certainty
    passes; all else holds, with an estimate of how many queries would decide it.
    """
    if found.queries < least:
        return "hold", f"{found.queries} queries decide nothing: at least {least} are needed"
    if found.high < -lost:
        return "fail", f"certainly worse: {found}"
    if found.high < 0:
        return "hold", f"worse, but by too little to refuse it for: {found}"
    if found.low >= -tolerance:
        return "pass", f"not worse by more than {tolerance:g}: {found}"
    return "hold", f"undecided: {found}; {_needed(found, tolerance)}"


def judge_share(found: Paired, bar: float, least: int) -> tuple[Outcome, str]:
    """Whether the mean of shares is at least `bar` with 95 % certainty."""
    if found.queries < least:
        return "hold", f"{found.queries} queries decide nothing: at least {least} are needed"
    said = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
    if found.high < bar:
        return "fail", f"below {bar:g}: {said}"
    if found.low >= bar:
        return "pass", f"at least {bar:g}: {said}"
    return "hold", f"undecided: {said}; more queries decide it"


def _needed(found: Paired, tolerance: float) -> str:
    """How many queries would decide, if the mean stayed as it is: an interval shrinks with their square root."""
    room = found.mean + tolerance if found.mean > -tolerance else -found.mean
    reach = found.mean - found.low if found.mean > -tolerance else found.high - found.mean
    if room <= 0 or reach <= 0:
        return "more queries decide it"
    return f"about {math.ceil(found.queries * (reach / room) ** 2):,} queries would decide it, if that is the mean"


def as_dict(check: Check) -> dict[str, Any]:
    """A check as JSON values."""
    said = vars(check) | {"verdict": check.outcome}
    return {name: said[name] for name in ("name", "verdict", "number", "bar", "sentence")}
