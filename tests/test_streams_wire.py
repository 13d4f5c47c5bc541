"""Arrow Flight's messages, as we write and read them."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from pipeline.streams.wire import fields, put_result


@given(st.binary(max_size=100_000))
def test_results_are_protobuf(said):
    assert [(number, bytes(value)) for number, value in fields(put_result(said))] == [(1, said)]


@given(st.binary())
def test_any_bytes_are_fields_or_refused(message):
    with suppress(ValueError):
        list(fields(message))
