"""Structured rows become text."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources.template import Template, written


def render(template: str, **columns: list[str]) -> list[str]:
    return Template.parse(template).render(columns)


def test_values_are_put_in_place_and_missing_ones_left_out():
    texts = render(
        "{title}: {price} EUR\n{body}", title=["Lamp", "Lamp", ""], price=["5", "", ""], body=["Red", "", "x"]
    )
    assert texts == ["Lamp: 5 EUR\nRed", "Lamp:  EUR", "x"]


def test_a_row_without_any_value_has_no_text():
    assert render("Name: {a}\nalways", a=["", "x"]) == ["", "Name: x\nalways"]


def test_a_line_without_values_stays_and_a_line_of_missing_values_goes_with_its_break():
    assert render("# {a}\n\nPrice: {b}\nend", a=["x"], b=[""]) == ["# x\n\nend"]


def test_braces_are_doubled_and_percent_signs_are_themselves():
    assert render("{{{a}}} 100 %s %", a=["x"]) == ["{x} 100 %s %"]
    assert render("{{}}\n{a}", a=["x"]) == ["{}\nx"]


def test_a_column_may_have_any_name():
    assert Template.parse("{dc:title} {a.b} {0} {ü x!r}").columns == ("dc:title", "a.b", "0", "ü x!r")


def test_values_are_not_templates():
    assert render("{a} {b}", a=["{b} %s"], b=["y"]) == ["{b} %s y"]


@pytest.mark.parametrize("template", ["{a", "a}", "{a} {", "{}", "{a\n}", "no columns", "{{a}}"])
def test_a_wrong_template_is_refused(template):
    with pytest.raises(UsageError):
        Template.parse(template)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a b", "", "  ", None]), ["a b", "", "", ""]),
        (pa.array([19.99, None, float("nan")], pa.float32()), ["19.99", "", ""]),
        (pa.array([0.1, 5.0]), ["0.1", "5.0"]),
        (pa.array([Decimal("19.90"), None], pa.decimal128(30, 2)), ["19.90", ""]),
        (pa.array([7, None]), ["7", ""]),
        (pa.array([True, False, None]), ["true", "false", ""]),
        (pa.array([["a", None, "b"], [], None]), ["a, b", "", ""]),
        (pa.array([{"k": 1}, None]), ['{"k":1}', ""]),
        (pa.array([0], pa.timestamp("s")), ["1970-01-01T00:00:00Z"]),
        (pa.array(["x", None]).dictionary_encode(), ["x", ""]),
    ],
    ids=lambda case: str(getattr(case, "type", "")),
)
def test_how_values_are_written(array, expected):
    assert written(array) == expected


literal = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
names = st.sampled_from(["a", "b", "c d"])
piece = st.one_of(st.tuples(st.just("text"), literal), st.tuples(st.just("column"), names))


@given(st.lists(piece), st.fixed_dictionaries(dict.fromkeys(["a", "b", "c d"], literal)))
def test_rendering_follows_the_definition(pieces, row):
    source = "".join(
        value.replace("{", "{{").replace("}", "}}") if kind == "text" else f"{{{value}}}"
        for kind, value in pieces
    )
    columns = {value for kind, value in pieces if kind == "column"}
    if not columns:
        return
    [text] = Template.parse(source).render({name: [value] for name, value in row.items()})
    assert text == expected_text(pieces, row)


def expected_text(pieces, row) -> str:
    """The definition, word by word, on one row."""
    lines: list[list[tuple[str, str]]] = [[]]
    for kind, value in pieces:
        if kind == "column":
            lines[-1].append((kind, value))
            continue
        first, *others = value.split("\n")
        lines[-1].append((kind, first))
        lines.extend([[(kind, other)] for other in others])
    if not any(row[value] for kind, value in pieces if kind == "column"):
        return ""
    kept = []
    for line in lines:
        used = [row[value] for kind, value in line if kind == "column"]
        if not used or any(used):
            kept.append("".join(value if kind == "text" else row[value] for kind, value in line))
    return "\n".join(kept)
