from __future__ import annotations

import numpy as np
import pytest

from pipeline.encoders.parity import BARS, check_parity, pad, probes
from pipeline.errors import ParityError

SAMPLES = [np.arange(3, 3 + n, dtype=np.int32) for n in (4, 20, 90, 11)]
INPUTS = probes(SAMPLES, vocabulary=1000, pad_id=0, max_tokens=64)


def model(ids, mask):
    """A stand-in for a model: a vector of unit length that depends on the real tokens only."""
    weights = np.sin(np.arange(1, 33)[None, None, :] * (1.0 + ids[:, :, None])) * mask[:, :, None]
    vectors = weights.sum(axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


REFERENCE = [model(ids, mask) for ids, mask in INPUTS]


def test_probes_have_one_and_three_rows_of_one_token_to_the_longest():
    shapes = [ids.shape for ids, _ in INPUTS]

    assert {rows for rows, _ in shapes} == {1, 3}
    assert min(length for _, length in shapes) == 1
    assert max(length for _, length in shapes) == 64
    assert any(mask.sum(axis=1).tolist() == [64, 5, 1] for _, mask in INPUTS)
    assert any(len(mask) == 3 and mask.all() for _, mask in INPUTS)


@pytest.mark.parametrize(("vocabulary", "pad_id"), [(30522, 0), (50265, 1), (100, 99)])
def test_probes_hold_no_padding_among_real_tokens(vocabulary, pad_id):
    for ids, mask in probes([], vocabulary, pad_id, max_tokens=8):
        assert not (ids[mask == 1] == pad_id).any()
        assert (ids[mask == 0] == pad_id).all()
        assert 0 <= ids.min() <= ids.max() < vocabulary


def test_padding_is_on_the_right():
    ids, mask = pad([np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)], pad_id=1)

    assert ids.tolist() == [[5, 6], [7, 1]]
    assert mask.tolist() == [[1, 1], [1, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_equal_vectors_pass_every_bar():
    for precision in BARS:
        figures = check_parity("the graph", precision, REFERENCE, model, INPUTS)
        assert figures.difference == 0
        assert figures.least_cosine == pytest.approx(1)


def test_a_graph_that_forgets_the_mask_fails_with_figures():
    def forgetful(ids, mask):
        return model(ids, np.ones_like(mask))

    with pytest.raises(ParityError, match=r"differs from the model by 0\.\d+, cosine at least") as caught:
        check_parity("the graph", "fp32", REFERENCE, forgetful, INPUTS)

    assert "At most 2e-05" in str(caught.value) or "at most 2e-05" in str(caught.value)


def test_a_difference_that_fp16_may_have_fails_fp32():
    noise = np.random.default_rng(0).normal(scale=3e-4, size=32)

    def noisy(ids, mask):
        return model(ids, mask) + noise

    check_parity("the graph", "fp16", REFERENCE, noisy, INPUTS)
    with pytest.raises(ParityError):
        check_parity("the graph", "fp32", REFERENCE, noisy, INPUTS)


def test_nan_is_named_and_blamed_on_the_right_side():
    def broken(ids, mask):
        return model(ids, mask) * np.nan

    with pytest.raises(ParityError, match="the graph gives NaN"):
        check_parity("the graph", "fp16", REFERENCE, broken, INPUTS)
    with pytest.raises(ParityError, match="the model itself gives NaN"):
        check_parity("the graph", "fp32", [vectors * np.nan for vectors in REFERENCE], model, INPUTS)


def test_another_shape_fails():
    with pytest.raises(ParityError, match="same shape"):
        check_parity("the graph", "fp32", REFERENCE, lambda ids, mask: model(ids, mask)[:, :8], INPUTS)
