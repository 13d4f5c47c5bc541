"""Every Arrow type keeps its meaning in a payload's JSON."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.values import json_values, no_json, to_json, undecodable

LONG = "long enough not to be inlined"
UUID = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
BERLIN = datetime(2024, 5, 1, 14, 0, 0, 5000, tzinfo=timezone(timedelta(hours=2)))

# fmt: off
CASES = [
    (pa.array([1, None, -3], pa.int8()), [1, None, -3]),
    (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
    (pa.array([2**53 + 1, None], pa.int64()), [2**53 + 1, None]),  # not by way of a double
    (pa.array([True, None, False]), [True, None, False]),
    (pa.array([1.5, math.nan, math.inf, -math.inf, None]), [1.5, None, None, None, None]),
    (pa.array([0.5, None], pa.float16()), [0.5, None]),
    (pa.array([None, None]), [None, None]),
    (pa.array(["ü", None, ""], pa.string()), ["ü", None, ""]),
    (pa.array(["ü", None], pa.large_string()), ["ü", None]),
    (pa.array(["ü", None, LONG], pa.string_view()), ["ü", None, LONG]),
    (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    (pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"])), ["a", "a", "b"]),
    (pa.array([b"\xff\x00", None]), ["/wA=", None]),
    (pa.array([b"ab", None], pa.binary(2)), ["YWI=", None]),
    (pa.array([b"ab", None], pa.binary_view()), ["YWI=", None]),
    (pa.array([UUID.bytes, None], pa.uuid()), [str(UUID), None]),
    (pa.array([date(2024, 2, 29), None]), ["2024-02-29", None]),
    (pa.array([date(1, 1, 1), date(9999, 12, 31)]), ["0001-01-01", "9999-12-31"]),
    (pa.array([date(2024, 2, 29)], pa.date64()), ["2024-02-29"]),
    (pa.array([time(1, 2, 3), None, time(1, 2, 3, 45)]), ["01:02:03", None, "01:02:03.000045"]),
    (pa.array([datetime(2024, 1, 1, 12), None], pa.timestamp("s")), ["2024-01-01T12:00:00Z", None]),  # noqa: DTZ001
    (pa.array([10**18 + 1, 10**18], pa.timestamp("ns")), ["2001-09-09T01:46:40.000000001Z", "2001-09-09T01:46:40Z"]),
    (pa.array([-1], pa.timestamp("ms")), ["1969-12-31T23:59:59.999Z"]),
    (pa.array([BERLIN], pa.timestamp("us", "Europe/Berlin")), ["2024-05-01T12:00:00.005000Z"]),
    (pa.array([BERLIN.astimezone(UTC)], pa.timestamp("ms", "UTC")), ["2024-05-01T12:00:00.005Z"]),
    (pa.array([10**17, -(10**17), 0], pa.timestamp("s")), [None, None, "1970-01-01T00:00:00Z"]),
    (pa.array([1500, 2000, None], pa.duration("ms")), [1.5, 2, None]),
    (pa.array([Decimal("19.90"), None], pa.decimal128(10, 2)), [19.9, None]),
    (pa.array([Decimal(10**17)], pa.decimal128(18, 0)), [10**17]),
    (pa.array([Decimal("0.10")], pa.decimal128(38, 2)), ["0.10"]),
    (pa.array([Decimal(10**30)], pa.decimal256(40, 0)), [str(10**30)]),
    (pa.array([[1, None], None, []]), [[1, None], None, []]),
    (pa.array([[1, 2], None], pa.large_list(pa.int64())), [[1, 2], None]),
    (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)), [[1, 2], None, [3, 4]]),
    (pa.array([[1, 2], None, []], pa.list_view(pa.int64())), [[1, 2], None, []]),
    (pa.array([[[1], []], None]), [[[1], []], None]),
    (pa.array([{"a": 1, "b": None}, None, {"a": None, "b": "x"}]), [{"a": 1}, None, {"b": "x"}]),
    (pa.array([[{"a": 1}], []]), [[{"a": 1}], []]),
    (pa.array([{}, {}], pa.struct([])), [{}, {}]),
    (pa.array([[("k", 1), ("n", None)], None, []], pa.map_(pa.string(), pa.int64())), [{"k": 1}, None, {}]),
    (pa.array([[(7, "x")]], pa.map_(pa.int64(), pa.string())), [{"7": "x"}]),
]
# fmt: on


@pytest.mark.parametrize(("array", "expected"), CASES, ids=lambda case: str(getattr(case, "type", "")))
def test_each_type_has_its_json_value(array, expected):
    values = json_values(array)
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]
    json.dumps(values, allow_nan=False)


@pytest.mark.parametrize(("array", "expected"), CASES, ids=lambda case: str(getattr(case, "type", "")))
def test_a_slice_has_its_own_values(array, expected):
    assert json_values(array.slice(1)) == expected[1:]


def test_types_without_json_form_are_found_wherever_they_are():
    union = pa.dense_union([pa.field("a", pa.int64())])
    assert no_json(pa.list_(pa.struct([("deep", union)]))) == union
    assert no_json(pa.month_day_nano_interval()) is not None
    assert no_json(pa.map_(pa.string(), pa.list_(pa.date32()))) is None


def test_bad_bytes_in_nested_strings_are_found_by_row():
    strings = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff", b"fine"]).buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3, 3], pa.int32()), strings)
    assert undecodable(json_values(lists)).tolist() == [False, True, False]


rows = st.lists(
    st.none()
    | st.fixed_dictionaries({"i": st.none() | st.integers(-9, 9), "t": st.lists(st.text(max_size=3))})
)


@given(st.lists(st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1))), st.integers(0, 3))
def test_lists_of_integers_survive(values, offset):
    assert json_values(pa.array(values, pa.list_(pa.int64())).slice(offset)) == values[offset:]


@given(rows)
def test_structs_survive_but_for_nulls(values):
    array = pa.array(values, pa.struct([("i", pa.int64()), ("t", pa.list_(pa.string()))]))
    expected = [None if row is None else {k: v for k, v in row.items() if v is not None} for row in values]
    assert json_values(array) == expected


def test_equal_objects_are_equal_json():
    assert to_json({"b": [1], "a": "ü"}) == to_json({"a": "ü", "b": [1]}) == '{"a":"ü","b":[1]}'
