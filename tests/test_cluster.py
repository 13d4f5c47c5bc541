import pytest

from pipeline.config import EncoderConfig, RunConfig, Settings
from pipeline.errors import UsageError
from workers.cluster import LaneShare, share


def settings(provider: str = "auto", lanes: int = 0, threads: int = 0) -> Settings:
    return Settings(encoder=EncoderConfig(provider=provider, threads=threads), run=RunConfig(lanes=lanes))


def test_one_lane_per_gpu():
    assert share(settings(), cpus=32, gpus=4) == LaneShare(lanes=4, cpus=1, gpus=1.0, threads=0)


def test_more_lanes_than_gpus_share_them():
    assert share(settings(lanes=4), cpus=32, gpus=2).gpus == 0.5


def test_without_gpus_one_lane_has_all_threads():
    assert share(settings(), cpus=8, gpus=0) == LaneShare(lanes=1, cpus=8, gpus=0, threads=8)


def test_lanes_on_cpus_divide_them():
    assert share(settings(lanes=3), cpus=8, gpus=0) == LaneShare(lanes=3, cpus=2, gpus=0, threads=2)
    assert share(settings(lanes=4), cpus=2, gpus=0) == LaneShare(lanes=4, cpus=0.5, gpus=0, threads=1)


def test_a_cpu_encoder_takes_no_gpu():
    assert share(settings("cpu"), cpus=8, gpus=2).gpus == 0


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(UsageError, match="no GPU"):
        share(settings("cuda"), cpus=8, gpus=0)
