"""Hashes that versions are made of, and files that appear whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def hash_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """SHA-256 of a value's canonical JSON, 64 hex digits."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def hash_file(file: Path, remembered: Path) -> str:
    """SHA-256 of a file's content, remembered by path, size and time of change: a search starts without reading it."""
    stat = file.stat()
    note = remembered / hash_json([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    with suppress(OSError):
        known = note.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with suppress(OSError):  # a read-only cache costs the hash each time, nothing else
        write_whole(note, [digest.encode("ascii")])
    return digest


def write_whole(file: Path, parts: Iterable[bytes]) -> None:
    """Write a file beside its place and rename it: a reader sees all of it or none, whenever we die."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:16]}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.writelines(parts)
        os.chmod(name, 0o644)  # a cache may be shared, and an encoder carried; temporary files are not
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
