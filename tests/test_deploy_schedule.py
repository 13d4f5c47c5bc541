"""Cron and systemd: when runs start, and what their ends are taken for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cronsim import CronSim
from deployed import DEPLOY, objects, read, run, variables

UNITS = ("headwater.service", "headwater.timer")


def unit(name: str) -> dict[str, list[str]]:
    """A unit's settings; a key may come more than once."""
    found: dict[str, list[str]] = {}
    for line in read(f"schedule/{name}").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def cron_line() -> tuple[str, str, str]:
    """When, as whom and what."""
    (line,) = (line for line in read("schedule/crontab").splitlines() if re.match(r"[\d*]", line))
    *when, user, command = line.split(maxsplit=6)
    return " ".join(when), user, command


@pytest.mark.parametrize("schedule", ["crontab", "CronJob"])
def test_cron_starts_every_night_at_half_past_two(schedule):
    expression = cron_line()[0] if schedule == "crontab" else objects()["CronJob"]["spec"]["schedule"]
    starts = CronSim(expression, datetime(2026, 12, 30, tzinfo=UTC))
    assert [next(starts).isoformat() for _ in range(3)] == [
        "2026-12-30T02:30:00+00:00",
        "2026-12-31T02:30:00+00:00",
        "2027-01-01T02:30:00+00:00",
    ]


def test_the_crontab_names_a_user_and_holds_no_percent_sign():
    _, user, command = cron_line()
    assert user == "headwater"
    assert "%" not in command  # cron takes it for the end of a line


def test_a_missed_run_is_made_up_for_and_rejected_documents_are_no_failure():
    assert unit("headwater.timer")["Persistent"] == ["yes"] or unit("headwater.timer")["Persistent"] == [
        "true"
    ]
    service = unit("headwater.service")
    assert service["Type"] == ["oneshot"]
    assert "3" in service["SuccessExitStatus"][0].split()
    assert service["RestartPreventExitStatus"] == ["2"]
    (file,) = service["EnvironmentFile"]
    assert (DEPLOY / "schedule" / Path(file).name).is_file()
    used = re.findall(r"\$\{(\w+)\}", service["ExecStart"][0])
    assert set(used) <= set(variables(read("schedule/headwater.env")))


def test_the_service_can_see_whether_another_run_is_alive():
    assert "ProtectProc" not in unit("headwater.service")


def verify(folder: Path, change: Callable[[str], str] = str) -> str:
    """What systemd says of the units with a program that is here; nothing if it has no complaint."""
    for name in UNITS:
        text = read(f"schedule/{name}").replace("/opt/headwater/bin/headwater", "/bin/true")
        (folder / name).write_text(change(text))
    said = run("systemd-analyze", "verify", *(folder / name for name in UNITS))
    return said.stdout + said.stderr


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
def test_systemd_takes_the_units(tmp_path):
    assert verify(tmp_path) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Persistent=", "Persistant="),
        ("02:30:00", "26:30:00"),
        ("TimeoutStopSec=2min", "TimeoutStopSec=soon"),
    ],
)
def test_systemd_refuses_wrong_units(right, wrong, tmp_path):
    assert verify(tmp_path, lambda text: text.replace(right, wrong)) != ""
