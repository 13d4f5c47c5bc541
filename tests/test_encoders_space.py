"""Spaces fitted on a sample: the maps of the papers, in the graph as in numpy, and what becomes of versions."""

from __future__ import annotations

import json
import shutil

import encoder_models
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders import check, describe, export, export_spaced, load_encoder, read_sample
from pipeline.encoders.space import SPACE, Space, fit, load_space, read_kind, save_space
from pipeline.errors import EncoderError, UsageError

RANDOM = np.random.default_rng(5)
# A cloud far from the origin, long in few directions, as encoders make them.
CLOUD = RANDOM.normal(size=(400, 12)) * np.geomspace(5, 0.05, 12) @ RANDOM.normal(size=(12, 12)) + 7
WORDS = [
    "rain",
    "river",
    "hill",
    "town",
    "pump",
    "water",
    "chess",
    "music",
    "share",
    "price",
    "stone",
    "light",
]
TEXTS = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(3, 12))) + f" {number}" for number in range(150)]
LONG = " ".join(TEXTS[:20])


def mapped(space, vectors):
    """The map without its normalisation."""
    return (vectors - space.mean) @ (np.eye(len(space.mean)) if space.matrix is None else space.matrix)


# --- the maps


def test_centring_takes_the_mean_off():
    found = mapped(fit("centre", CLOUD), CLOUD)

    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found - found[0], CLOUD - CLOUD[0], atol=1e-5)


@pytest.mark.parametrize("top", [1, 3])
def test_all_but_the_top_leaves_no_variance_in_the_first_directions(top):
    spread = np.sort(np.linalg.eigvalsh(np.cov(CLOUD.T)))

    left = np.sort(np.linalg.eigvalsh(np.cov(mapped(fit(f"all-but-the-top:{top}", CLOUD), CLOUD).T)))

    np.testing.assert_allclose(left[top:], spread[:-top], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(left[:top], 0, atol=1e-6)


def test_all_but_the_top_takes_a_hundredth_of_the_dimensions_by_itself():
    wide = RANDOM.normal(size=(400, 250))

    assert np.linalg.matrix_rank(fit("all-but-the-top", wide).matrix) == 248
    assert np.linalg.matrix_rank(fit("all-but-the-top", CLOUD).matrix) == 11


@pytest.mark.parametrize("kept", [4, 12])
def test_whitened_directions_vary_alike_and_are_not_correlated(kept):
    space = fit("whiten" if kept == 12 else f"whiten:{kept}", CLOUD)

    assert space.dims == kept
    np.testing.assert_allclose(np.cov(mapped(space, CLOUD).T, bias=True), np.eye(kept), atol=1e-3)


def test_directions_without_variance_are_left_out_and_not_blown_up():
    flat = CLOUD.copy()
    flat[:, 3] = flat[:, :3].sum(axis=1)  # one direction is another's sum

    space = fit("whiten", flat)

    assert space.dims == 11
    assert np.abs(space.matrix).max() < 1e3
    with pytest.raises(EncoderError, match="vary in 1 of 12 directions"):
        fit("whiten:4", np.outer(RANDOM.normal(size=400), np.ones(12)))


def test_a_kind_with_the_number_it_has_anyway_is_the_same_space():
    flat = CLOUD.copy()
    flat[:, 3] = flat[:, :3].sum(axis=1)

    for usual, same, other in (
        ("whiten", "whiten:11", "whiten:10"),
        ("all-but-the-top", "all-but-the-top:1", "all-but-the-top:2"),
    ):
        assert fit(usual, flat).module == fit(same, flat).module
        assert fit(usual, flat).kind == usual
        assert fit(other, flat).kind == other
        assert fit(other, flat).module != fit(usual, flat).module


@given(st.integers(0, 2**32 - 1), st.sampled_from(["centre", "all-but-the-top:2", "whiten:5"]))
@settings(max_examples=30, deadline=None)
def test_the_map_of_a_mean_is_the_mean_of_the_map(seed, kind):
    windows = np.random.default_rng(seed).normal(size=(4, 12)) * 3
    space = fit(kind, CLOUD)

    np.testing.assert_allclose(
        mapped(space, windows.mean(axis=0, keepdims=True))[0], mapped(space, windows).mean(axis=0), atol=1e-4
    )
    assert np.linalg.norm(space.apply(windows), axis=1) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["whiten", "all-but-the-top", "centre"])
def test_samples_that_are_too_small_are_refused(kind):
    least = {"whiten": 1000, "all-but-the-top": 500, "centre": 100}[kind]
    cloud = RANDOM.normal(size=(least, 500))

    fit(kind, cloud)
    with pytest.raises(UsageError, match=f"a sample of {least - 1} texts for --space {kind}") as caught:
        fit(kind, cloud[1:])
    assert f"At least {least}" in caught.value.need


@pytest.mark.parametrize(
    "text", ["white", "centre:3", "whiten:", "whiten:x", "whiten:0", "", "whiten:-1", "whiten:٣"]
)
def test_kinds_that_are_none(text):
    with pytest.raises(UsageError, match="--space"):
        read_kind(text)


def test_more_directions_than_there_are():
    with pytest.raises(UsageError, match="--space whiten:12, and the model's vectors have 12 dimensions"):
        fit("whiten:12", CLOUD)
    with pytest.raises(EncoderError, match="NaN"):
        fit("centre", np.where(CLOUD.max() - 1e-9 < CLOUD, np.nan, CLOUD))


def test_a_space_is_named_by_its_numbers_and_another_file_in_its_place_is_found_out(tmp_path):
    space, other = fit("whiten:4", CLOUD), fit("whiten:4", CLOUD[:300])
    save_space(space, tmp_path / SPACE)

    found = load_space(tmp_path, ("mean", space.module, "normalize"))

    assert found is not None
    assert (found.module, found.kind, found.texts) == (space.module, "whiten:4", 400)
    assert load_space(tmp_path, ("mean", "normalize")) is None
    assert other.module != space.module
    with pytest.raises(EncoderError, match="it holds space:whiten:4"):
        load_space(tmp_path, (other.module,))
    (tmp_path / SPACE).write_bytes(b"no")
    with pytest.raises(EncoderError, match="cannot be used"):
        load_space(tmp_path, (space.module,))


# --- encoders


def config_of(model, cache, **changes):
    return EncoderConfig(model=str(model), cache=str(cache), **changes)


def encode(config, texts=TEXTS, documents=None):
    encoder = load_encoder(config)
    try:
        inputs = [encoder.tokenizer.encode(text) for text in texts]
        return encoder.encode(inputs, np.arange(len(inputs)) if documents is None else documents)
    finally:
        encoder.close()


@pytest.fixture(scope="module")
def raw_model(tiny_model, tmp_path_factory):
    """The tiny model without its normalisation: what spaces are fitted on, by a way of its own."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("raw") / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    return folder


def test_the_graph_is_model_and_map(tiny_model, raw_model, encoder_cache, tmp_path):
    config = config_of(tiny_model, encoder_cache)
    raw = encode(config_of(raw_model, encoder_cache))

    manifest = export_spaced(config, tmp_path / "spaced", "whiten", TEXTS)

    got = encode(EncoderConfig(model=str(tmp_path / "spaced")))
    np.testing.assert_allclose(got, fit("whiten", raw).apply(raw), atol=2e-5)
    assert manifest["spec"]["dims"] == got.shape[1]
    assert manifest["version"] != describe(config).version


def test_first_dimensions_first_layers_and_lower_precision_come_before_the_space(
    tiny_model, encoder_cache, tmp_path
):
    config = config_of(tiny_model, encoder_cache, dims=16, layers=1, precision="fp16")

    manifest = export_spaced(config, tmp_path / "spaced", "all-but-the-top:2", TEXTS)

    found = check(tmp_path / "spaced", "", EncoderConfig(cache=str(encoder_cache)))
    assert found["passed"]
    assert (
        found["version"]
        == manifest["version"]
        == describe(EncoderConfig(model=str(tmp_path / "spaced"))).version
    )
    assert (manifest["spec"]["dims"], manifest["spec"]["precision"]) == (16, "fp16")
    got = encode(EncoderConfig(model=str(tmp_path / "spaced")))
    assert np.linalg.matrix_rank(got, tol=1e-3) == 14


def test_a_graph_that_does_not_do_what_the_map_says_fails_the_check(tiny_model, encoder_cache, tmp_path):
    folder = tmp_path / "spaced"
    export_spaced(config_of(tiny_model, encoder_cache), folder, "centre", TEXTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    space = load_space(folder, tuple(manifest["spec"]["modules"]))
    graph = (folder / "model.onnx").read_bytes()
    mean = space.mean.tobytes()
    assert graph.count(mean) == 1
    (folder / "model.onnx").write_bytes(graph.replace(mean, (space.mean * 1.5).tobytes()))

    assert not check(folder, "", EncoderConfig(cache=str(encoder_cache)))["passed"]


@pytest.mark.parametrize("method", [{"long": "pcw", "max_tokens": 300}, {"long": "late-chunking"}])
def test_an_output_beside_the_vectors_is_checked_too(method, tiny_model, encoder_cache, tmp_path):
    folder = tmp_path / "spaced"
    export_spaced(config_of(tiny_model, encoder_cache, **method), folder, "centre", TEXTS)
    config = EncoderConfig(cache=str(encoder_cache))
    assert check(folder, "", config)["passed"]
    graph = onnx.load(folder / "model.onnx")
    beside = graph.graph.output[1].name
    (node,) = (node for node in graph.graph.node if beside in node.output)
    (minus,) = (made for made in graph.graph.node if node.input[0] in made.output)
    (mean,) = (one for one in graph.graph.initializer if one.name == minus.input[1])
    mean.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(mean), mean.name))
    onnx.save(graph, folder / "model.onnx")

    assert not check(folder, "", config)["passed"]


@pytest.mark.parametrize("method", [{"long": "pcw", "max_tokens": 300}, {"long": "late-chunking"}])
def test_vectors_that_are_means_are_mapped_as_means(method, tiny_model, raw_model, encoder_cache, tmp_path):
    texts = [LONG, *TEXTS] if "max_tokens" in method else TEXTS
    documents = np.arange(len(texts)) // 3  # chunks that see each other where they are encoded late
    raw = config_of(raw_model, encoder_cache, **method)

    export_spaced(config_of(tiny_model, encoder_cache, **method), tmp_path / "spaced", "whiten:8", texts)

    got = encode(EncoderConfig(model=str(tmp_path / "spaced")), texts, documents)
    expected = fit("whiten:8", encode(raw, texts)).apply(encode(raw, texts, documents))
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_space_behind_an_exported_encoder_and_behind_a_model_are_one(tiny_model, encoder_cache, tmp_path):
    config = config_of(tiny_model, encoder_cache)
    export(config, tmp_path / "plain")

    behind = export_spaced(EncoderConfig(model=str(tmp_path / "plain")), tmp_path / "a", "centre", TEXTS)
    at_once = export_spaced(config, tmp_path / "b", "centre", TEXTS)

    assert behind["version"] == at_once["version"]
    assert export_spaced(config, tmp_path / "b", "centre", [*TEXTS, TEXTS[0], " "]) == at_once
    with pytest.raises(UsageError, match="is there and is not empty"):
        export_spaced(config, tmp_path / "b", "centre", TEXTS[:120])
    with pytest.raises(UsageError, match="has a fitted space already"):
        export_spaced(EncoderConfig(model=str(tmp_path / "b")), tmp_path / "c", "centre", TEXTS)


def test_a_model_that_was_moved_after_it_was_cached_is_found_where_it_is(tmp_path, tiny_model, encoder_cache):
    first, then = tmp_path / "first", tmp_path / "then"
    cached = config_of(first, tmp_path / "cache")
    shutil.copytree(tiny_model, first)
    load_encoder(cached).close()
    first.rename(then)

    moved = export_spaced(config_of(then, tmp_path / "cache"), tmp_path / "out", "centre", TEXTS)

    assert moved["spec"]["source"] == str(then)


def test_the_command(tiny_model, encoder_cache, tmp_path):
    file = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"body": [*TEXTS, None], "n": list(range(151))}), file)
    command = ["encoders", "export", str(tiny_model), "--out", str(tmp_path / "out"), "--json"]
    command += ["--set", f"encoder.cache={encoder_cache}"]

    done = CliRunner().invoke(app, [*command, "--space", "centre", "--sample", str(file), "--text", "body"])

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["space"] == {"kind": "centre", "texts": 150}
    for flags, said in [
        (["--space", "centre"], "--space without --sample"),
        (["--space", "centre", "--sample", str(file)], "without 'text'; its columns are body, n"),
        (["--space", "centre", "--sample", str(file), "--text", "n"], "of type int64"),
        (["--space", "whiten:3", "--sample", str(tmp_path / "no.parquet")], "cannot be read"),
    ]:
        failed = CliRunner().invoke(app, [*command, *flags])
        assert isinstance(failed.exception, UsageError)
        assert said in str(failed.exception)


def test_a_sample_has_no_nulls(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "t.parquet")

    assert read_sample(tmp_path / "t.parquet", "text") == ["a", "b"]
    assert Space("centre", np.zeros(3, np.float32), None, 1).dims == 3


def test_a_language_model_of_several_prompts_is_centred_by_the_mean_of_their_raw_vectors(
    encoder_cache, tmp_path
):
    folder = encoder_models.tiny_decoder(tmp_path / "model")
    texts = [f"{WORDS[number % len(WORDS)]} {number}" for number in range(120)]  # beside long prompts
    config = config_of(folder, encoder_cache, decoder=DecoderConfig(prompt="metaeol"))

    export_spaced(config, tmp_path / "spaced", "centre", texts)

    got, plain = encode(EncoderConfig(model=str(tmp_path / "spaced")), texts), encode(config, texts)
    assert check(tmp_path / "spaced", "", EncoderConfig(cache=str(encoder_cache)))["passed"]
    assert np.linalg.norm(got, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(got.mean(axis=0)) < 0.5 * np.linalg.norm(plain.mean(axis=0))
