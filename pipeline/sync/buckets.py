"""Two sides of any size, compared in bounded memory.

Each side's records are dealt out to files by the first byte of their key, which is a hash; then the files are compared
in pairs. Memory holds one pair: about a 256th of both sides.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = np.dtype("S16")
"""A UUID's 16 bytes. Numpy compares all of them; only a value taken out of an array loses zeros at its end."""

KEYS = np.dtype([("key", KEY)])
"""Records that are nothing but a key."""

COUNT = 256
_WAITING = 1 << 17  # records in memory before they are dealt out


class Buckets:
    """Records of a type with a field `key`, in COUNT files of a folder of its own; repeated ones are kept."""

    def __init__(self, folder: Path, kind: np.dtype[Any]) -> None:
        self._folder = folder
        self._kind = kind
        self._waiting: list[NDArray[Any]] = []
        self._many = 0
        self._added = 0
        folder.mkdir(parents=True)

    def __len__(self) -> int:
        return self._added

    def add(self, records: NDArray[Any]) -> None:
        """Add records, of this type."""
        self._waiting.append(records)
        self._many += len(records)
        self._added += len(records)
        if self._many >= _WAITING:
            self._deal()

    def read(self, number: int) -> NDArray[Any]:
        """The records whose keys begin with the byte `number`, in no order."""
        self._deal()
        file = self._file(number)
        return np.fromfile(file, self._kind) if file.exists() else np.empty(0, self._kind)

    def _deal(self) -> None:
        if not self._many:
            return
        records = np.concatenate(self._waiting)
        self._waiting, self._many = [], 0
        first = np.ascontiguousarray(records["key"]).view(np.uint8)[:: KEY.itemsize]
        order = np.argsort(first, kind="stable")
        numbers, starts = np.unique(first[order], return_index=True)
        for number, group in zip(numbers.tolist(), np.split(records[order], starts[1:]), strict=True):
            with self._file(number).open("ab") as out:
                group.tofile(out)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:02x}"


def absent(left: Buckets, right: Buckets) -> Iterator[NDArray[np.bytes_]]:
    """The keys (KEY[n]) of `left` that `right` does not have, bucket by bucket; safe to repeat."""
    for number in range(COUNT):
        keys = left.read(number)["key"]
        yield keys[~np.isin(keys, right.read(number)["key"])]


def keys_of(ids: Iterable[str]) -> NDArray[Any]:
    """KEYS[n] of UUIDs."""
    return np.frombuffer(b"".join(map(key_of, ids)), KEYS)


def key_of(id: str) -> bytes:
    """The 16 bytes of a UUID."""
    return bytes.fromhex(id.replace("-", ""))


def ids_of(keys: NDArray[np.bytes_]) -> list[str]:
    """The UUIDs of KEY[n]."""
    data = np.ascontiguousarray(keys).tobytes()
    size = KEY.itemsize
    return [str(uuid.UUID(bytes=data[at : at + size])) for at in range(0, len(data), size)]
