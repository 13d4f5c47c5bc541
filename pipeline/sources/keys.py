"""Which document a row is, and which version of it: id, namespace, sequence.

Used twice, by the pass that finds duplicates and by reading, so that both reject the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.sources.columns import Columns
from pipeline.sources.findings import Findings
from pipeline.sources.values import Column, byte_lengths, decoded, is_binary, is_string

_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class Keys:
    """The keys of a batch's rows; arrays of strings with "" and zeros in rows that `findings` says are bad.

    `sequences` is int64[n]: integers as they are, times as nanoseconds since 1970, 0 where the source has
    none.
    """

    ids: Column
    namespaces: Column
    sequences: NDArray[np.int64]


def read_keys(batch: pa.RecordBatch, columns: Columns, findings: Findings) -> Keys:
    """The keys of a batch, noting rows without a usable id, namespace or sequence in `findings`."""
    ids = _names(batch, columns.id, "id", findings)
    if columns.namespace_column:
        namespaces = _names(batch, columns.namespace_column, "namespace", findings)
    else:
        namespaces = pa.repeat(pa.scalar(columns.namespace), batch.num_rows)
    if columns.sequence:
        sequences = _sequences(batch.column(columns.sequence), columns.sequence, findings)
    else:
        sequences = np.zeros(batch.num_rows, np.int64)
    return Keys(ids, namespaces, sequences)


def texts(array: Column) -> tuple[Column, NDArray[np.bool_] | None]:
    """A column of strings, bytes or integers as strings, null where it is null or not UTF-8.

    The second is bool[n], True where it is not UTF-8, or None when all is well. Raises SourceError for a
    column whose buffers contradict each other.
    """
    array = decoded(array)
    kind = array.type
    if is_binary(kind):
        array = _as_strings(array)
    elif not is_string(kind):
        return array.cast(pa.string()), None
    elif pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
    if is_utf8(array):
        return array, None
    raw = array.cast(pa.large_binary()).to_pylist()
    values = [_decode(value) for value in raw]
    wrong = [value is None and bytes_ is not None for value, bytes_ in zip(values, raw, strict=True)]
    return pa.array(values, pa.large_string()), np.array(wrong, np.bool_)


def is_utf8(array: Column) -> bool:
    """True if all strings in the column, nested ones too, are UTF-8, which Arrow readers do not check.

    Raises SourceError for a column that is broken in another way: touching it further could end the process.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):  # the only sign by which pyarrow tells bad text from bad buffers
            return False
        raise SourceError(
            f"a column of type {array.type} is corrupt: {error}", "A readable file", "Write it again"
        ) from error
    return True


def is_null(array: Column) -> NDArray[np.bool_]:
    """bool[n]."""
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _as_strings(array: Column) -> Column:
    """Bytes as strings without a look at them."""
    array = array.cast(pa.large_binary())
    return pa.Array.from_buffers(
        pa.large_string(), len(array), array.buffers(), array.null_count, array.offset
    )


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _names(batch: pa.RecordBatch, column: str, role: str, findings: Findings) -> Column:
    values, wrong = texts(batch.column(column))
    if wrong is not None:
        findings.add(
            wrong, "invalid_utf8", f"the {role} in column {column!r} is not UTF-8; write it as UTF-8"
        )
    findings.add(
        byte_lengths(values) == 0,
        f"null_{role}",
        f"column {column!r} is null or empty; give every document its {role}",
    )
    return values.fill_null("").cast(pa.string())


def _sequences(array: Column, column: str, findings: Findings) -> NDArray[np.int64]:
    array = decoded(array)
    kind = array.type
    factor = 1
    if pa.types.is_timestamp(kind):
        factor = _NANOSECONDS[kind.unit]
        array = array.cast(pa.int64())
    elif pa.types.is_date(kind):
        factor = _NANOSECONDS["ms"]
        array = array.cast(pa.date64()).cast(pa.int64())
    need = "give every row an integer or time"
    findings.add(
        is_null(array), "bad_sequence", f"column {column!r} is null, so versions have no order; {need}"
    )
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64)
    numbers = array.fill_null(0).to_numpy(zero_copy_only=False)
    limit = _LIMIT // factor
    beyond = (numbers > limit) | (numbers < -limit - 1)
    findings.add(
        beyond, "bad_sequence", f"column {column!r} does not fit into 64 bits (times: nanoseconds); {need}"
    )
    return np.where(beyond, 0, numbers).astype(np.int64) * factor
