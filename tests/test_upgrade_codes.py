"""A family of codes: old ones stay as they stand beside those trained for it, until all is embedded."""

from dataclasses import replace

import documents
import numpy as np
import pytest
from upgrades import (
    assert_same_named,
    changed,
    expected,
    held,
    how,
    ingest,
    pair,
    promoted,
    rolled_back,
    upgrade,
)

from pipeline.audit import audit
from pipeline.codes import load_codes, make_binarizer, save_codes
from pipeline.encoders import describe
from pipeline.errors import UpgradeRefused
from pipeline.search import Reader
from pipeline.stores import open_store
from pipeline.upgrade.candidate import Way
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.versions import Version

DIMS, BITS = 40, 2


@pytest.fixture(scope="module")
def rows():
    return [changed(row, at=1, op="upsert") for row in documents.rows(16, most_words=90)]


def coded(settings, folder, beside=""):
    """The settings with codes of their encoder, drawn at random, that say which ones they rank beside."""
    spec = describe(settings.encoder)
    sample = np.random.default_rng(0).normal(size=(300, spec.dims)).astype(np.float32)
    made = make_binarizer("rotation", sample, DIMS, BITS, encoder_version=spec.version)
    save_codes(replace(made, spec=replace(made.spec, compatible_with=beside)), folder)
    encoder = settings.encoder.model_copy(update={"codes": str(folder)})
    return settings.model_copy(update={"encoder": encoder})


@pytest.fixture
def both(tiny_model, wide_model, encoder_cache, tmp_path):
    old, new = pair(
        tiny_model, wide_model, encoder_cache, f"memory:{tmp_path}", tmp_path, store__keep_vectors=False
    )
    old = coded(old, tmp_path / "old")
    return old, coded(new, tmp_path / "new", load_codes(tmp_path / "old").fingerprint)


def contract(settings, alias="docs"):
    store = open_store(settings.store)
    try:
        return Version.read(store, alias).contract
    finally:
        store.close()


def test_old_codes_stay_as_they_stand_serve_beside_new_ones_and_are_embedded_by_and_by(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    before, beside = held(old), load_codes(tmp_path / "new").fingerprint
    found = upgrade(new, limits=Limits(max_tokens=0))
    assert (found.way, found.complete, found.done.mapped, found.done.copied) == (Way.FAMILY, True, 16, 0)
    was, now = contract(old).encoder_version, describe(new.encoder).version
    assert contract(old, "docs@next").compatible == {was: beside}
    for id, (payload, vectors) in held(old, "docs@next").items():
        assert payload["headwater"] == before[id][0]["headwater"] | {"bridge": beside}
        assert [*vectors] == ["codes"]
        np.testing.assert_array_equal(vectors["codes"], before[id][1]["codes"])

    ingest(old, [changed(rows[1], at=2, text="fresh")], tmp_path)
    again = upgrade(new, limits=Limits(max_tokens=300))
    assert (again.done.mapped, again.way) == (1, Way.FAMILY)
    promoted(new)
    with Reader.open(new.store, how(new)) as reader:
        assert {hit.encoder_version for hit in reader.search("river stone", 30)} == {was, now}
    now_rows = [rows[0], changed(rows[1], at=2, text="fresh"), *rows[2:]]
    assert audit(str(documents.write(tmp_path / "now.parquet", now_rows)), new).clean
    last = upgrade(new)
    assert (last.way, list(last.points), contract(new).compatible) == (Way.IN_PLACE, [now], {})
    assert_same_named(held(new), expected(new, now_rows, tmp_path / "expected"))
    rolled_back(old)
    assert contract(old).encoder_version == was
    with Reader.open(old.store, how(old)) as reader:
        assert {hit.encoder_version for hit in reader.search("river stone", 30)} == {was}


def test_codes_that_were_not_trained_for_it_are_embedded_anew(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    stranger = new.model_copy(update={"encoder": new.encoder.model_copy(update={"codes": ""})})
    found = upgrade(coded(stranger, tmp_path / "stranger", "another"))
    assert (found.way, found.done.mapped, found.done.copied) == (Way.PAYLOAD, 0, 16)


def test_vectors_that_would_be_kept_are_refused(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    keeping = new.model_copy(update={"store": new.store.model_copy(update={"keep_vectors": True})})
    with pytest.raises(UpgradeRefused, match=r"store\.keep_vectors = false.*--bridge"):
        upgrade(keeping)
    assert held(old)
