"""`headwater` whose own Ray actors can be killed from outside: `python ray_kill.py FOLDER ARGUMENT …`.

When a file `lane` or `sink` appears in FOLDER, this driver calls `ray.kill(…, no_restart=True)` on that actor, which
only the one who made it can do.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray

import workers.executor
from pipeline.cli import main


class Kept(workers.executor.RayExecutor):
    """The executor of this run, kept to be found."""

    last: Kept

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        Kept.last = self


def actor(victim: str):
    """The actor that is to die."""
    if victim == "sink":
        return Kept.last._store._actor
    return next(lane.actor for lane in Kept.last._pool._lanes if lane.running)


def kill_when_asked(folder: Path) -> None:
    """Wait for the file, kill, say so by another file."""
    while not (asked := [name for name in ("lane", "sink") if (folder / name).exists()]):
        time.sleep(0.005)
    ray.kill(actor(asked[0]), no_restart=True)
    (folder / "killed").touch()


if __name__ == "__main__":
    workers.executor.RayExecutor = Kept
    threading.Thread(target=kill_when_asked, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.argv = ["headwater", *sys.argv[2:]]
    main()
