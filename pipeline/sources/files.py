"""What a source consists of: files found by path, glob, directory or on standard input, in one fixed order.

Nothing of a file is read here but, for a name that tells nothing, its first bytes.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from pyarrow import fs

from pipeline.errors import SourceError, UsageError
from pipeline.sources.formats import KNOWN_EXTENSIONS, sniff
from pipeline.sources.places import (
    below,
    fingerprint,
    is_remote,
    locate,
    normal,
    reading,
    spooled_name,
)

Partition = tuple[str, int | str | None]

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WILD = re.compile(r"[*?\[]")
_SPOOL_BYTES = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a source: its normal place, what changes when it changes, and its columns from the path."""

    uri: str
    fingerprint: str
    partitions: tuple[Partition, ...] = ()


def find(uri: str, wanted: str, scratch: Path) -> list[File]:
    """The files of a source, sorted by path.

    `-` is standard input, copied to a file in `scratch` first: finding duplicates reads the ids before the
    texts, and a split may be read again. In a directory files named `.…` or `_…` are left out, and so are,
    while the format is `auto`, files that are not Parquet or Arrow by extension (without an extension: by
    their first bytes). Directories named `key=value` below the given path become columns.

    Raises UsageError when nothing is there.
    """
    if uri == "-":
        if sys.stdin is None:
            raise UsageError(
                "standard input is closed", "An Arrow stream", "headwater ingest - < docs.arrows"
            )
        return [_spool(sys.stdin.buffer, scratch)]
    place = normal(uri)
    with reading(f"source {place}"):
        if not _is_glob(place):
            return _from_path(place, wanted)
        return _from_glob(place)


def _is_glob(place: str) -> bool:
    if is_remote(place):
        place = place.partition("?")[0]  # there it begins the options
    return bool(_WILD.search(place)) and (is_remote(place) or not Path(place).exists())


def _from_path(place: str, wanted: str) -> list[File]:
    filesystem, path = locate(place)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return [File(place, fingerprint(place, info))]
    if info.type != fs.FileType.Directory:
        raise UsageError(
            f"source {place} does not exist",
            "A file, directory, glob or - for standard input",
            "Check the path",
        )
    found = _list(place, recursive=True)
    if any(name.startswith("_delta_log/") for name, _ in found):
        raise UsageError(
            f"{place} is a Delta Lake table: its files are of all its versions, removed rows included",
            "A source whose files hold what is to be indexed",
            f"Follow the table: headwater watch {place} …",
        )
    taken = [(name, file) for name, file in found if _taken(name, file, wanted)]
    if not taken:
        others = f" (there are {len(found)} other files, such as {found[0][0]})" if found else ""
        raise UsageError(
            f"directory {place} holds no Parquet or Arrow file{others}",
            f"Files named {', '.join(sorted(KNOWN_EXTENSIONS))}",
            "Check the path; files with other names are read with --set source.format=FORMAT",
        )
    return _with_partitions(taken)


def _taken(name: str, file: File, wanted: str) -> bool:
    if any(part.startswith((".", "_")) for part in name.split("/")):
        return False
    suffix = Path(name).suffix.lower()
    if wanted != "auto" or suffix in KNOWN_EXTENSIONS:
        return True
    try:
        return not suffix and sniff(file.uri) is not None
    except SourceError:  # opening it tells the same, and then it is one unreadable file among others
        return True


def _from_glob(place: str) -> list[File]:
    head, mark, query = place.partition("?") if is_remote(place) else (place, "", "")
    segments = head.split("/")
    first = next(i for i, segment in enumerate(segments) if _WILD.search(segment))
    root = "/".join(segments[:first]) + mark + query
    match = _pattern("/".join(segments[first:]))
    found = _list(root or "/", recursive=len(segments) - first > 1 or "**" in segments[first])
    taken = [(name, file) for name, file in found if match.fullmatch(name)]
    if not taken:
        raise UsageError(
            f"no file matches {place}", "At least one file", "Check the pattern, and quote it in a shell"
        )
    return _with_partitions(taken)


def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression: `*`, `?`, `[…]` within a path segment, `**/` across segments."""
    out = []
    for token in re.findall(r"\*\*/|\*+|\?|\[!?\]?[^\]]*\]|.", glob, flags=re.DOTALL):
        if token == "**/":
            out.append("(?:.*/)?")
        elif token.startswith("*"):
            out.append("[^/]*" if token == "*" else ".*")
        elif token == "?":
            out.append("[^/]")
        elif len(token) > 1:
            inside = token[1:-1].replace("\\", "\\\\")
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        else:
            out.append(re.escape(token))
    return re.compile("".join(out), flags=re.DOTALL)


def _list(root: str, *, recursive: bool) -> list[tuple[str, File]]:
    """The files under a directory and their paths relative to it, sorted by path; none if it is not there."""
    filesystem, base = locate(root)
    infos = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=recursive))
    found = []
    for info in infos:
        if info.type == fs.FileType.File:
            name = info.path[len(base.rstrip("/")) :].lstrip("/")
            place = below(root, name)
            found.append((name, File(place, fingerprint(place, info))))
    return sorted(found)


def _with_partitions(files: list[tuple[str, File]]) -> list[File]:
    """Give each file the columns its directories name; of integers if all values of a column are."""
    keys = [dict(_hive(name)) for name, _ in files]
    integer = {key for found in keys for key in found if all(_is_integer(other.get(key)) for other in keys)}
    return [
        replace(
            file,
            partitions=tuple(
                (key, int(value) if value is not None and key in integer else value)
                for key, value in found.items()
            ),
        )
        for (_, file), found in zip(files, keys, strict=True)
    ]


def _hive(name: str) -> list[tuple[str, str | None]]:
    pairs = [segment.split("=", 1) for segment in name.split("/")[:-1] if "=" in segment]
    return [(unquote(key), None if value == _HIVE_NULL else unquote(value)) for key, value in pairs if key]


def _is_integer(value: str | None) -> bool:
    return value is None or (re.fullmatch(r"-?\d{1,18}", value) is not None and value.isascii())


def _spool(stdin: BinaryIO, scratch: Path) -> File:
    """Copy standard input to a file named by its content: the same bytes are the same source again."""
    if stdin.isatty():
        raise UsageError(
            "source - with a terminal on standard input",
            "An Arrow stream",
            "headwater ingest - < docs.arrows",
        )
    digest = hashlib.blake2b(digest_size=16)
    part = scratch / "stdin.part"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            while block := stdin.read(_SPOOL_BYTES):
                digest.update(block)
                out.write(block)
            size = out.tell()
        place = part.rename(scratch / spooled_name(digest.hexdigest())).absolute()
    except OSError as error:
        raise SourceError(
            f"standard input cannot be copied to {scratch}: {error}",
            "Room for all of it",
            "Point TMPDIR to a larger disk, or give a file",
        ) from error
    if not size:
        raise UsageError("standard input is empty", "An Arrow stream", "headwater ingest - < docs.arrows")
    return File(str(place), place.name)
