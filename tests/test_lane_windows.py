import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lane.windows import NO_CHUNKS, WINDOW_ROWS, Window, gather, token_arrays
from pipeline.schemas import CHUNKS


def chunks(lengths: list[int]) -> pa.RecordBatch:
    rows = [
        {
            "point_id": str(number),
            "document_id": "d",
            "namespace": "",
            "chunk_index": number,
            "chunk_count": len(lengths),
            "text": "t",
            "start": 0,
            "end": 1,
            "token_ids": list(range(length)),
            "metadata": "{}",
            "sequence": 0,
            "row": 0,
        }
        for number, length in enumerate(lengths)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=CHUNKS)


@given(st.lists(st.lists(st.integers(1, 30), max_size=12), max_size=8), st.integers(1, 100))
def test_gathering_keeps_every_chunk_in_order_and_bounds_windows(pieces, window_tokens):
    windows = list(gather((Window(chunks(p), rows=1) for p in pieces), window_tokens))
    seen = [len(ids) for window in windows for ids in token_arrays(window.chunks)]
    assert seen == [length for piece in pieces for length in piece]
    assert sum(window.rows for window in windows) == len(pieces)
    sizes = [sum(map(len, token_arrays(window.chunks))) for window in windows]
    assert all(size >= window_tokens for size in sizes[:-1])
    assert all(size <= 2 * window_tokens + 30 for size in sizes)


def test_windows_without_chunks_keep_what_the_rows_asked_for():
    windows = list(
        gather([Window(NO_CHUNKS, rows=3, deleted=(("", "a"),)), Window(chunks([5]), rows=1)], 100)
    )
    assert len(windows) == 1
    assert windows[0].rows == 4
    assert windows[0].deleted == (("", "a"),)


def test_token_arrays_of_a_slice_are_the_slices_own():
    part = chunks([3, 4, 5]).slice(1, 1)
    assert [ids.tolist() for ids in token_arrays(part)] == [[0, 1, 2, 3]]


def test_a_long_stream_of_deletes_comes_in_many_windows():
    pieces = (Window(NO_CHUNKS, rows=256, deleted=(("", "a"),) * 256) for _ in range(200))
    windows = list(gather(pieces, 1000))
    assert max(window.rows for window in windows) <= WINDOW_ROWS
    assert sum(len(window.deleted) for window in windows) == 200 * 256
    assert all(window.nbytes > 100 * len(window.deleted) for window in windows)
