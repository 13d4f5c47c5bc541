from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import EncoderError
from pipeline.versions import BridgeOptions, fit_bridge, load_bridge, save_bridge
from pipeline.versions.balance import balance, native_share
from pipeline.versions.maps import Map, anchors, kernel, low_rank, procrustes, ridge, to_unit

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
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "bridge").iterdir()}
    assert modes == {"bridge.json": 0o644, "bridge.safetensors": 0o644}, "searches may run as somebody else"
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


def bent(rows, seed=5):
    """What no linear map makes: float32[n, 24] by a random layer with a kink."""
    generator = np.random.default_rng(seed)
    hidden = np.maximum(rows @ generator.normal(size=(rows.shape[1], 64)), 0)
    return to_unit((hidden @ generator.normal(size=(64, 24))).astype(np.float32))


def test_a_kernel_learns_what_is_bent_and_is_chosen_for_it():
    old, fresh = clusters(700, 16), clusters(700, 16)[:60]
    old = old[60:]
    bridge = fit_bridge(old, bent(old), OPTIONS)
    assert bridge.spec.document == "kernel"
    straight, curved = (
        np.sum(fit(old, bent(old))(fresh) * bent(fresh), axis=1).mean() for fit in (ridge, kernel)
    )
    assert curved > straight + 0.01


def test_the_chosen_method_is_the_one_that_finds_most_of_what_was_held_out():
    bridge = fit_bridge(clusters(400, 16), bent(clusters(400, 16)), OPTIONS)
    for way, chosen in (("document", bridge.spec.document), ("query", bridge.spec.query)):
        found = {name: of["recall@10"] for name, of in bridge.figures[way].items()}
        assert set(found) == set(bridge.maps[way]) >= {"anchors", "procrustes", "ridge", "low-rank", "kernel"}
        assert found[chosen] == max(found.values()) > found["anchors"]


def test_held_out_figures_know_when_there_is_nothing_to_learn():
    figures = fit_bridge(clusters(400, 16), clusters(400, 24, 2), OPTIONS).figures["document"]
    assert max(of["recall@10"] for of in figures.values()) < 0.2, "a kernel knows its own texts by heart"


def test_low_rank_keeps_half_of_the_directions():
    fitted = low_rank(clusters(300, 16), clusters(300, 24, 2))
    assert np.linalg.matrix_rank(fitted.weight, tol=1e-4) == 8


def test_anchors_rank_as_products_with_the_anchors_do():
    old, new = clusters(300, 16), bent(clusters(300, 16))
    asked, documents = new[:5], clusters(40, 16, 9)
    relative = (asked @ new.T) @ (documents @ old.T).T
    np.testing.assert_allclose(asked @ anchors(old, new).raw(documents).T, relative / 300, rtol=1e-4)


def test_queries_of_the_texts_are_fitted_on_and_asked_with():
    old = clusters(400, 16)
    new = bent(old)
    asked = to_unit(old + 0.2), to_unit(new + 0.2)
    with_queries = fit_bridge(old, new, OPTIONS, asked)
    assert with_queries.fingerprint != fit_bridge(old, new, OPTIONS).fingerprint
    with pytest.raises(EncoderError, match="One of each"):
        fit_bridge(old, new, OPTIONS, (asked[0][1:], asked[1][1:]))
    with pytest.raises(EncoderError, match="NaN"):
        fit_bridge(old, new, OPTIONS, (asked[0], asked[1] * np.nan))


@pytest.mark.parametrize("method", [procrustes, ridge])
def test_mapped_and_native_vectors_are_found_alike_once_balanced(method):
    everything = clusters(900, 24)
    noise = 0.2 * np.random.default_rng(1).normal(size=(900, 32)).astype(np.float32)
    old, new = everything, to_unit(everything @ rotation(24, 32) + noise)
    fitted = method(old[:400], new[:400])
    held, native = fitted(old[400:]), new[400:]
    rows = np.arange(500)
    made = balance(fitted, held, native, native, rows)
    halves = rows % 2 == 0

    def share(vectors):
        return native_share(np.where(halves[:, None], native, vectors), halves, native, rows)

    assert abs(share(held) - 0.5) > 0.05, "nothing to balance"
    assert abs(share(made.mixed(held)) - 0.5) < 0.03
    np.testing.assert_allclose(np.linalg.norm(made(old), axis=1), 1, atol=1e-5)


def test_a_query_by_both_encoders_keeps_the_old_ones_order():
    old = clusters(500, 16)
    new = to_unit(
        np.random.default_rng(4).normal(size=(500, 24)).astype(np.float32)
    )  # it knows nothing of the old
    bridge = fit_bridge(old, new, OPTIONS)
    documents = bridge.maps["document"]["procrustes"](old)
    right = np.argsort(-(old[:50] @ old.T), axis=1)[:, 1:11]

    def kept(asked):
        found = np.argsort(-(asked @ documents.T), axis=1)[:, 1:11]
        return np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(found, right, strict=True)])

    assert kept(bridge.both(new[:50], old[:50])) > 2 * kept(new[:50])
    with pytest.raises(EncoderError, match="the old encoder"):
        bridge.both(new, new)


def test_a_row_does_not_depend_on_its_neighbours():
    bridge = fit_bridge(clusters(300, 16), bent(clusters(300, 16)), OPTIONS)
    rows = clusters(20, 16, 3)
    alone = np.concatenate([bridge.documents(row[None]) for row in rows])
    np.testing.assert_allclose(bridge.documents(rows), alone, atol=1e-6)


def test_a_map_without_a_balance_changes_nothing():
    unit = clusters(10, 8)
    np.testing.assert_array_equal(Map(np.eye(8, dtype=np.float32), np.zeros(8, np.float32)).mixed(unit), unit)


def test_training_by_the_new_encoders_ranking_beats_what_it_starts_from():
    from pipeline.versions.tuning import perceptron

    old, fresh = clusters(600, 16)[200:], clusters(600, 16)[:200]
    start = procrustes(old, bent(old))
    made, again = (perceptron(start, old, bent(old), 0) for _ in range(2))
    np.testing.assert_array_equal(made.narrow, again.narrow)

    def found(fitted):
        exact, scores = bent(fresh) @ bent(fresh).T, bent(fresh) @ fitted(fresh).T
        best, got = (np.argsort(-of, axis=1)[:, :10] for of in (exact, scores))
        return np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(best, got, strict=True)])

    assert found(made) > found(start) + 0.015
