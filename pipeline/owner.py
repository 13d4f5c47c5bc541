"""Which process holds something, and whether that process is certainly gone."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

_DEATH_S = 10.0
_SAME_START_S = 5.0  # boot time is known to the second; a number is not given out again that fast


@dataclass(frozen=True)
class Owner:
    """A process, recognisable after its number was given to another one.

    `machine` is a boot of a machine and the namespace of its process numbers, so that two containers on one host
    are two machines; `started` is seconds since that boot, which no setting of the clock changes.
    """

    host: str
    machine: str
    pid: int
    started: float

    @classmethod
    def here(cls) -> Self:
        """The process that asks."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(psutil.Process()))

    @classmethod
    def read(cls, values: Any) -> Self | None:  # noqa: ANN401 - whatever a file or a store held
        """The owner that `as_dict` wrote; None for anything else."""
        try:
            return cls(
                str(values["host"]), str(values["machine"]), int(values["pid"]), float(values["started"])
            )
        except (TypeError, KeyError, ValueError):
            return None

    def as_dict(self) -> Mapping[str, Any]:
        """The owner as JSON values."""
        return asdict(self)

    @property
    def near(self) -> bool:
        """Whether it is a process of this machine, so that `gone` can tell."""
        return self.machine == _machine()

    def gone(self) -> bool:
        """True only where the process certainly has ended; False for one of another machine."""
        if not self.near:
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < _SAME_START_S
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return not _signalled(self.pid)  # /proc may hide the processes of others
        except psutil.AccessDenied:
            return False

    def kill(self) -> bool:
        """End the process with SIGKILL, also a stopped one, if it is one of this machine; whether it is gone then.

        A process that got its number later is left alone.
        """
        if self.near and not self.gone():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
        until = time.monotonic() + _DEATH_S
        while self.near and not self.gone() and time.monotonic() < until:
            time.sleep(0.02)
        return self.gone()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _started(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def _signalled(pid: int) -> bool:
    """Whether there is a process of this number, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"
