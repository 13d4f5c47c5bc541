from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_files import byte_level, mini_lm

from pipeline.chunking import boundaries, markdown
from pipeline.chunking.boundaries import Boundary, plain_boundaries, sentence_starts
from pipeline.chunking.markdown import blocks, markdown_boundaries

MINI_LM = mini_lm()

LINES = [
    *(
        "# Heading",
        "Setext",
        "---",
        "- item",
        "  - inner",
        "1. one",
        "> quote",
        "    code",
        "| a | b |",
        "|---|---|",
    ),
    *("```", "~~~", "<div>", "</div>", "[a]: b", "plain words", "plain words", "", "", "", "\x00", "é 😀"),
]
markdown_texts = st.lists(
    st.tuples(st.sampled_from(LINES), st.sampled_from(["\n", "\n", "\r\n", "\r"])), max_size=30
).map(lambda pairs: "".join(line + end for line, end in pairs))


def before(text: str, word: str, room: int = 100, form: str = "plain") -> Boundary:
    tokens = MINI_LM.tokenize(text)
    found = markdown_boundaries(text, tokens, room) if form == "markdown" else plain_boundaries(text, tokens)
    return Boundary(int(found[tokens.starts.tolist().index(text.index(word))]))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a there HERE", Boundary.WORD),
        ("there, and\nHERE", Boundary.LINE),
        ("there, and\r\nHERE", Boundary.LINE),
        ("there, and\r\rHERE", Boundary.PARAGRAPH),
        ("There it is. HERE", Boundary.SENTENCE),
        ("There it is.\nHERE", Boundary.ITEM),
        ("There it is.\n\nHERE", Boundary.PARAGRAPH),
        ("There it is \r\n \t\r\n HERE", Boundary.PARAGRAPH),
        ("今日は天気がいい。HERE", Boundary.SENTENCE),
    ],
)
def test_what_lies_before_a_word_of_plain_text(text, kind):
    assert before(text, "HERE") == kind


def test_blocks_of_many_tokens_join_without_a_seam(monkeypatch):
    text = "Some words.\n\nAnd - one\n- two. " * 40
    tokens = MINI_LM.tokenize(text)
    whole = plain_boundaries(text, tokens)
    monkeypatch.setattr(boundaries, "_BLOCK_TOKENS", 7)
    assert plain_boundaries(text, tokens).tolist() == whole.tolist()


def test_the_windows_of_a_long_text_find_the_same_sentences(monkeypatch):
    text = "Dr. Smith came at 3.14 p.m. today. Was it so? Yes! 次の文。それから。 " * 60 + "\n\nAn end"
    monkeypatch.setattr(boundaries, "_WINDOW_CHARS", len(text) + 1)
    whole = list(sentence_starts(text))
    for size in (100, 333):
        monkeypatch.setattr(boundaries, "_WINDOW_CHARS", size)
        assert list(sentence_starts(text)) == whole


def test_an_unclosed_quotation_hides_only_nearby_sentences():
    text = 'He said "no and left. ' + "Then it rained again. " * 500
    assert len(list(sentence_starts(text))) > 300


@given(st.text(max_size=200), st.sampled_from([3, 20, 2048]))
def test_sentence_starts_ascend_inside_the_text(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "_WINDOW_CHARS", size)
        starts = list(sentence_starts(text))
    assert starts == sorted(set(starts))
    assert all(0 < start < len(text) for start in starts)


def test_byte_level_tokens_of_one_character_are_no_place_for_a_word():
    text = "日本 語"
    tokens = byte_level().tokenize(text)
    found = plain_boundaries(text, tokens)
    assert sum(found[1:] == Boundary.WORD) == 1


@settings(max_examples=200)
@given(markdown_texts, st.sampled_from([1, 15, 60]))
@example("```\na\n\n# no heading\n```\n\n# Heading\n", 1)
def test_blocks_lie_in_the_text_and_in_order(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markdown, "_PIECE_CHARS", size)
        found = list(blocks(text))
    assert all(0 <= block.start <= block.end <= len(text) for block in found)
    tops = [block.start for block in found if block.level == 0]
    assert tops == sorted(tops)


def test_pieces_give_the_blocks_of_one_go(monkeypatch):
    block = (
        "# One\r\n\r\ntext\nmore\n\n- a\n\n  b\n- c\n\n"
        "```\nx\n\n# y\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nSetext\n---\n\n"
    )
    text = block * 30
    whole = list(blocks(text))
    monkeypatch.setattr(markdown, "_PIECE_CHARS", 200)
    assert list(blocks(text)) == whole
    assert [text[b.start : b.end] for b in whole if b.kind == "fence"] == ["```\nx\n\n# y\n```\n"] * 30


def test_headings_lead_and_stay_with_their_text():
    text = "Intro words\n\n# First\n## Second\n\nBODY\n"
    assert before(text, "# First", form="markdown") == Boundary.HEADING
    assert before(text, "## Second", form="markdown") == Boundary.LINE
    assert before(text, "BODY", form="markdown") == Boundary.LINE


def test_nested_blocks_are_weaker_than_top_ones():
    text = "words\n- one\n- two\n\n> quoted\n> - INNER\n"
    assert before(text, "- one", form="markdown") == Boundary.PARAGRAPH
    assert before(text, "- two", form="markdown") == Boundary.ITEM
    assert before(text, "> - INNER", form="markdown") == Boundary.ITEM


def test_code_that_fits_is_kept_and_code_that_does_not_is_cut_at_lines():
    text = "words\n\n```\none\n\nTWO. Three\n```\n\nafter"
    assert before(text, "TWO", 20, "markdown") == Boundary.KEEP
    assert before(text, "TWO", 5, "markdown") == Boundary.LINE
    assert before(text, "after", 20, "markdown") == Boundary.PARAGRAPH
