"""Documents that are longer than a chunk: rejected, or without their end, where that was asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from encoder_models import settings_folder
from tokenizer_files import byte_level, mini_lm

from pipeline.chunking import Chunker
from pipeline.config import ChunkingConfig, load
from pipeline.encoders import describe
from pipeline.errors import UsageError
from pipeline.job import make_chunker
from pipeline.schemas import DOCUMENTS

LONG = "The river rises in the hills. " * 40
TEXTS = ["a short one", LONG, "another", "word " * 38]


def chunk(too_long, tokenizer, texts=TEXTS):
    rows = [
        {
            "document_id": str(n),
            "namespace": "",
            "text": text,
            "metadata": "{}",
            "sequence": 0,
            "operation": "upsert",
        }
        | {"row": n}
        for n, text in enumerate(texts)
    ]
    chunker = Chunker(tokenizer, ChunkingConfig(), 40, too_long)
    batches = list(chunker.chunk(pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS), "file"))
    chunks = [row for batch in batches for row in batch.chunks.to_pylist()]
    rejected = [rejected for batch in batches for rejected in batch.rejected]
    return chunks, rejected, sum(batch.truncated for batch in batches)


def test_a_document_that_is_too_long_is_rejected_and_the_others_are_not():
    chunks, rejected, truncated = chunk("error", mini_lm())

    assert [row["document_id"] for row in chunks] == ["0", "2", "3"]
    assert [(r.document_id, r.stage, r.reason) for r in rejected] == [("1", "chunking", "too_long")]
    assert "Its 280 tokens are more than the 38" in rejected[0].message
    assert not truncated


@pytest.mark.parametrize("tokenizer", [mini_lm(), mini_lm("passage: "), byte_level()])
def test_a_document_that_is_too_long_loses_its_end_and_is_counted(tokenizer):
    chunks, rejected, truncated = chunk("truncate", tokenizer)

    assert [(row["document_id"], row["chunk_count"]) for row in chunks] == [(str(n), 1) for n in range(4)]
    assert truncated == sum(len(tokenizer.encode(text)) > 40 for text in TEXTS)
    assert not rejected
    cut = chunks[1]
    assert LONG.startswith(cut["text"])
    assert not cut["text"].endswith(" ")
    assert LONG[len(cut["text"])] == " "  # no word is cut
    assert 30 < len(cut["token_ids"]) <= 40
    np.testing.assert_array_equal(cut["token_ids"], tokenizer.encode(cut["text"]))


def test_a_text_without_a_word_s_end_is_cut_all_the_same():
    chunks, _, truncated = chunk("truncate", byte_level(), ["x7" * 400])

    assert truncated == len(chunks) == 1
    assert len(chunks[0]["token_ids"]) <= 40


def test_chunks_cut_another_way_have_another_version():
    versions = {
        Chunker(mini_lm(), ChunkingConfig(), 40, how).version for how in ("split", "error", "truncate")
    }

    assert len(versions) == 3
    assert Chunker(mini_lm(), ChunkingConfig(), 40).version in versions


def test_where_chunks_are_asked_for_no_document_is_too_long(tmp_path):
    folder = settings_folder(tmp_path / "model")

    def chunker(long, max_tokens, chunk_tokens):
        encoder = {"encoder.model": str(folder), "encoder.long": long, "encoder.max_tokens": max_tokens}
        settings = load(None, encoder | {"chunking.max_tokens": chunk_tokens})
        return make_chunker(settings, describe(settings.encoder), mini_lm())

    assert chunker("pi", 1024, 200).version == chunker("split", 512, 200).version
    assert chunker("pi", 1024, 0).version != chunker("pcw", 1023, 0).version
    with pytest.raises(UsageError, match=r"'truncate' and chunking\.max_tokens = 200"):
        chunker("truncate", 0, 200)
