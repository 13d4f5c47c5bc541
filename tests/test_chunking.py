from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import byte_level, metaspace, mini_lm, word_piece

from pipeline.chunking import Chunker, chunker
from pipeline.config import ChunkingConfig
from pipeline.errors import BrokenInvariant, UsageError
from pipeline.schemas import CHUNKS, DOCUMENTS, check, point_id

FAMILIES = {
    "word_piece": word_piece(),
    "byte_level": byte_level(),
    "metaspace": metaspace(),
    "mini_lm": mini_lm(),
    "prompted": mini_lm("passage: "),
}
AWKWARD = [
    *(
        "naïve",
        "e\u0301",
        "日本語です。",
        "\u200b",
        "\ufeff",
        "👩‍👩‍👧",
        "\x00",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "ﷺ",
    ),
    *(
        "[SEP]",
        "</s>",
        "a" * 30,
        "x" * 150,
        "don't",
        "한국어",
        "!!!",
        "...",
        "Dr. No.",
        "# Title",
        "- item",
        "> quote",
    ),
    *("```\ncode\n\ncode\n```", "|a|b|\n|-|-|\n|1|2|", "The end.", "See 3.14!", "0123456789abcdef" * 4),
]
GAPS = [" ", "\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\t", "\u00a0", "   ", "\n" * 12, "", " \u0301"]
texts = st.lists(
    st.tuples(st.one_of(st.text(max_size=20), st.sampled_from(AWKWARD)), st.sampled_from(GAPS)), max_size=25
).map(lambda pairs: "".join(word + gap for word, gap in pairs))


def documents(*texts: str, namespace: str = "") -> pa.RecordBatch:
    rows = [
        {
            "document_id": f"d{row}",
            "namespace": namespace,
            "text": text,
            "metadata": '{"year": 1999}',
            "sequence": 7,
            "operation": "upsert",
            "row": row,
        }
        for row, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)


def chunks(made: Chunker, *texts: str) -> list[dict]:
    batches = list(made.chunk(documents(*texts), "file"))
    return [row for batch in batches for row in check(batch.chunks, CHUNKS).to_pylist()]


def cut(name: str, text: str, budget: int = 24, **config) -> list[str]:
    return [row["text"] for row in chunks(Chunker(FAMILIES[name], ChunkingConfig(**config), budget), text)]


@settings(max_examples=200)
@given(texts, st.sampled_from(list(FAMILIES)), st.integers(13, 40), st.integers(0, 4), st.booleans())
def test_every_chunk_fits_points_into_the_text_and_nothing_is_lost(text, name, budget, overlap, markdown):
    config = ChunkingConfig(overlap_tokens=overlap, format="markdown" if markdown else "plain")
    rows = chunks(Chunker(FAMILIES[name], config, budget), text)
    for row in rows:
        assert text[row["start"] : row["end"]] == row["text"] == row["text"].strip() != ""
        assert row["token_ids"] == FAMILIES[name].encode(row["text"]).tolist()
        assert len(row["token_ids"]) <= budget
    assert [row["chunk_index"] for row in rows] == list(range(len(rows)))
    assert {row["chunk_count"] for row in rows} <= {len(rows)}
    for before, after in itertools.pairwise(rows):
        assert before["start"] < after["start"]
        assert before["end"] < after["end"]
        assert overlap or before["end"] <= after["start"]
    covered = {place for row in rows for place in range(row["start"], row["end"])}
    if rows:
        assert {place for place, c in enumerate(text) if not c.isspace()} <= covered
    else:
        assert not len(FAMILIES[name].tokenize(text).ids) or not text.strip()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "text",
    ["a" * 3000, "!?" * 900, "日本語" * 400, "👩‍👩‍👧" * 200, "\x00a" * 400, "\n" * 500 + "a", "ab " * 900],
)
def test_monotonous_texts_are_cut_within_the_budget(name, text):
    rows = chunks(Chunker(FAMILIES[name], ChunkingConfig(overlap_tokens=3), 16), text)
    assert all(len(row["token_ids"]) <= 16 for row in rows)
    assert all(row["token_ids"] == FAMILIES[name].encode(row["text"]).tolist() for row in rows)
    assert rows[-1]["end"] == len(text.rstrip())


def test_paragraphs_are_preferred_to_sentences_and_sentences_to_words():
    first, second = (
        "One two three four five. Six seven eight nine ten.",
        "Eleven twelve. Thirteen fourteen fifteen.",
    )
    assert cut("mini_lm", f"{first}\n\n{second}", 18) == [first, second]
    assert cut("mini_lm", f"{first} {second}", 18) == [
        "One two three four five. Six seven eight nine ten.",
        "Eleven twelve. Thirteen fourteen fifteen.",
    ]
    assert cut("mini_lm", "Dr. Smith and Mr. Jones met at noon. They had lunch together.", 14) == [
        "Dr. Smith and Mr. Jones met at noon.",
        "They had lunch together.",
    ]
    assert cut("mini_lm", "one two three four five six seven eight nine ten", 10)[0].split()[-1] in {
        "five",
        "six",
        "seven",
    }


def test_japanese_is_cut_at_its_sentences():
    made = cut("mini_lm", "今日は天気がいい。" * 8, 24)
    assert all(text.endswith("。") for text in made)


def test_lines_that_are_list_items_are_preferred_to_wrapped_lines():
    made = cut("mini_lm", "- one two three\n  four five six\n- seven eight nine\n  ten eleven twelve", 14)
    assert made == ["- one two three\n  four five six", "- seven eight nine\n  ten eleven twelve"]


def test_the_last_two_chunks_share_what_is_left():
    made = cut("mini_lm", " ".join(["word"] * 25), 22)
    assert [len(text.split()) for text in made] == [18, 7]


def test_overlap_begins_at_a_sentence_where_there_is_one():
    sentences = [f"This is sentence number {n}." for n in range(10)]
    made = cut("mini_lm", " ".join(sentences), 26, overlap_tokens=8)
    for before, after in itertools.pairwise(made):
        assert after.startswith("This is")
        assert after.split(".")[0] in before
    plain = cut("mini_lm", " ".join(sentences), 26)
    assert all(text.split(".")[0] not in before for before, text in itertools.pairwise(plain))


def test_markdown_keeps_headings_with_their_text_and_code_whole():
    code = "```python\nx = 1\n\ny = 2\n```"
    text = f"# Title\n\nSome words before the code is shown to you.\n\n## Code\n\n{code}\n\nAfter words."
    made = cut("mini_lm", text, 30, format="markdown")
    assert [piece for piece in made if code in piece]
    assert not [piece for piece in made if piece.endswith(("# Title", "## Code"))]
    assert made[1].startswith("## Code")


def test_markdown_cuts_code_and_tables_that_do_not_fit_at_lines():
    lines = [f"value_{n} = compute({n})" for n in range(12)]
    made = cut("mini_lm", "```\n" + "\n".join(lines) + "\n```", 40, format="markdown")
    assert len(made) > 2
    assert all(line in lines for piece in made for line in piece.split("\n") if line != "```")
    rows = [f"| row {n} | value {n} |" for n in range(12)]
    made = cut("mini_lm", "\n".join(["| a | b |", "|---|---|", *rows]), 40, format="markdown")
    assert all(piece.startswith("| ") and piece.endswith(" |") for piece in made)


def test_a_short_table_is_kept_whole():
    table = "| a | b |\n|---|---|\n| 1. One. | 2. Two. |\n| 3 | 4 |"
    made = cut(
        "mini_lm",
        f"Some words come first here. They say little. {'And more. ' * 4}\n\n{table}\n\nEnd.",
        60,
        format="markdown",
    )
    assert any(table in piece for piece in made)


def test_what_becomes_of_a_documents_fields():
    made = Chunker(FAMILIES["mini_lm"], ChunkingConfig(), 16)
    (batch,) = made.chunk(documents("short text", "word " * 40, namespace="tenant"), "file")
    rows = batch.chunks.to_pylist()
    assert [(row["document_id"], row["chunk_index"], row["chunk_count"]) for row in rows] == [
        ("d0", 0, 1),
        ("d1", 0, 3),
        ("d1", 1, 3),
        ("d1", 2, 3),
    ]
    assert [row["point_id"] for row in rows] == [
        point_id("tenant", row["document_id"], row["chunk_index"]) for row in rows
    ]
    assert {(row["sequence"], row["metadata"]) for row in rows} == {(7, '{"year": 1999}')}
    assert [row["row"] for row in rows] == [0, 1, 1, 1]


def test_documents_without_tokens_are_rejected_and_the_others_kept():
    made = Chunker(FAMILIES["mini_lm"], ChunkingConfig(), 16)
    (batch,) = made.chunk(documents("\u200b\u200b", "text", " \n "), "file")
    assert [(r.document_id, r.row, r.stage, r.reason, r.uri) for r in batch.rejected] == [
        ("d0", 0, "chunking", "no_tokens", "file"),
        ("d2", 2, "chunking", "no_tokens", "file"),
    ]
    assert batch.chunks.column("document_id").to_pylist() == ["d1"]
    assert not chunks(Chunker(FAMILIES["byte_level"], ChunkingConfig(), 16), " \n ")
    assert list(made.chunk(documents(), "file")) == []


def test_a_character_too_long_for_a_chunk_rejects_its_document(monkeypatch):
    monkeypatch.setattr(chunker, "_MIN_ROOM", 1)
    made = Chunker(FAMILIES["byte_level"], ChunkingConfig(), 4)
    (batch,) = made.chunk(documents("ab 𝔘 cd"), "file")
    assert [r.reason for r in batch.rejected] == ["unsplittable"]
    assert batch.chunks.num_rows == 0


def test_a_long_document_is_spread_over_bounded_batches(monkeypatch):
    monkeypatch.setattr(chunker, "_BATCH_CHUNKS", 7)
    made = Chunker(FAMILIES["mini_lm"], ChunkingConfig(), 16)
    batches = list(made.chunk(documents("word " * 700, "short"), "file"))
    assert [batch.chunks.num_rows for batch in batches] == [7] * 7 + [2]
    rows = [row for batch in batches for row in batch.chunks.to_pylist()]
    assert [row["chunk_count"] for row in rows] == [50] * 50 + [1]


def test_the_same_document_gives_the_same_chunks_wherever_it_stands():
    made = Chunker(FAMILIES["mini_lm"], ChunkingConfig(overlap_tokens=3), 20)
    text = "Some text. With sentences, and more of them. " * 9
    alone = [row["text"] for row in chunks(made, text)]
    among = [row["text"] for row in chunks(made, "before", text, "after") if row["document_id"] == "d1"]
    assert alone == among


def test_cuts_of_this_revision():
    """Where these move, raise `_REVISION`: collections cut before must not take documents cut after."""
    text = (
        "# Rivers\n\nA river flows. It is long, and e.g. deep.\n\n- one item\n- two items\n\n## Seas\n\nSalt."
    )
    assert chunker._REVISION == 1
    assert cut("mini_lm", text, 16) == [
        "# Rivers\n\nA river flows.",
        "It is long, and e.g. deep.",
        "- one item\n- two items\n\n## Seas\n\nSalt.",
    ]
    assert cut("mini_lm", text, 16, format="markdown", overlap_tokens=4) == [
        "# Rivers\n\nA river flows.",
        "A river flows. It is long, and e.g.",
        "e.g. deep.\n\n- one item\n- two items",
        "- two items\n\n## Seas\n\nSalt.",
    ]


def test_the_version_changes_with_whatever_moves_a_cut():
    def version(tokenizer: str = "mini_lm", budget: int = 64, **config) -> str:
        return Chunker(FAMILIES[tokenizer], ChunkingConfig(**config), budget).version

    assert version() == version(budget=128, max_tokens=64)
    others = [
        version("prompted"),
        version("word_piece"),
        version(budget=65),
        version(overlap_tokens=1),
        version(format="markdown"),
    ]
    assert len({version(), *others}) == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_tokens": 65}, "takes 64 tokens"),
        ({"max_tokens": 9}, "to 10 or more"),
        ({"overlap_tokens": 31}, "to 30 or less"),
    ],
)
def test_settings_that_leave_no_room_are_refused(config, message):
    with pytest.raises(UsageError, match=message):
        Chunker(FAMILIES["mini_lm"], ChunkingConfig(**config), 64)


def test_the_advice_of_those_errors_works():
    assert Chunker(FAMILIES["mini_lm"], ChunkingConfig(max_tokens=10), 64)
    assert Chunker(FAMILIES["mini_lm"], ChunkingConfig(overlap_tokens=30), 64)


def test_another_schema_is_stopped_at_the_door():
    made = Chunker(FAMILIES["mini_lm"], ChunkingConfig(), 64)
    with pytest.raises(BrokenInvariant):
        list(made.chunk(pa.RecordBatch.from_pydict({"text": ["a"]}), "file"))


def test_token_ids_are_int32():
    (batch,) = Chunker(FAMILIES["mini_lm"], ChunkingConfig(), 64).chunk(documents("text"), "file")
    assert batch.chunks.column("token_ids").values.to_numpy().dtype == np.int32
