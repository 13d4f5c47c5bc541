"""Late chunking beyond a model's window: tokens see the whole document by another method's positions."""

from __future__ import annotations

import math

import documents
import encoder_models
import numpy as np
import pytest
import runs
import torch
from encoder_models import settings_folder
from transformers import AutoModel

from pipeline.config import EncoderConfig, load
from pipeline.encoders import describe, export, load_encoder, prepare
from pipeline.encoders.exported import read_manifest
from pipeline.encoders.long import LongSpec
from pipeline.encoders.selfextend import positioned_rotary
from pipeline.errors import EncoderError, InputsTooLarge, UsageError
from pipeline.job import make_chunker, make_contract
from pipeline.versions import Contract

WINDOW, LONGEST = 128, 300  # of the tiny BERT, and where it is made to reach


@pytest.fixture(scope="module")
def settings(tiny_model, encoder_cache):
    """Settings of the tiny BERT with a method and the most tokens."""

    def make(long, max_tokens=LONGEST, **changes):
        own = {"model": str(tiny_model), "cache": str(encoder_cache), "long": long, "max_tokens": max_tokens}
        return EncoderConfig(**own | changes)

    return make


@pytest.fixture(scope="module")
def encoder(settings):
    return load_encoder(settings("late-chunking:pi"))


@pytest.fixture(scope="module")
def within(settings):
    """The same within the model's own window."""
    return load_encoder(settings("late-chunking", WINDOW))


@pytest.fixture(scope="module")
def transformer(tiny_model):
    return AutoModel.from_pretrained(tiny_model).eval()


def chunks_of(*sizes):
    """The chunks of one document as the model takes each alone."""
    generator = np.random.default_rng(sum(sizes))
    return [
        np.array([101, *generator.integers(1000, 30000, size - 2).tolist(), 102], np.int32) for size in sizes
    ]


def one_document(chunks):
    return np.zeros(len(chunks), np.int64)


def states_beyond(transformer, ids):
    """float32[n, hidden]: a row run by torch, alone, on positions between the model's own (LongEmbed, §4.1)."""
    own = transformer.embeddings.position_embeddings
    table = own.weight.detach().numpy()[:WINDOW].astype(np.float64)
    spread = 1 if len(ids) <= WINDOW else math.ceil(LONGEST / WINDOW)
    at = np.minimum(np.arange(len(ids)) / spread, WINDOW - 1)
    below = at.astype(int)
    share = (at - below)[:, None]
    rows = (1 - share) * table[below] + share * table[np.minimum(below + 1, WINDOW - 1)]
    weight = torch.from_numpy(rows.astype(np.float32))
    transformer.embeddings.position_embeddings = torch.nn.Embedding(*weight.shape, _weight=weight)
    given = torch.tensor(np.asarray(ids, np.int64))[None]
    try:
        with torch.inference_mode():
            return transformer(
                given, position_ids=torch.arange(len(ids))[None], token_type_ids=torch.zeros_like(given)
            )[0][0].numpy()
    finally:
        transformer.embeddings.position_embeddings = own


def expected_of(transformer, chunks):
    """The vectors of a document's chunks, token by token; the document in as few parts as LONGEST allows."""
    tokens = [(int(token), number) for number, ids in enumerate(chunks) for token in ids[1:-1]]
    room = LONGEST - 2
    step = room - room // 16
    parts = 1 if len(tokens) <= room else math.ceil(len(tokens) / step)
    seen = {number: [] for number in range(len(chunks))}
    for part in range(parts):
        start, end = part * len(tokens) // parts, (part + 1) * len(tokens) // parts
        begin = max(0, end - room)
        states = states_beyond(transformer, [101, *(token for token, _ in tokens[begin:end]), 102])
        for place in range(start, end):
            seen[tokens[place][1]].append(states[1 + place - begin])
        if part == 0:
            seen[0].append(states[0])
        if part == parts - 1:
            seen[len(chunks) - 1].append(states[-1])
    means = np.stack([np.mean(states, axis=0) for states in seen.values()])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("sizes", [(40, 9), (80, 90, 60), (150, 148), (150, 148, 3), (90,) * 8])
def test_a_chunk_is_the_mean_of_its_states_on_the_documents_positions(encoder, transformer, sizes):
    chunks = chunks_of(*sizes)

    got = encoder.encode(chunks, one_document(chunks))

    np.testing.assert_allclose(got, expected_of(transformer, chunks), atol=1e-5)


def test_documents_within_the_window_have_the_vectors_they_had_to_the_bit(encoder, within):
    for sizes in ((7,), (40, 9, 30), (64, 66)):  # the last has 128 tokens with its special tokens once
        chunks = chunks_of(*sizes)
        np.testing.assert_array_equal(
            *(one.encode(chunks, one_document(chunks)) for one in (encoder, within))
        )
    chunks = chunks_of(64, 67)
    ours, theirs = (one.encode(chunks, one_document(chunks)) for one in (encoder, within))
    assert np.abs(ours - theirs).max() > 1e-3


def test_a_vector_does_not_depend_on_the_documents_beside(encoder):
    documents = [chunks_of(*sizes) for sizes in ((40, 9), (90, 80, 90), (7,), (90,) * 7, (64, 64))]
    owners = np.repeat(np.arange(len(documents)), list(map(len, documents)))
    flat = [ids for chunks in documents for ids in chunks]

    alone = np.concatenate([encoder.encode(chunks, one_document(chunks)) for chunks in documents])

    np.testing.assert_allclose(encoder.encode(flat, owners), alone, atol=1e-6)
    encoder.runner.batch_tokens, usual = 10_000, encoder.runner.batch_tokens
    np.testing.assert_allclose(encoder.encode(flat, owners), alone, atol=1e-6)
    encoder.runner.batch_tokens = usual


def test_queries_and_documents_of_one_chunk_have_the_methods_own_vectors(encoder, settings):
    whole = load_encoder(settings("pi"))
    texts = ["a river", "the water of the river runs " * 30]
    inputs = [whole.tokenizer.encode(text) for text in texts]
    assert len(inputs[0]) < WINDOW < len(inputs[1])

    got = encoder.encode(inputs, np.arange(2))

    np.testing.assert_allclose(got, whole.encode(inputs), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(texts), whole.encode_queries(texts), atol=1e-6)


def test_grouped_distances(tmp_path, encoder_cache):
    folder = encoder_models.tiny(tmp_path / "model", "ModernBert", "mean")
    config = EncoderConfig(model=str(folder), cache=str(encoder_cache), long="late-chunking:self-extend")
    encoder = load_encoder(config.model_copy(update={"max_tokens": 260}))
    model = AutoModel.from_pretrained(folder).eval()

    for sizes in ((70, 90, 80), (40, 60)):
        chunks = chunks_of(*sizes)
        text = np.concatenate([[101], *(ids[1:-1] for ids in chunks), [102]])
        with torch.inference_mode(), positioned_rotary(model, LongSpec("self-extend", 130, 2), len(text)):
            states = model(torch.from_numpy(text)[None])[0][0].numpy()
        cuts = 1 + np.cumsum([size - 2 for size in sizes])[:-1]
        means = np.stack([part.mean(axis=0) for part in np.split(states, cuts)])
        expected = means / np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.encode(chunks, one_document(chunks)), expected, atol=1e-5)


def test_the_version_goes_by_the_method_and_plain_late_chunking_keeps_its_own(settings):
    late = LongSpec("late-chunking", WINDOW)

    assert describe(settings("late-chunking", WINDOW)).long == late
    assert describe(settings("late-chunking:pi")).long == LongSpec("late-chunking:pi", WINDOW, 3)
    versions = {
        describe(settings(long, most)).version
        for long in ("pi", "late-chunking:pi", "late-chunking:rp")
        for most in (LONGEST, 256)
    }
    assert len(versions | {describe(settings("late-chunking", WINDOW)).version}) == 7


def test_an_exported_one_says_what_it_is(settings):
    config = settings("late-chunking:pi")
    folder = prepare(describe(config), config)

    manifest = read_manifest(folder)

    long = {"method": "late-chunking:pi", "window": WINDOW, "factor": 3, "attention_scaling": False}
    assert manifest["spec"]["long"] == long
    assert all(figures["difference"] < 1e-5 for figures in manifest["parity"].values())
    alone = EncoderConfig(model=str(folder))
    assert describe(alone).version == describe(config).version
    chunks = chunks_of(100, 100)
    assert load_encoder(alone).encode(chunks, one_document(chunks)).shape == (2, 32)
    with pytest.raises(UsageError, match=r"= 'late-chunking', and .* exported with 'late-chunking:pi'"):
        describe(alone.model_copy(update={"long": "late-chunking"}))


def test_a_contract_names_it_in_full(settings):
    flags = {
        f"encoder.{name}": value for name, value in settings("late-chunking:rp").model_dump().items() if value
    }
    made = load(None, flags | {"chunking.max_tokens": 40})
    spec = describe(made.encoder)

    held = Contract.read(make_contract(made, spec, "cut").metadata(), "docs")

    assert describe(held.encoder_config(EncoderConfig(cache=made.encoder.cache))).version == spec.version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long": "late-chunking:pi", "max_tokens": 0}, r"'late-chunking:pi' .*max_tokens = 0.*above 512"),
        ({"long": "late-chunking:pi", "max_tokens": 512}, r"max_tokens = 512.*above 512"),
        (
            {"long": "late-chunking:rp", "max_tokens": 8193},
            r"At most 16 times.*or take encoder.long = late-chunking",
        ),
        (
            {"long": "late-chunking:ntk", "max_tokens": 1024},
            r"learned positions\) does not allow it\. One of .*, late-chunking, late-chunking:gp, late-chunking:rp",
        ),
        ({"long": "late-chunking", "attention_scaling": True}, "changes the graph"),
    ],
)
def test_what_is_no_extension_is_refused_before_anything_is_written(tmp_path, changes, message):
    cache = tmp_path / "cache"
    config = EncoderConfig(model=str(settings_folder(tmp_path / "model")), cache=str(cache), **changes)

    with pytest.raises(UsageError, match=message):
        export(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.onnx"))


def test_another_pooling_has_no_states_to_share(tmp_path):
    cls = settings_folder(tmp_path / "cls", **{"1_Pooling/config.json": {"pooling_mode": "cls"}})

    with pytest.raises(UsageError, match=r"One of split, error, truncate, pcw, gp, rp, pi, pi-dynamic\."):
        describe(EncoderConfig(model=str(cls), cache=str(tmp_path), long="late-chunking:pi", max_tokens=1024))


def test_a_run_that_does_not_cut_them_ends_before_the_encoder_is_exported(tmp_path, tiny_model):
    source = documents.write(tmp_path / "docs.parquet", documents.rows(2))
    late = {"encoder__long": "late-chunking", "chunking__max_tokens": 0}
    with pytest.raises(UsageError, match=r"'late-chunking' with chunking.max_tokens = 0"):
        runs.run(source, runs.settings(tiny_model, tmp_path / "cache", f"memory:{tmp_path}", **late))
    assert not list((tmp_path / "cache").glob("*/model.onnx"))


def test_documents_must_be_cut_for_it(encoder, settings):
    flags = {
        f"encoder.{name}": value for name, value in settings("late-chunking:pi").model_dump().items() if value
    }

    with pytest.raises(UsageError, match=r"'late-chunking:pi' with chunking.max_tokens = 0"):
        make_chunker(load(None, flags), encoder.spec, encoder.tokenizer)
    assert make_chunker(
        load(None, flags | {"chunking.max_tokens": 40}), encoder.spec, encoder.tokenizer
    ).version
    with pytest.raises(EncoderError, match=r"'late-chunking:pi'.*Whole documents"):
        encoder.encode(chunks_of(9))


def test_a_document_that_does_not_fit_into_memory_is_named_by_its_chunks(encoder):
    run = encoder.runner._run

    def crowded(ids, mask):
        if ids.shape[1] > 200:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return run(ids, mask)

    small, large = chunks_of(40, 9), chunks_of(90, 80, 90)
    encoder.runner._run = crowded
    try:
        with pytest.raises(InputsTooLarge, match="3 of 5 inputs") as some:
            encoder.encode([*small, *large], np.array([0, 0, 1, 1, 1]))
        with pytest.raises(InputsTooLarge, match="3 of 3 inputs") as all_of_them:
            encoder.encode(large, one_document(large))
    finally:
        encoder.runner._run = run

    assert sorted(some.value.rows) == [2, 3, 4]
    assert np.isnan(some.value.vectors).all(axis=1).tolist() == [False, False, True, True, True]
    assert all_of_them.value.vectors.shape == (3, 32)
