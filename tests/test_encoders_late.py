"""Late chunking: chunks as they are cut, their vectors out of the states of the whole document."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from documents import rows, write
from encoder_models import settings_folder
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from pipeline.config import EncoderConfig, load
from pipeline.encoders import describe, load_encoder
from pipeline.encoders.late import Means, passes
from pipeline.errors import EncoderError, UsageError
from pipeline.job import make_chunker
from pipeline.lane.embedding import embed_chunks
from pipeline.lane.windows import NO_CHUNKS, Window, document_numbers, gather
from pipeline.sources import open_source

AROUND = (2, 1)


def chunks_of(sizes):
    """Chunks of numbered tokens, each between -2, -1 and -3 as the model takes it alone."""
    ends = np.cumsum(sizes)
    return [
        np.concatenate([[-2, -1], np.arange(end - size, end), [-3]]).astype(np.int32)
        for size, end in zip(sizes, ends, strict=True)
    ]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), window=st.integers(8, 60))
def test_every_token_counts_once_for_its_own_chunk(sizes, window):
    todo = list(passes(chunks_of(sizes), AROUND, window))

    counted = [
        pair
        for one in todo
        for pair in zip(one.ids.tolist(), one.owners.tolist(), strict=True)
        if pair[1] >= 0
    ]
    own = np.repeat(np.arange(len(sizes)), sizes).tolist()
    assert [pair for pair in counted if pair[0] >= 0] == list(enumerate(own))
    assert [pair for pair in counted if pair[0] < 0] == [(-2, 0), (-1, 0), (-3, len(sizes) - 1)]
    assert all(len(one.ids) <= window for one in todo)
    for one in todo:
        text = one.ids[2:-1]
        assert (np.diff(text) == 1).all()
    assert len(todo) == 1 or all(len(one.ids) == window for one in todo[1:])  # what room is left is context


def test_means_do_not_depend_on_the_order_of_passes():
    generator = np.random.default_rng(0)
    todo = list(passes(chunks_of([20, 3, 40]), AROUND, 16))
    states = [generator.standard_normal((len(one.ids), 8)) for one in todo]
    found = []
    for order in (1, -1):
        means = Means(3, 4)
        for one, state in list(zip(todo, states, strict=True))[::order]:
            means.add(state, one.owners)
        found.append(means.vectors(normalised=True))

    np.testing.assert_allclose(*found, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-6)


@pytest.fixture(scope="module")
def config(tiny_model, encoder_cache):
    return EncoderConfig(
        model=str(tiny_model), cache=str(encoder_cache), max_tokens=128, long="late-chunking"
    )


@pytest.fixture(scope="module")
def encoder(config):
    return load_encoder(config)


def test_a_chunk_is_the_mean_of_its_states_in_the_document(encoder, tiny_model):
    bodies = [np.arange(1000, 1040), np.arange(2000, 2007), np.arange(3000, 3050)]
    chunks = [np.array([101, *body, 102], np.int32) for body in bodies]
    with torch.inference_mode():
        whole = torch.tensor([[101, *np.concatenate(bodies).tolist(), 102]])
        states = AutoModel.from_pretrained(tiny_model).eval()(whole)[0][0].numpy()
    expected = np.stack([states[:41].mean(axis=0), states[41:48].mean(axis=0), states[48:].mean(axis=0)])

    got = encoder.encode(chunks, np.array([7, 7, 7]))

    np.testing.assert_allclose(got, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_document_of_one_chunk_has_its_usual_vector(encoder, config):
    plain = load_encoder(config.model_copy(update={"long": "split"}))
    texts = ["a river", "the water of the river runs " * 10]

    inputs = [encoder.tokenizer.encode(text) for text in texts]

    np.testing.assert_allclose(encoder.encode(inputs, np.array([0, 1])), plain.encode(inputs), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(texts), plain.encode_queries(texts), atol=1e-6)
    assert encoder.encode([], np.array([], np.int64)).shape == (0, 32)


def test_chunks_without_their_documents_are_refused(encoder):
    with pytest.raises(EncoderError, match=r"chunks without their documents.*reindex --from"):
        encoder.encode([np.array([101, 5, 102], np.int32)])


def pieces(*counts):
    """Windows of which each holds the next chunks of documents of 5, 1 and 3 chunks."""
    listed = [(n, i, c) for n, c in enumerate((5, 1, 3)) for i in range(c)]
    template = {name: "" for name in NO_CHUNKS.schema.names} | {"start": 0, "end": 0, "sequence": 0, "row": 0}
    at = 0
    for count in counts:
        taken = [
            template | {"document_id": str(n), "chunk_index": i, "chunk_count": c, "token_ids": [n, i]}
            for n, i, c in listed[at : at + count]
        ]
        at += count
        yield Window(pa.RecordBatch.from_pylist(taken, schema=NO_CHUNKS.schema), rows=1)


@pytest.mark.parametrize("counts", [(9,), (3, 3, 3), (1,) * 9, (0, 4, 0, 2, 3, 0)])
def test_no_document_goes_on_in_another_window(counts):
    windows = list(gather(pieces(*counts), 4, whole=True))

    assert [row["token_ids"] for w in windows for row in w.chunks.to_pylist()] == [
        row["token_ids"] for w in pieces(9) for row in w.chunks.to_pylist()
    ]
    assert sum(window.rows for window in windows) == len(counts)
    for window in windows:
        indexes = window.chunks.column("chunk_index").to_pylist()
        assert not indexes or indexes[0] == 0
        assert len(set(document_numbers(window.chunks).tolist())) == indexes.count(0)


def test_vectors_do_not_depend_on_windows_and_batches(config, tmp_path):
    file = write(tmp_path / "documents.parquet", rows(12, most_words=400))
    flags = {f"encoder.{name}": getattr(config, name) for name in ("model", "cache", "max_tokens", "long")}
    found = []
    for window, batch in ((20, 64), (100_000, 4096)):
        sizes = {"chunking.max_tokens": 40, "run.window_tokens": window, "encoder.batch_tokens": batch}
        settings = load(None, flags | sizes)
        source = open_source(str(file), settings.source, tmp_path)
        found.append(embed_chunks(source, settings, load_encoder(settings.encoder), lambda _: None))

    assert len(found[0].vectors) > 24
    np.testing.assert_array_equal(found[0].owners, found[1].owners)
    np.testing.assert_allclose(found[0].vectors, found[1].vectors, atol=1e-5)


def test_what_does_not_go_with_late_chunking(tmp_path, config):
    cls = settings_folder(tmp_path / "cls", **{"1_Pooling/config.json": {"pooling_mode": "cls"}})
    with pytest.raises(UsageError, match=r"'late-chunking'.*does not allow"):
        describe(config.model_copy(update={"model": str(cls), "max_tokens": 0}))
    flags = {"encoder.model": config.model, "encoder.long": "late-chunking", "encoder.cache": config.cache}
    encoder = load_encoder(config)
    for chunking in ({}, {"chunking.max_tokens": 40, "chunking.overlap_tokens": 8}):
        with pytest.raises(UsageError, match="do not overlap"):
            make_chunker(load(None, flags | chunking), encoder.spec, encoder.tokenizer)
