import threading

import pytest

from pipeline.lane.pipe import Pipe, PipeClosed


def test_items_arrive_in_order_and_bytes_stay_bounded():
    pipe: Pipe[int] = Pipe(max_bytes=10)
    waiting: list[int] = []

    def write():
        for number in range(100):
            pipe.put(number, 4)
            waiting.append(number)
        pipe.end()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for number in pipe:
        # At most two items of 4 bytes fit beside the one in hand, and one more put may have returned.
        assert len(waiting) - len(seen) <= 4
        seen.append(number)
    writer.join()
    assert seen == list(range(100))


def test_an_item_larger_than_the_pipe_passes_alone():
    pipe: Pipe[str] = Pipe(max_bytes=1)
    pipe.put("large", 1000)
    pipe.end()
    assert list(pipe) == ["large"]


def test_the_writers_error_is_raised_by_the_reader_after_what_came_before():
    pipe: Pipe[int] = Pipe(max_bytes=100)
    pipe.put(1, 1)
    pipe.end(ValueError("broken"))
    seen: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(pipe)
    assert seen == [1]


def test_a_writer_that_waits_for_room_is_freed_when_the_reader_gives_up():
    pipe: Pipe[int] = Pipe(max_bytes=1)
    pipe.put(1, 1)
    closed = threading.Event()

    def write():
        try:
            pipe.put(2, 1)
        except PipeClosed:
            closed.set()

    writer = threading.Thread(target=write)
    writer.start()
    pipe.abandon()
    writer.join(5)
    assert closed.is_set()
    assert list(pipe) == []
