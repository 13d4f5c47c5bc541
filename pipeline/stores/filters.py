"""Conditions on metadata as a user types them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from pydantic import ValidationError
from qdrant_client import models

from pipeline.errors import UsageError
from pipeline.stores.profiles import DOCUMENT_ID, NAMESPACE, Profile, profile_named

Filter = models.Filter

_EXAMPLES = (
    "lang=en, lang!=en, lang=en|de, year>=2000, year<2010, draft=true, document_id=42, "
    'or a Qdrant filter as JSON: {"must": [{"key": "metadata.lang", "match": {"value": "en"}}]}'
)
_OURS = {"document_id": DOCUMENT_ID, "namespace": NAMESPACE}
_PLAIN = profile_named("plain")
_CONDITION = re.compile(
    r"\s*(?P<key>[^<>=!\s][^<>=!]*?)\s*(?P<operator>>=|<=|!=|==|>|<|=)\s*(?P<value>.*?)\s*", re.S
)
_EXACT_FLOATS = 2**53
_MATCHED = range(-(2**63), 2**63)
_BOUNDS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}


def parse_filter(expressions: Sequence[str], profile: Profile = _PLAIN) -> Filter | None:
    """A filter that asks for all the expressions to hold; None for none.

    Keys are metadata keys (`a.b` reaches into structs), wherever `profile` keeps them; `document_id` and `namespace`
    are the document's own.
    A value that reads as an integer or a bool matches those and the same text; quote it ("42") for the text
    alone. Raises UsageError with examples.
    """
    must: list[models.Condition] = []
    must_not: list[models.Condition] = []
    for expression in expressions:
        if expression.lstrip().startswith("{"):
            must.append(_json(expression))
            continue
        matched = _CONDITION.fullmatch(expression)
        if matched is None or not matched["value"]:
            raise _bad(expression, "it is not KEY OPERATOR VALUE")
        key = _OURS.get(matched["key"]) or profile.path(matched["key"])
        if matched["operator"] in _BOUNDS:
            must.append(_range(expression, key, matched["operator"], matched["value"]))
        else:
            (must_not if matched["operator"] == "!=" else must).append(_equals(key, matched["value"]))
    if not must and not must_not:
        return None
    return models.Filter(must=must or None, must_not=must_not or None)


def _json(expression: str) -> models.Filter:
    try:
        return models.Filter.model_validate(json.loads(expression))
    except ValueError as error:  # not JSON, or not a filter
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise _bad(expression, f"it is not a Qdrant filter in JSON ({what})") from None


def _equals(key: str, text: str) -> models.Condition:
    """Any of the alternatives, each as text and as what it reads as; our own keys are always text."""
    texts: list[str] = []
    others: list[models.Condition] = []
    for part in (part.strip() for part in text.split("|")):
        if len(part) > 1 and part[0] == part[-1] == '"':
            texts.append(part[1:-1])
            continue
        texts.append(part)
        value = _number_or_bool(part)
        if value is not None and key not in _OURS.values():
            others.append(_equal_value(key, value))
    match = models.MatchValue(value=texts[0]) if len(texts) == 1 else models.MatchAny(any=texts)
    as_text = models.FieldCondition(key=key, match=match)
    return models.Filter(should=[as_text, *others]) if others else as_text


def _equal_value(key: str, value: int | float | bool) -> models.Condition:
    # A match compares bools and 64-bit integers exactly, floats not at all; a range compares all numbers as
    # floats.
    if isinstance(value, bool) or (
        isinstance(value, int) and abs(value) > _EXACT_FLOATS and value in _MATCHED
    ):
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))
    return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))


def _number_or_bool(text: str) -> int | float | bool | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _range(expression: str, key: str, operator: str, text: str) -> models.FieldCondition:
    bound = _BOUNDS[operator]
    number = _number_or_bool(text)
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        return models.FieldCondition(key=key, range=models.Range(**{bound: number}))
    try:
        return models.FieldCondition(key=key, range=models.DatetimeRange.model_validate({bound: text}))
    except ValidationError:
        raise _bad(expression, f"{text!r} is neither a number nor a date") from None


def _bad(expression: str, why: str) -> UsageError:
    return UsageError(f"filter {expression!r}: {why}", f"Conditions such as {_EXAMPLES}", "Check --filter")
