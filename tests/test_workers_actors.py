"""What runs inside Ray's processes, without Ray."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from pipeline.config import StoreConfig
from pipeline.errors import StoreOverloaded
from pipeline.schemas import Split
from workers.actors import LaneActor, StoreActor, _crossing


def test_a_store_is_opened_once_however_many_lanes_call_first(tmp_path):
    actor = StoreActor(StoreConfig(url="edge:index", collection="docs"), str(tmp_path))
    together = threading.Barrier(8)

    def call(_):
        together.wait()
        return actor.call("collection_exists", ("docs",), {})

    before = os.getcwd()
    try:
        with ThreadPoolExecutor(8) as threads:
            assert not any(threads.map(call, range(8)))
    finally:
        os.chdir(before)
        actor.call("close", (), {})
    assert (tmp_path / "index").is_dir()  # relative to the driver's folder


def test_our_errors_cross_as_they_are():
    with pytest.raises(StoreOverloaded) as caught, _crossing():
        raise StoreOverloaded("got", "need", "do", 2.5)
    assert caught.value.retry_after_s == 2.5


def test_a_grpc_error_crosses_as_text():
    with pytest.raises(RuntimeError, match="UNAVAILABLE"), _crossing():
        grpc.insecure_channel("127.0.0.1:1").unary_unary("/a/b")(b"", timeout=5)


class Foreign(Exception):
    """Takes more than it passes on, so it cannot be unpickled."""

    def __init__(self, number, word):
        super().__init__(f"{number} {word}")


class BrokenLane:
    def run_split(self, split):
        raise Foreign(2, "words")


def test_a_lanes_foreign_error_crosses_as_text_with_its_traceback(tmp_path):
    actor = LaneActor(None, None, str(tmp_path))
    actor._lane = BrokenLane()
    with pytest.raises(RuntimeError, match=r"in run_split[\s\S]*Foreign: 2 words"):
        actor.run_split(Split("id", "uri", "parquet", 0, 1, 0, 1))


def test_a_lane_without_its_encoder_answers_and_can_be_stopped(tmp_path):
    actor = LaneActor(None, None, str(tmp_path))
    assert actor.place().pid == os.getpid()
    assert actor.progress() == 0
    actor.stop()
