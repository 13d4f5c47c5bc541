import threading
import time
from contextlib import suppress

import pytest

from pipeline.stores.pace import Pace


def turns(pace, number):
    for _ in range(number):
        with pace.turn():
            pass


def test_a_refusal_halves_and_successes_bring_it_back_slowly():
    pace = Pace(8)
    for expected in (4, 2, 1, 1):
        with suppress(ValueError), pace.turn() as sent_after:
            pace.refused(sent_after)
            raise ValueError
        assert pace.limit == expected
    turns(pace, 2)
    assert pace.limit == 2
    turns(pace, 100)
    assert pace.limit == 8


def test_a_storm_of_refusals_of_one_moment_halves_once():
    pace = Pace(8)
    with pace.turn() as first, pace.turn() as second, pace.turn() as third:
        for sent_after in (first, second, third):
            pace.refused(sent_after)
    assert pace.limit == 4


def test_no_more_are_under_way_than_the_limit_says_and_a_failure_gives_its_turn_back():
    pace, under_way, most = Pace(3), 0, 0
    guard = threading.Lock()

    def request():
        nonlocal under_way, most
        try:
            with pace.turn():
                with guard:
                    under_way += 1
                    most = max(most, under_way)
                time.sleep(0.01)
                with guard:
                    under_way -= 1
                raise ValueError
        except ValueError:
            pass

    threads = [threading.Thread(target=request) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3
    with pytest.raises(ValueError, match="mine"), pace.turn():
        raise ValueError("mine")
    assert pace.limit == 3


def test_a_pause_that_one_was_asked_for_is_kept_by_all():
    pace, began = Pace(4), time.monotonic()
    with pace.turn() as sent_after:
        pace.refused(sent_after, 0.3)
        pace.refused(sent_after, 0.1)  # a shorter one does not end it
    turns(pace, 1)
    assert time.monotonic() - began >= 0.3
    turns(pace, 3)
    assert time.monotonic() - began < 0.6
