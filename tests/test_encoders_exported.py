"""Encoders in folders of their own: what a command takes, moved or not, and what is wrong with a broken one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pipeline.config import EncoderConfig
from pipeline.encoders import check, describe, export, load_encoder
from pipeline.encoders.checking import shape_by_shape
from pipeline.encoders.exported import GRAPH, MANIFEST, TOKENIZER
from pipeline.errors import EncoderError, UsageError

TEXTS = ["a", "rivers and hills", "the water of the river runs from the hills to the sea"]


@pytest.fixture(scope="module")
def exported(tiny_model, encoder_cache, tmp_path_factory):
    """The tiny model's first 8 dimensions, in a folder of their own."""
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    manifest = export(EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), dims=8), folder)
    return folder, manifest


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "moved")


def vectors(encoder):
    return encoder.encode([encoder.tokenizer.encode(text) for text in TEXTS])


def test_a_folder_is_an_encoder_wherever_it_is(exported, copied, tiny_model, tmp_path):
    alone = EncoderConfig(model=str(copied), cache=str(tmp_path / "cache"))

    spec = describe(alone)

    assert spec.source == str(copied)
    assert (
        spec.version
        == exported[1]["version"]
        == describe(EncoderConfig(model=str(tiny_model), dims=8)).version
    )
    assert vectors(load_encoder(alone)).shape == (3, 8)
    assert not (tmp_path / "cache").exists()


def test_whoever_runs_the_encoder_may_read_it(exported):
    modes = {file.name: file.stat().st_mode & 0o444 for file in [exported[0], *exported[0].iterdir()]}

    assert modes == dict.fromkeys([exported[0].name, GRAPH, MANIFEST, TOKENIZER], 0o444)


def test_the_first_dimensions_are_normalised_again(exported, tiny_model, encoder_cache):
    whole = vectors(load_encoder(EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))))
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)

    got = vectors(load_encoder(EncoderConfig(model=str(exported[0]))))

    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_exporting_again_changes_nothing(exported, tiny_model, encoder_cache):
    before = (exported[0] / GRAPH).stat().st_mtime_ns
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), dims=8)

    assert export(config, exported[0]) == exported[1]
    assert (exported[0] / GRAPH).stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="is there and is not empty"):
        export(config.model_copy(update={"dims": 4}), exported[0])
    with pytest.raises(UsageError, match="exported encoder already"):
        export(EncoderConfig(model=str(exported[0])), exported[0].parent / "again")


def test_all_dimensions_are_no_slice(tiny_model):
    assert describe(EncoderConfig(model=str(tiny_model), dims=32)) == describe(
        EncoderConfig(model=str(tiny_model))
    )
    with pytest.raises(UsageError, match=r"encoder.dims = 33.*have 32"):
        describe(EncoderConfig(model=str(tiny_model), dims=33))


@pytest.mark.parametrize(
    "changes", [{"precision": "int8"}, {"max_tokens": 20}, {"query_prompt": "q: "}, {"dims": 4}]
)
def test_an_exported_encoder_is_taken_as_it_is(exported, changes):
    (name,) = changes
    with pytest.raises(UsageError, match=rf"encoder.{name} = .*was exported with"):
        describe(EncoderConfig(model=str(exported[0]), **changes))


def lose_tokenizer(folder):
    (folder / TOKENIZER).unlink()


def cut_graph(folder):
    with (folder / GRAPH).open("r+b") as stream:
        stream.truncate(100)


def of_layout_1(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"layout": 1}))


def edit(**changes):
    def change(folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["spec"] |= changes
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_tokenizer, "is damaged"),
        (cut_graph, "is damaged"),
        (of_layout_1, "is of layout 1"),
        (edit(max_tokens=999), "cannot be used"),
        (edit(modules=3), "cannot be used"),
        (edit(wings=2), "wings"),
    ],
)
def test_a_broken_folder_is_refused(copied, damage, message):
    damage(copied)

    with pytest.raises(EncoderError, match=message):
        describe(EncoderConfig(model=str(copied)))


def test_checking_compares_with_the_model_shape_by_shape(exported, tiny_model, other_model, encoder_cache):
    config = EncoderConfig(cache=str(encoder_cache))

    found = check(exported[0], "", config.model_copy(update={"codes": "of another encoder"}))

    assert found["passed"]
    assert {row["graph"] for row in found["rows"]} == {"exported", "optimised"}
    assert max(row["tokens"] for row in found["rows"]) == 64
    with pytest.raises(EncoderError, match="make encoder version"):
        check(exported[0], str(other_model), config)
    with pytest.raises(UsageError, match="is no exported encoder"):
        check(tiny_model, "", config)


@pytest.mark.parametrize(("least", "passed"), [(0.96, True), (0.94, False)])
def test_a_batch_passes_by_its_least_cosine_as_at_the_gate(least, passed):
    unit, across = np.ones((1, 400)) / 20, np.tile([1.0, -1.0], 200)[None] / 20
    batch = (np.ones((1, 3), np.int64),) * 2

    (row,) = shape_by_shape([unit], [least * unit + np.sqrt(1 - least**2) * across], [batch], "int8")

    assert (row["rows"], row["tokens"], row["passed"]) == (1, 3, passed)
    assert row["mean_cosine"] == pytest.approx(least)


def test_checking_sees_a_graph_of_other_weights(copied, other_model, encoder_cache, tmp_path):
    export(EncoderConfig(model=str(other_model), cache=str(encoder_cache), dims=8), tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / GRAPH, copied / GRAPH)

    assert not check(copied, "", EncoderConfig(cache=str(encoder_cache)))["passed"]
