"""Drift: known shifts of samples are measured as what they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.upgrade.drift import Sample, compare_samples

POINTS, DIMS = 400, 24


def drawn(seed: int, dims: int = DIMS, points: int = POINTS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(points, dims)).astype(np.float32)


def sample(vectors: np.ndarray, first: int = 0, version: str = "v", length: int = 100) -> Sample:
    ids = np.array([f"{n:05d}" for n in range(first, first + len(vectors))], np.str_)
    lengths = np.full(len(vectors), length, np.int64)
    return Sample(version, ids, vectors, lengths, np.full(len(vectors), version))


def test_the_same_is_no_drift():
    found = compare_samples(sample(drawn(0)), sample(drawn(0)))
    assert found["mean_shift"] == 0
    assert found["covariance"] == {"frobenius": 0, "leading_10_overlap": 1}
    assert found["neighbour_overlap@10"] == found["cosine_of_shared_points"] == 1
    assert found["shared_points"] == POINTS


@given(st.floats(0.5, 3))
def test_a_shift_of_the_mean_is_measured_in_units_of_the_spread(shift):
    vectors = drawn(0)
    moved = vectors + np.full(DIMS, shift, np.float32)
    found = compare_samples(sample(vectors), sample(moved))
    assert found["mean_shift"] == pytest.approx(shift, rel=0.1)  # of unit variance in every direction
    assert found["covariance"]["frobenius"] < 1e-3


def test_a_stretch_changes_the_covariance_and_its_directions():
    vectors = drawn(0)
    vectors[:, :10] *= 3
    stretched = vectors.copy()
    stretched[:, :10] /= 3
    stretched[:, 10:20] *= 3
    found = compare_samples(sample(vectors), sample(stretched))
    assert found["covariance"]["frobenius"] > 1
    assert found["covariance"]["leading_10_overlap"] < 0.3
    assert (
        found["before"]["effective_rank"]
        < compare_samples(sample(drawn(0)), sample(drawn(0)))["before"]["effective_rank"]
    )


def test_a_rotation_keeps_neighbours_and_another_space_does_not():
    vectors = drawn(0)
    turn = np.linalg.qr(drawn(1, points=DIMS))[0].astype(np.float32)
    found = compare_samples(sample(vectors), sample(vectors @ turn))
    assert found["neighbour_overlap@10"] > 0.99
    assert found["cosine_of_shared_points"] < 0.5
    assert compare_samples(sample(vectors), sample(drawn(2)))["neighbour_overlap@10"] < 0.1


def test_of_other_dimensions_neighbours_and_lengths_are_compared():
    wide = np.concatenate([drawn(0), np.zeros((POINTS, 8), np.float32)], axis=1)
    found = compare_samples(sample(drawn(0)), sample(wide, length=150))
    assert found["mean_shift"] is found["covariance"] is found["cosine_of_shared_points"] is None
    assert found["neighbour_overlap@10"] == 1
    assert (found["before"]["characters"]["mean"], found["after"]["characters"]["mean"]) == (100, 150)


def test_only_shared_points_have_neighbours_to_compare():
    found = compare_samples(sample(drawn(0)), sample(drawn(0)[:300], first=100))
    assert found["shared_points"] == 300
    assert found["neighbour_overlap@10"] < 0.2  # the same ids, other vectors
    apart = compare_samples(sample(drawn(0)), sample(drawn(0), first=POINTS))
    assert (apart["shared_points"], apart["neighbour_overlap@10"]) == (0, None)


def test_norms_are_told():
    norms = compare_samples(sample(drawn(0)), sample(2 * drawn(0)))
    assert norms["after"]["norms"]["mean"] == pytest.approx(2 * norms["before"]["norms"]["mean"], rel=1e-4)
    assert norms["before"]["norms"]["p1"] < norms["before"]["norms"]["p50"] < norms["before"]["norms"]["p99"]


def test_a_sample_is_kept_as_it_is_and_split_by_version(tmp_path):
    both = sample(drawn(0))
    both.versions[:100] = "w"
    both.save(tmp_path / "s.npz")
    again = Sample.load(tmp_path / "s.npz")
    assert again.name == both.name
    assert len(again.of_version("w").ids) == 100
    np.testing.assert_array_equal(again.vectors, both.vectors)
    (tmp_path / "s.npz").write_bytes(b"no zip")
    with pytest.raises(UsageError, match="cannot be read"):
        Sample.load(tmp_path / "s.npz")


def test_an_empty_sample_says_nothing():
    found = compare_samples(sample(drawn(0)[:0]), sample(drawn(0)[:0]))
    assert found["before"]["norms"] is found["mean_shift"] is found["neighbour_overlap@10"] is None
