from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import EncoderError
from pipeline.versions import BridgeOptions, fit_bridge, load_bridge, save_bridge
from pipeline.versions.maps import procrustes, ridge, to_unit

OPTIONS = BridgeOptions("a" * 64, "b" * 64, "models/old", "models/new")


def clusters(count, dims, seed=0):
    """Unit vectors float32[count, dims] around a twentieth as many centres, off the origin, as embeddings are."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(2, count // 20), dims)) + 0.5
    rows = centres[generator.integers(0, len(centres), count)] + 0.3 * generator.normal(size=(count, dims))
    return to_unit(rows.astype(np.float32))


def rotation(dims, wide, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(wide, dims)))[0].T.astype(np.float32)


@pytest.mark.parametrize(("old_dims", "new_dims"), [(24, 24), (16, 32), (32, 16)])
def test_a_bridge_goes_both_ways_whatever_the_widths(old_dims, new_dims):
    old = clusters(600, old_dims)
    turn = rotation(old_dims, new_dims) if new_dims >= old_dims else rotation(new_dims, old_dims).T
    new = to_unit(old @ turn)
    bridge = fit_bridge(old, new, OPTIONS)
    there, back = bridge.documents(old), bridge.queries(new)
    assert there.shape == new.shape
    assert there.dtype == np.float32
    assert back.shape == old.shape
    np.testing.assert_allclose(np.linalg.norm(there, axis=1), 1, atol=1e-5)
    assert (there * new).sum(axis=1).min() > 0.98
    if new_dims >= old_dims:
        assert (back * old).sum(axis=1).min() > 0.98


def test_procrustes_recovers_a_rotation_of_few_texts():
    old = clusters(120, 24)
    turn = rotation(24, 40)
    np.testing.assert_allclose(
        procrustes(old, old @ turn)(clusters(50, 24, 9)), clusters(50, 24, 9) @ turn, atol=2e-2
    )


def test_ridge_recovers_what_no_rotation_is():
    generator = np.random.default_rng(3)
    old = clusters(800, 24)
    stretch = generator.normal(size=(24, 24)) * np.logspace(0, -1.5, 24)
    new = to_unit((old @ stretch + 0.2).astype(np.float32))
    fresh = clusters(50, 24, 9)
    right = to_unit((fresh @ stretch + 0.2).astype(np.float32))
    by_ridge, by_rotation = ((fit(old, new)(fresh) * right).sum(axis=1).mean() for fit in (ridge, procrustes))
    assert by_ridge > 0.97 > by_rotation


def test_the_same_vectors_and_seed_give_the_same_bridge():
    old, new = clusters(300, 16), clusters(300, 24, 2)
    first, again = (fit_bridge(old, new, OPTIONS).fingerprint for _ in range(2))
    assert first == again != fit_bridge(old, np.roll(new, 1, axis=0), OPTIONS).fingerprint


def test_a_folder_gives_back_what_was_saved(tmp_path):
    old, new = clusters(300, 16), clusters(300, 24, 2)
    bridge = fit_bridge(old, new, OPTIONS)
    save_bridge(bridge, tmp_path / "bridge")
    found = load_bridge(tmp_path / "bridge", OPTIONS.old_version, OPTIONS.new_version)
    assert found.spec == bridge.spec
    assert found.fingerprint == bridge.fingerprint
    np.testing.assert_array_equal(found.documents(old), bridge.documents(old))
    np.testing.assert_array_equal(found.queries(new), bridge.queries(new))
    assert found.figures == bridge.figures
    with pytest.raises(EncoderError, match="holds a bridge already"):
        save_bridge(bridge, tmp_path / "bridge")


def test_a_folder_of_other_encoders_is_refused(tmp_path):
    bridge = fit_bridge(clusters(300, 16), clusters(300, 24, 2), OPTIONS)
    save_bridge(bridge, tmp_path)
    with pytest.raises(
        EncoderError, match=r"old encoder 'models/old', version a+; the one at hand has version c"
    ):
        load_bridge(tmp_path, "c" * 64, OPTIONS.new_version)
    with pytest.raises(EncoderError, match="the new encoder"):
        load_bridge(tmp_path, OPTIONS.old_version, OPTIONS.old_version)


def test_a_damaged_folder_is_refused(tmp_path):
    bridge = fit_bridge(clusters(300, 16), clusters(300, 24, 2), OPTIONS)
    save_bridge(bridge, tmp_path)
    arrays = tmp_path / "bridge.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:-40])
    with pytest.raises(EncoderError, match="no bridge can be read"):
        load_bridge(tmp_path)
    arrays.write_bytes(whole)
    said = (tmp_path / "bridge.json").read_text()
    (tmp_path / "bridge.json").write_text(said.replace(bridge.fingerprint, "0" * 64))
    with pytest.raises(EncoderError, match="are not those"):
        load_bridge(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old, new: (old[:50], new[:50]), "50 vectors of the old encoder, 50 of the new"),
        (lambda old, new: (old, new[:-1]), "299 of the new"),
        (lambda old, new: (old, np.where(np.arange(24) == 3, np.nan, new)), "300 of 300 vectors with NaN"),
        (lambda old, new: (old[0], new), "shape"),
    ],
)
def test_vectors_that_nothing_can_be_fitted_on_are_refused(change, message):
    old, new = change(clusters(300, 16), clusters(300, 24, 2))
    with pytest.raises(EncoderError, match=message) as refused:
        fit_bridge(old, new, OPTIONS)
    assert refused.value.need
    assert refused.value.do


def test_the_same_encoder_twice_is_refused():
    rows = clusters(300, 16)
    with pytest.raises(EncoderError, match="Nothing has to be bridged"):
        fit_bridge(rows, rows, replace(OPTIONS, new_version=OPTIONS.old_version))


def test_a_bridge_takes_vectors_of_its_own_widths_only():
    bridge = fit_bridge(clusters(300, 16), clusters(300, 24, 2), OPTIONS)
    with pytest.raises(EncoderError, match="as the old encoder makes them"):
        bridge.documents(clusters(3, 24))
    with pytest.raises(EncoderError, match="as the new encoder makes them"):
        bridge.queries(clusters(3, 16))
