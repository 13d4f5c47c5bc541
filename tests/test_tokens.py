from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import byte_level, metaspace, mini_lm, word_piece

from pipeline import tokens
from pipeline.errors import EncoderError
from pipeline.tokens import SPACE, Tokenizer, load_tokenizer

AWKWARD = [
    *(
        "naïve",
        "e\u0301",
        "日本語",
        "。",
        "\u200b",
        "\ufeff",
        "👩‍👩‍👧",
        "\x00",
        "\x0b",
        "\x1c",
        "\u0301x",
        "İstanbul",
        "ﷺ",
    ),
    *("[SEP]", "a" * 120, "don't", "\u00ad", "한국어", "กขค", "\u2028", "\x85", "¨", "3.14", "<s>", "</s>"),
]
GAPS = [" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "  ", "\n\n", "\x0b", " \u0301", "", ","]
texts = st.lists(
    st.tuples(st.one_of(st.text(max_size=8), st.sampled_from(AWKWARD)), st.sampled_from(GAPS)), max_size=12
).map(lambda pairs: "".join(word + gap for word, gap in pairs))

MINI_LM = mini_lm()
FAMILIES = {"word_piece": word_piece(), "byte_level": byte_level(), "metaspace": metaspace()}


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(tokens, "_SEGMENT_CHARS", 7)
    monkeypatch.setattr(tokens, "_SEGMENTS_AT_ONCE", 3)


def in_one_go(tokenizer: Tokenizer, text: str) -> tokenizers.Encoding:
    return tokenizer._tokenizer.encode(text, add_special_tokens=False)


def test_the_truncation_and_padding_that_minilm_carries_are_gone(tmp_path):
    definition = json.loads(MINI_LM._tokenizer.to_str())
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    definition["padding"] = padding | {"pad_type_id": 0, "pad_token": "[PAD]"}
    definition["truncation"] = {
        "max_length": 128,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    for tokenizer in (MINI_LM, load_tokenizer(tmp_path / "tokenizer.json")):
        assert len(tokenizer.encode("word " * 500)) == 502
        assert len(tokenizer.tokenize("word " * 500).ids) == 500
        assert len(tokenizer.encode("word")) == 3


def test_tokens_are_typed_and_point_into_the_text():
    made = MINI_LM.tokenize("Größe 😀 counts")
    assert (made.ids.dtype, made.starts.dtype, made.ends.dtype) == (np.int32, np.int64, np.int64)
    assert ["Größe 😀 counts"[a:b] for a, b in zip(made.starts, made.ends, strict=True)] == [
        *("Gr", "ö", "ße", "😀", "counts")
    ]
    assert len(MINI_LM.tokenize("").ids) == len(MINI_LM.tokenize("\u200b \x00").ids) == 0


@settings(max_examples=150)
@given(texts)
def test_tokenizing_in_segments_equals_one_go(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_SEGMENT_CHARS", 7)
        for tokenizer in (MINI_LM, FAMILIES["word_piece"]):
            made, whole = tokenizer.tokenize(text), in_one_go(tokenizer, text)
            assert made.ids.tolist() == whole.ids
            assert list(zip(made.starts.tolist(), made.ends.tolist(), strict=True)) == whole.offsets


@settings(max_examples=150)
@given(texts)
def test_a_clean_tokenizer_gives_a_text_the_tokens_of_its_pieces(text):
    for place in (found.start() for found in SPACE.finditer(text)):
        before, after = in_one_go(MINI_LM, text[:place]).ids, in_one_go(MINI_LM, text[place:]).ids
        assert before + after == in_one_go(MINI_LM, text).ids


@settings(max_examples=100)
@given(texts)
def test_model_input_is_what_the_post_processor_makes(text):
    for prompt in PROMPTED:
        tokenizer = mini_lm_with(prompt)
        made = tokenizer.model_input(tokenizer.tokenize(text).ids)
        assert made.dtype == np.int32
        assert made.tolist() == tokenizer.encode(text).tolist()
        assert len(made) == len(in_one_go(tokenizer, text).ids) + tokenizer.special_tokens


PROMPTED = {prompt: mini_lm(prompt) for prompt in ("", "query: ", "asked: {text}\nanswered:")}


def mini_lm_with(prompt: str) -> Tokenizer:
    return PROMPTED[prompt]


def test_special_tokens_count_the_prompt():
    assert (MINI_LM.special_tokens, mini_lm("query: ").special_tokens) == (2, 4)
    assert (FAMILIES["byte_level"].special_tokens, FAMILIES["metaspace"].special_tokens) == (2, 1)


@pytest.mark.parametrize("plain", FAMILIES.values(), ids=FAMILIES)
def test_examples_and_what_stands_behind_a_query_are_said_as_one_text(plain):
    """As FlagEmbedding puts a query for bge-en-icl together: examples, task and query, and an open response."""
    task = "<instruct>Given a question, retrieve passages that answer it.\n<query>"
    shots = [("what is a fox", "A fox is quick and brown."), ("what is a list", "A list has a heading.")]
    before = "\n\n".join(f"{task}{query}\n<response>{response}" for query, response in shots) + f"\n\n{task}"
    asking = Tokenizer(plain._tokenizer.to_str().encode(), f"{before}{{text}}\n<response>")

    for query in ("a lazy dog", "日本語", "so: ..."):
        assert asking.encode(query).tolist() == plain.encode(f"{before}{query}\n<response>").tolist()

    behind = asking.model_input(asking.tokenize("lazy dog " * 90).ids[:4]).tolist()[-asking.around[1] :]
    assert behind == asking.encode("lazy dog").tolist()[-asking.around[1] :]
    assert asking.around[1] > plain.around[1]


def test_only_sure_families_cut_cleanly():
    clean = {name: tokenizer.cuts_cleanly for name, tokenizer in FAMILIES.items()}
    assert clean == {"word_piece": True, "byte_level": False, "metaspace": False}
    assert MINI_LM.cuts_cleanly
    assert mini_lm("query: ").cuts_cleanly
    assert not mini_lm("query").cuts_cleanly  # the text's first word would join it
    assert mini_lm("asked: {text}\nanswered:").cuts_cleanly
    assert not mini_lm("asked: {text}:").cuts_cleanly


def test_an_added_token_with_a_space_is_not_cut_cleanly():
    inner = tokenizers.Tokenizer.from_str(MINI_LM._tokenizer.to_str())
    inner.add_tokens(["New York"])
    assert not Tokenizer(inner.to_str().encode()).cuts_cleanly


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("name", FAMILIES)
def test_many_texts_at_once_keep_their_order_and_seams(name):
    given_texts = [
        "",
        "one",
        "two words and more of them",
        "",
        "。" * 40,
        "日本語です。" * 9,
        "x" * 30,
        "end\n" * 5,
    ]
    made = list(FAMILIES[name].tokenize_batch(given_texts))
    assert len(made) == len(given_texts)
    for text, one in zip(given_texts, made, strict=True):
        assert one.ids.tolist() == FAMILIES[name].tokenize(text).ids.tolist()
        assert (one.starts <= one.ends).all()
        assert (np.diff(one.starts) >= 0).all()
        assert all(text[a:b] == text[a:b].strip() for a, b in zip(one.starts, one.ends, strict=True))
        spans = zip(one.starts.tolist(), one.ends.tolist(), strict=True)
        covered = {place for a, b in spans for place in range(a, b)}
        assert covered == {place for place, c in enumerate(text) if not c.isspace()}


def test_a_long_text_without_spaces_is_still_taken_apart():
    text = '{"a":1,"b":2},' * 4000
    assert max(b - a for a, b in tokens._segments(text, MINI_LM._seam)) < 20_000
    assert MINI_LM.tokenize(text).ids.tolist() == in_one_go(MINI_LM, text).ids


def test_the_version_names_file_and_prompt():
    versions = {mini_lm().version, mini_lm("query: ").version, word_piece().version}
    assert len(versions) == 3
    assert MINI_LM.version in versions


def test_what_is_no_tokenizer_is_explained(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe")
    for name in ("missing.json", "tokenizer.json", "broken.json"):
        with pytest.raises(EncoderError, match=name) as error:
            load_tokenizer(tmp_path / name)
        assert "tokenizer.json" in error.value.need
