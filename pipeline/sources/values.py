"""Arrow values as JSON values: what payloads keep of a column's type.

    integers, bool, string  the same
    float                   a number; NaN and infinities have no JSON form and become null
    decimal                 an integer (no fraction, up to 18 digits), a number (up to 15 digits: a double
                            holds those exactly), else a string; by the column's type: a field has one type
    timestamp               RFC 3339 in UTC with Z; a fraction of zero is left out, any other has all the
                            digits of its unit; without a zone taken as UTC; outside years 1 to 9999 null
    date, time              RFC 3339 full-date and partial-time
    duration                seconds
    binary                  base64; UUIDs as usual
    list                    an array, nulls kept
    struct, map             an object, nulls left out; a map's key that is no string in its JSON form
    dictionary, run-end encoded, extension: as their values or storage

Unions and calendar intervals have no JSON form; `no_json` finds them.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Column = Any  # a pa.Array of any type: pyarrow's stubs know no compute function for that
Values = list[Any]  # JSON values: None, bool, int, float, str, list, dict

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True).encode
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
_YEAR_1, _YEAR_10000 = -62135596800, 253402300800  # seconds since 1970
_ZERO_FRACTION = re.compile(r"\.0+$")


def to_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Compact JSON with sorted keys: equal values give equal strings."""
    return _encode(value)


def decoded_type(kind: pa.DataType) -> pa.DataType:
    """The type that `decoded` gives for this one."""
    match kind:
        case pa.UuidType():
            return pa.string()
        case pa.BaseExtensionType():
            return decoded_type(kind.storage_type)
        case pa.DictionaryType() | pa.RunEndEncodedType():
            return decoded_type(kind.value_type)
    return kind


def decoded(array: Column) -> Column:
    """The array without dictionary, run-end and extension wrapping; UUIDs become strings."""
    match array:
        case pa.DictionaryArray():
            return decoded(array.dictionary_decode())
        case pa.RunEndEncodedArray():
            return decoded(pc.call_function("run_end_decode", [array]))
        case pa.UuidArray():
            raw = array.storage.to_pylist()
            return pa.array(
                [None if value is None else str(uuid.UUID(bytes=value)) for value in raw], pa.string()
            )
        case pa.ExtensionArray():
            return decoded(array.storage)
    return array


def no_json(kind: pa.DataType) -> pa.DataType | None:
    """The type, or the type within it, that has no JSON form; None if all is well."""
    kind = decoded_type(kind)
    if pa.types.is_union(kind) or pa.types.is_interval(kind):
        return kind
    inner = (kind.field(index).type for index in range(kind.num_fields))
    return next((found for child in inner if (found := no_json(child))), None)


def is_string(kind: pa.DataType) -> bool:
    """True for every type of strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_binary(kind: pa.DataType) -> bool:
    """True for every type of bytes."""
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def byte_lengths(array: Column) -> NDArray[np.int64]:
    """int64[n]: bytes of each string or binary value, 0 for nulls."""
    lengths: Column = pc.call_function("binary_length", [array])
    return np.asarray(lengths.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def json_values(array: Column) -> Values:
    """The values of an array as JSON values.

    Bytes of a string that are not UTF-8 become lone surrogates, which no encoder takes: see `undecodable`.
    """
    array = decoded(array)
    kind = array.type
    if pa.types.is_null(kind):
        return [None] * len(array)
    if pa.types.is_nested(kind):
        return _nested(array)
    if is_string(kind):
        return _strings(array)
    if pa.types.is_boolean(kind):
        flags: Values = array.to_numpy(zero_copy_only=False).tolist()
        return flags
    if pa.types.is_integer(kind):  # never with nulls: numpy would make doubles of them
        return _where_valid(array.fill_null(0).to_numpy(zero_copy_only=False).tolist(), array)
    if pa.types.is_floating(kind):
        return _floats(array)
    return _written(array)


def undecodable(values: Values) -> NDArray[np.bool_]:
    """bool[n]: True where a value from `json_values` holds bytes that are not UTF-8."""
    return np.fromiter((_has_surrogate(value) for value in values), np.bool_, len(values))


def _has_surrogate(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    try:
        to_json(value).encode()
    except UnicodeEncodeError:
        return True
    return False


def _where_valid(values: Values, array: Column) -> Values:
    if not array.null_count:
        return values
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return [value if ok else None for value, ok in zip(values, valid, strict=True)]


def _strings(array: Column) -> Values:
    try:
        values: Values = array.to_numpy(zero_copy_only=False).tolist()
    except (pa.ArrowException, UnicodeDecodeError):  # not UTF-8 throughout
        raw = array.cast(pa.large_binary()).to_pylist()
        values = [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return values


def _floats(array: Column) -> Values:
    numbers = np.asarray(array.fill_null(np.nan).to_numpy(zero_copy_only=False), np.float64)
    values: Values = numbers.tolist()
    finite = np.isfinite(numbers)
    return values if finite.all() else [v if ok else None for v, ok in zip(values, finite, strict=True)]


def _written(array: Column) -> Values:
    """Values of the types that JSON does not have."""
    kind = array.type
    match kind:
        case pa.TimestampType():
            return timestamps(array)
        case pa.DurationType():
            return _durations(array)
    if pa.types.is_decimal(kind):
        return _decimals(array)
    if pa.types.is_date(kind):
        seconds = array.cast(pa.date32()).cast(pa.timestamp("s"))
        return [None if day is None else day[:10] for day in timestamps(seconds)]
    if pa.types.is_time(kind):
        times = _strings(array.cast(pa.string()))
        return [None if time is None else _ZERO_FRACTION.sub("", time) for time in times]
    return [None if value is None else base64.b64encode(value).decode("ascii") for value in array.to_pylist()]


def timestamps(array: Column) -> list[str | None]:
    """RFC 3339 in UTC; a fraction of zero is left out."""
    unit = array.type.unit
    ticks = array.cast(pa.int64())
    low, high = _YEAR_1 * _TICKS[unit], _YEAR_10000 * _TICKS[unit]
    if unit != "ns":  # int64 nanoseconds reach only from 1677 to 2262
        numbers = ticks.fill_null(low - 1).to_numpy(zero_copy_only=False)
        ticks = pa.array(numbers, mask=(numbers < low) | (numbers >= high))
    written = pc.strftime(ticks.cast(pa.timestamp(unit)), format="%Y-%m-%dT%H:%M:%S")
    return [None if text is None else f"{_ZERO_FRACTION.sub('', text)}Z" for text in _strings(written)]


def _durations(array: Column) -> Values:
    ticks, per_second = json_values(array.cast(pa.int64())), _TICKS[array.type.unit]
    return [None if n is None else n // per_second if n % per_second == 0 else n / per_second for n in ticks]


def _decimals(array: Column) -> Values:
    values = array.to_pylist()
    if array.type.scale <= 0 and array.type.precision - array.type.scale <= 18:
        return [None if value is None else int(value) for value in values]
    if array.type.precision <= 15:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else format(value, "f") for value in values]


def _nested(array: Column) -> Values:
    match array:
        case pa.StructArray():
            names = [array.type.field(index).name for index in range(array.type.num_fields)]
            columns = [json_values(child) for child in array.flatten()]
            rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
            return _where_valid([_object(zip(names, row, strict=True)) for row in rows], array)
        case pa.MapArray():
            entry = pa.struct([pa.field("key", array.type.key_type), pa.field("value", array.type.item_type)])
            entries: Column = array.cast(pa.list_(entry))
            pairs = entries.flatten()
            keys = [key if isinstance(key, str) else to_json(key) for key in json_values(pairs.field(0))]
            items = list(zip(keys, json_values(pairs.field(1)), strict=True))
            return [None if slice_ is None else _object(items[slice_]) for slice_ in _slices(entries)]
    items = json_values(array.flatten())
    return [None if slice_ is None else items[slice_] for slice_ in _slices(array)]


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if value is not None}


def _slices(lists: Column) -> list[slice | None]:
    """Where each list's values lie in `lists.flatten()`, None for a null."""
    lengths = pc.list_value_length(lists)
    ends = np.concatenate(([0], np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False)))).tolist()
    return _where_valid([slice(start, stop) for start, stop in pairwise(ends)], lists)
