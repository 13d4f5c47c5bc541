"""Folders that appear whole: built beside their place, then renamed."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.encoders.exported import MANIFEST
from pipeline.encoders.hashes import write_whole

_BUILDING = ".building."
_MOMENT_S = 1


@contextmanager
def building_beside(entry: Path) -> Iterator[Path]:
    """A folder in which what is to be `entry` is built; it is gone afterwards, unless it was put in place.

    A builder that is killed leaves its folder to the next one of the same entry, which removes it.
    """
    for left in entry.parent.glob(f"{_BUILDING}{glob.escape(entry.name)}.*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f"{_BUILDING}{entry.name}."))
    descriptor = os.open(building, os.O_RDONLY)
    try:
        with suppress(OSError):  # where the file system has no locks, nothing is taken for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
        os.close(descriptor)


def _is_abandoned(left: Path) -> bool:
    """Whether no process holds a builder's folder any more; one made a moment ago is about to be held."""
    try:
        if time.time() - left.stat().st_mtime < _MOMENT_S:
            return False
        descriptor = os.open(left, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def put_in_place(building: Path, manifest: dict[str, Any], entry: Path) -> None:
    """Write the manifest, with the sizes of all files, into a folder that is built, and let it appear as `entry`.

    A crash leaves no entry, or the whole of it. Raises OSError where something else is there already.
    """
    sizes = {file.name: file.stat().st_size for file in building.iterdir()}
    write_whole(building / MANIFEST, [json.dumps({**manifest, "files": sizes}, indent=2).encode("utf-8")])
    os.chmod(building, 0o755)  # a cache may be shared; temporary folders are not
    os.rename(building, entry)


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold a file's lock; the system frees it when the process dies."""
    from filelock import FileLock

    with FileLock(file):
        yield
