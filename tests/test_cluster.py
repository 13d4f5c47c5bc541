import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import EncoderConfig, RunConfig, Settings
from pipeline.errors import TransientError, UsageError
from workers.cluster import LaneShare, Node, connect, share


def settings(provider: str = "auto", lanes: int = 0, threads: int = 0) -> Settings:
    return Settings(encoder=EncoderConfig(provider=provider, threads=threads), run=RunConfig(lanes=lanes))


def test_one_lane_per_gpu():
    nodes = [Node(16, 4), Node(16, 4), Node(8, 0)]
    assert share(settings(), nodes) == LaneShare(lanes=8, cpus=1, gpus=1, threads=4)


def test_more_lanes_than_gpus_share_them_evenly():
    assert share(settings(lanes=4), [Node(32, 2)]).gpus == 0.5
    assert share(settings(lanes=3), [Node(32, 2)]).gpus == 0.5  # with 2/3 the third lane would find no room


def test_fewer_cpus_than_gpus_keep_no_gpu_idle():
    assert share(settings(), [Node(2, 4)]) == LaneShare(lanes=4, cpus=0.5, gpus=1, threads=1)


def test_without_gpus_one_lane_has_all_threads():
    assert share(settings(), [Node(8, 0)]) == LaneShare(lanes=1, cpus=8, gpus=0, threads=8)


def test_without_gpus_a_lane_fits_on_one_machine():
    assert share(settings(), [Node(8, 0), Node(8, 0)]) == LaneShare(lanes=2, cpus=8, gpus=0, threads=8)
    assert share(settings(threads=4), [Node(0, 0), Node(9, 0), Node(8, 0)]).lanes == 4


def test_lanes_on_cpus_divide_them():
    assert share(settings(lanes=3), [Node(8, 0)]) == LaneShare(lanes=3, cpus=2, gpus=0, threads=2)
    assert share(settings(lanes=4), [Node(2, 0)]) == LaneShare(lanes=4, cpus=0.5, gpus=0, threads=1)


def test_a_cpu_encoder_takes_no_gpu():
    assert share(settings("cpu"), [Node(8, 2)]).gpus == 0


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(UsageError, match="no GPU"):
        share(settings("cuda"), [Node(8, 0)])


machines = st.lists(
    st.builds(Node, st.integers(1, 64).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=5
)


@given(machines, st.integers(0, 40), st.sampled_from(["auto", "cpu"]))
def test_all_lanes_find_room_at_the_same_time(nodes, lanes, provider):
    parts = share(settings(provider, lanes), nodes)
    assert parts.lanes == lanes or not lanes
    room = [
        min(
            int(node.cpus / parts.cpus + 1e-6),
            int(node.gpus) * round(1 / parts.gpus) if parts.gpus else parts.lanes,
        )
        for node in nodes
    ]
    assert sum(room) >= parts.lanes


@pytest.fixture
def unconnected(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever other tests have started


def test_an_address_where_nothing_is_is_said_at_once(unconnected, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(TransientError, match="unset RAY_ADDRESS"):
            connect()


def test_ray_client_is_refused(unconnected, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UsageError, match="ray job submit"):
        connect()
