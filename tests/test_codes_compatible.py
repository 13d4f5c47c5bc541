"""Codes of a new encoder beside an old one's: stored codes stay, and new queries find old and new ones alike."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.codes import load_codes, make_binarizer, save_codes
from pipeline.codes.compatible import train_compatible
from pipeline.codes.training import TrainingOptions
from pipeline.errors import EncoderError

OPTIONS = TrainingOptions(epochs=8, batch=100, learning_rate=3e-3)


@pytest.fixture(scope="module")
def pair():
    """The same 500 texts by two encoders, and a map that takes the new one's vectors half way into the old space."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(25, 16))
    meant = centres[generator.integers(0, 25, 500)] + 0.5 * generator.normal(size=(500, 16))
    turn = np.linalg.qr(generator.normal(size=(24, 16)))[0].T
    askew = turn.T + 0.15 * generator.normal(size=(24, 16))
    old = (meant + 0.2 * generator.normal(size=meant.shape)).astype(np.float32)
    return old, (meant @ turn).astype(np.float32), (askew.astype(np.float32), np.zeros(16, np.float32))


@pytest.fixture(scope="module", params=[1, 2])
def before(pair, request):
    return make_binarizer("itq", pair[0], 16, request.param, encoder_version="old")


@pytest.mark.parametrize("losses", [{}, {"distil": 0.0, "contrastive": 1.0}])
def test_training_finds_more_in_a_mixed_index_than_the_bridge_before_the_old_codes(pair, before, losses):
    old, new, into_old = pair
    options = replace(OPTIONS, **losses)
    made, report = train_compatible(old, new, before, into_old, options, "new")
    assert (made.spec.dims, made.spec.bits) == (before.spec.dims, before.spec.bits)
    assert (made.spec.input_dims, made.spec.encoder_version, made.spec.method) == (24, "new", "compatible")
    assert made.spec.compatible_with == before.fingerprint
    if not losses:  # with few texts the contrastive loss makes codes worse, and is stopped where it began
        assert max(report.recall) > report.recall[0] + 0.01
    assert report.best_epoch == np.argmax(report.recall)
    again, _ = train_compatible(old, new, before, into_old, options, "new")
    assert again.fingerprint == made.fingerprint


def test_without_an_epoch_it_is_the_old_codes_behind_the_map(pair, before):
    old, new, into_old = pair
    made, report = train_compatible(old, new, before, into_old, replace(OPTIONS, epochs=0))
    assert len(report.recall) == 1
    mapped = before.encode(new @ into_old[0]).packed
    different = np.unpackbits(made.encode(new).packed ^ mapped).mean()
    assert different < 0.15, "only lengths differ"


def test_codes_that_rank_beside_none_are_hashed_and_written_without_a_word_of_it(tmp_path):
    plain = make_binarizer("sign", np.eye(8, dtype=np.float32), 8, 1, centre=False)
    assert plain.fingerprint.startswith("21bb74eee514b3f7")
    beside = replace(plain, spec=replace(plain.spec, compatible_with="a"))
    other = replace(plain, spec=replace(plain.spec, compatible_with="b"))
    assert len({one.fingerprint for one in (plain, beside, other)}) == 3
    for binarizer in (plain, beside):
        folder = tmp_path / str(len(binarizer.spec.compatible_with))
        save_codes(binarizer, folder)
        assert load_codes(folder).spec == binarizer.spec
    assert "compatible_with" not in (tmp_path / "0" / "binarizer.json").read_text()


def test_texts_must_pair(pair, before):
    old, new, into_old = pair
    with pytest.raises(EncoderError, match="499 vectors of the old encoder, 500 of the new"):
        train_compatible(old[1:], new, before, into_old, OPTIONS)
