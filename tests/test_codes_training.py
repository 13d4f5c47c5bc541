"""Training codes: better than their start, the same for the same seed, with clear errors for what cannot be trained."""

import numpy as np
import pytest
import torch

from pipeline.codes import make_binarizer
from pipeline.codes.binarizer import to_unit
from pipeline.codes.training import TrainingOptions, recall_of, train_codes
from pipeline.errors import EncoderError


@pytest.fixture(autouse=True)
def one_thread():
    """Small products wait for each other's threads longer than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


FAST = TrainingOptions(dims=32, bits=1, batch=128, epochs=2, learning_rate=1e-3, list_temperature=0.1)


def clusters(n, seed=0, width=32):
    """Vectors that vary in few directions, around 40 centres: the same whatever the seed."""
    centres = np.random.default_rng(7).standard_normal((40, 8))
    spread = np.random.default_rng(8).standard_normal((8, width)) * 2.0 ** -np.arange(8)[:, None]
    generator = np.random.default_rng(seed)
    inner = centres[generator.integers(0, 40, n)] + 0.5 * generator.standard_normal((n, 8))
    return (inner @ spread + 0.02 * generator.standard_normal((n, width))).astype(np.float32)


def unit(rows):
    return to_unit(rows.astype(np.float64)).astype(np.float32)


def test_training_from_a_random_rotation_finds_more_of_what_the_floats_find():
    rows = clusters(700)
    options = TrainingOptions(dims=32, start="rotation", batch=128, epochs=5, learning_rate=3e-4)
    trained, report = train_codes(rows, options)
    queries, documents = unit(clusters(150, seed=1)), unit(clusters(800, seed=2))
    start = make_binarizer("rotation", rows, 32, 1)
    assert recall_of(trained, queries, documents) > recall_of(start, queries, documents) + 0.03
    assert report.best_epoch > 0
    assert report.recall[report.best_epoch] == max(report.recall)


@pytest.mark.parametrize(
    "options",
    [
        TrainingOptions(dims=32, bits=2, batch=128, epochs=1),
        TrainingOptions(dims=16, bits=3, batch=128, epochs=1, contrastive=1.0, distil=0.0, optimizer="sgd"),
        TrainingOptions(dims=48, bits=2, batch=128, epochs=1, hidden=16, layers=2),
    ],
)
def test_every_kind_trains_and_gives_the_same_codes_for_the_same_seed(options):
    rows = clusters(300)
    seen = []
    trained, report = train_codes(rows, options, encoder_version="v9", watch=lambda *said: seen.append(said))
    again, _ = train_codes(rows, options, encoder_version="v9")
    assert trained.fingerprint == again.fingerprint
    assert (trained.spec.method, trained.spec.encoder_version) == ("learned", "v9")
    assert (trained.spec.dims, trained.spec.bits) == (options.dims, options.bits)
    assert seen[: len(report.recall) - 1] == list(enumerate(report.recall[1:], 1))
    assert seen[len(report.recall) - 1 :] == [(epoch, None) for epoch in range(1, report.best_epoch + 1)]


def test_without_a_loss_for_float_queries_coded_ones_say_when_to_stop():
    options = TrainingOptions(
        dims=32, batch=128, epochs=4, hidden=64, contrastive=1.0, distil=0.0, learning_rate=3e-3
    )
    _, report = train_codes(clusters(600), options)
    assert max(report.recall[1:]) > 0.3, (
        "the projection of float queries was not trained: 10 of 540 by chance"
    )


def test_a_training_that_only_does_harm_gives_its_start():
    rows = clusters(400)
    wild = TrainingOptions(dims=32, bits=2, batch=128, epochs=3, patience=2, learning_rate=10.0)
    trained, report = train_codes(rows, wild)
    assert report.best_epoch == 0
    start = make_binarizer("itq", rows, 32, 2)
    assert (trained.encode(rows).packed == start.encode(rows).packed).all()


def test_given_pairs_are_used_and_those_with_held_out_vectors_are_not_needed():
    rows = clusters(400)
    pairs = np.stack([np.arange(0, 400, 2), np.arange(1, 400, 2)], axis=1)
    _, report = train_codes(rows, FAST, pairs)
    assert report.pairs == 200
    with pytest.raises(EncoderError, match="1 pairs, none of them"):
        train_codes(rows, FAST, np.array([[400, 401]]))


def test_what_cannot_be_trained_is_refused():
    rows = clusters(300)
    with pytest.raises(EncoderError, match=r"\(200, 32\).*At least 256"):
        train_codes(rows[:200], FAST)
    bad = rows.copy()
    bad[3, 3] = np.nan
    with pytest.raises(EncoderError, match="1 of 300 vectors with NaN"):
        train_codes(bad, FAST)
    bad = rows.copy()
    bad[:, 5] = 0
    with pytest.raises(EncoderError, match="1 of 32 dimensions are the same"):
        train_codes(bad, FAST)
