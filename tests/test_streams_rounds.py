"""Rounds: what senders sent waits for the next one, within bounds."""

import threading
import time

import pyarrow as pa
from waiting import wait_for

from pipeline.streams.rounds import Inbox, Sender


def test_the_inbox_holds_no_more_than_its_limit():
    inbox, stop = Inbox(limit=2500), threading.Event()
    one = pa.record_batch({"x": pa.array(range(125), pa.int64())})  # 1000 bytes
    taken = []
    offering = threading.Thread(target=lambda: taken.extend(inbox.offer(Sender("a"), one) for _ in range(5)))
    offering.start()
    time.sleep(0.2)
    assert len(taken) == 2
    assert len(inbox.gather(60, stop)) == 2  # full: not waited for
    wait_for(lambda: len(taken) == 4)
    inbox.close()
    offering.join()
    assert taken == [True, True, True, True, False]
    assert len(inbox.gather(60, stop)) == 2
    assert inbox.gather(60, stop) == []
