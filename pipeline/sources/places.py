"""Where files lie: local paths and URIs become a filesystem and a path on it.

pyarrow's own filesystems (s3, gs, abfs, hdfs, file) come first, whatever fsspec knows comes second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import SourceError, UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SPOOLED = re.compile(r"stdin-[0-9a-f]{32}")  # named by its content: the name is all there is to know of it


def is_remote(uri: str) -> bool:
    """True for `scheme://…`, except `file://`."""
    return bool(_SCHEME.match(uri)) and not uri.lower().startswith("file://")


def normal(uri: str) -> str:
    """The one spelling of a place: an absolute local path, or a URI with its path percent-encoded.

    Raises UsageError for a URI that carries credentials: it would be written to ledgers and dead letters.
    """
    if not _SCHEME.match(uri):
        return os.path.abspath(os.path.expanduser(uri))
    parts = urlsplit(uri)
    if not is_remote(uri):
        return os.path.abspath(unquote(parts.path))
    if ":" in parts.netloc.rpartition("@")[0]:
        raise UsageError(
            f"the {parts.scheme}:// source carries a password",
            "A URI without secrets",
            "Give them by the environment, for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    path = quote(parts.path, safe="/%=:@+,;~!$&'()*[]")
    return f"{parts.scheme}://{parts.netloc}{path}{'?' + parts.query if parts.query else ''}"


def below(root: str, relative: str) -> str:
    """The place `relative` (a plain path) has under the normal place `root`."""
    if not is_remote(root):
        return os.path.join(root, relative)
    head, mark, query = root.partition("?")
    return f"{head.rstrip('/')}/{quote(relative, safe='/=:@+,;~')}{mark}{query}"


def locate(place: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a normal place, and the path on it. Raises UsageError for a scheme nobody knows."""
    if not is_remote(place):
        return fs.LocalFileSystem(), place
    try:
        return fs.FileSystem.from_uri(place)
    except pa.ArrowInvalid as error:
        try:
            filesystem, path = fs.FileSystem.from_uri(f"fsspec+{place}")
            return filesystem, unquote(path)  # pyarrow's own have decoded it already
        except (pa.ArrowException, ImportError, ValueError):
            raise UsageError(
                f"source {place} cannot be understood: {error}",
                "A path, file://, s3://, gs://, abfs:// or a scheme of an installed fsspec package",
                "Check the spelling, or install the package for that scheme",
            ) from None


def fingerprint(place: str, info: fs.FileInfo) -> str:
    """What changes when a file does: its size and time of change; for spooled input its content's hash."""
    name = Path(place).name
    if _SPOOLED.fullmatch(name):
        return name
    return f"{info.size}-{info.mtime_ns or 0}"


def current_fingerprint(place: str) -> str:
    """The fingerprint of a file as it lies there now; "" when it is gone."""
    filesystem, path = locate(place)
    info = filesystem.get_file_info(path)
    return fingerprint(place, info) if info.type == fs.FileType.File else ""


def spooled_name(digest: str) -> str:
    """The file name for spooled input with this content hash of 32 hexadecimal digits."""
    return f"stdin-{digest}"


def shown(place: str) -> str:
    """How a place is shown to people: spooled input as `-`."""
    return "-" if _SPOOLED.fullmatch(Path(place).name) else place


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the errors of reading `what` into SourceError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: names of files
        reason = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{what} cannot be read: {reason}",
            "A complete, readable file",
            "Write it again, or leave it out",
        ) from error
