"""Arrow Flight's messages: what a put carries, read as the Arrow stream that it is.

Flight is gRPC, and a put a stream of `FlightData`: descriptor = 1, data_header = 2, app_metadata = 3, data_body = 1000,
of which header and body are one message of Arrow's IPC format. pyarrow's own server takes messages of any size and can
end no put that is silent; so gRPC is spoken here without it. Its clients tell no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import RawIOBase

SERVICE = "arrow.flight.protocol.FlightService"

_DESCRIPTOR, _HEADER, _BODY = 1, 2, 1000
_PATH = 3  # of a descriptor
_CONTINUATION = b"\xff\xff\xff\xff"
_ALIGNMENT = 8


def fields(message: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """The number and bytes of each field of a protobuf message that holds bytes; ValueError where it is none."""
    view, at = memoryview(message), 0
    while at < len(view):
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, at = _varint(view, at)
            continue
        length, at = _varint(view, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, len(view) + 1), at)
        if at + length > len(view):
            raise ValueError(f"field {number} is longer than its message")
        if kind == 2:
            yield number, view[at : at + length]
        at += length


def put_result(said: bytes) -> bytes:
    """A `PutResult` (app_metadata = 1): what a client's metadata reader gets."""
    size, length = bytearray(), len(said)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([1 << 3 | 2, *size, length]) + said


class Frames(RawIOBase):
    """A put's messages as a file that pyarrow reads an Arrow stream from, one message ahead at most.

    `path` is that of the put's descriptor, known once the schema has been read.
    """

    def __init__(self, messages: Iterator[bytes]) -> None:
        super().__init__()
        self.path: tuple[str, ...] = ()
        self._messages = messages
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It can be read, and nothing else."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes of one message, or b"" behind the last: one that says it is longer than it is ends here.

        So nothing is gathered that a client did not send in a message of bounded size.
        """
        if size <= 0 or not (self._left or self._next()):
            return b""
        part, self._left = self._left[:size], self._left[size:]
        return bytes(part)

    def _next(self) -> bool:
        """Take the next message that holds data; False at the end."""
        for message in self._messages:
            found = dict(fields(message))
            if descriptor := found.get(_DESCRIPTOR):
                names = [bytes(value) for number, value in fields(descriptor) if number == _PATH]
                self.path = tuple(name.decode("utf-8", "replace") for name in names)
            if header := found.get(_HEADER):
                self._left = _frame(header, found.get(_BODY, memoryview(b"")))
                return True
        return False


def _frame(header: memoryview, body: memoryview) -> memoryview:
    """A message as it stands in an IPC stream: marker, padded length, header, body."""
    length = -(-len(header) // _ALIGNMENT) * _ALIGNMENT
    padding = bytes(length - len(header))
    return memoryview(b"".join((_CONTINUATION, length.to_bytes(4, "little"), header, padding, body)))


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(view) and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number that does not end")
