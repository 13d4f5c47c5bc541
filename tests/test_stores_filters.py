"""Filters: what each finds, in every store the same, and conditions as a user types them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import models
from stores import ID, KINDS, ids, make, opened, points, vector

from pipeline.errors import UsageError
from pipeline.stores import Store, collection, nearest, parse_filter

FIELDS = {
    n: {
        "headwater": {"document_id": f"d{n % 4}", "namespace": "" if n % 2 else "t", "chunk_index": n // 4},
        "metadata": {
            "n": n,
            "f": n / 2,
            "even": n % 2 == 0,
            "lang": "en" if n % 3 else "de",
            "tags": ["a", "b"] if n % 5 == 0 else (["b"] if n % 5 == 1 else []),
            "day": f"2024-01-{n + 1:02d}T00:00:00Z",
            "deep": {"list": [{"x": n}]},
            "maybe": n if n > 10 else None,
        },
    }
    for n in range(20)
}
N = models.FieldCondition(key="metadata.n", range=models.Range(gte=15))
FILTERS = {
    "match text": (
        models.Filter(must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="de"))]),
        lambda n: n % 3 == 0,
    ),
    "match true": (
        models.Filter(must=[models.FieldCondition(key="metadata.even", match=models.MatchValue(value=True))]),
        lambda n: n % 2 == 0,
    ),
    "match false": (
        models.Filter(
            must=[models.FieldCondition(key="metadata.even", match=models.MatchValue(value=False))]
        ),
        lambda n: n % 2 == 1,
    ),
    "match integer": (
        models.Filter(must=models.FieldCondition(key="metadata.n", match=models.MatchValue(value=3))),
        lambda n: n == 3,
    ),
    "match any": (
        models.Filter(
            must=[
                models.FieldCondition(
                    key="headwater.document_id", match=models.MatchAny(any=["d1", "d3", "x"])
                )
            ]
        ),
        lambda n: n % 4 in (1, 3),
    ),
    "match any integer": (
        models.Filter(must=[models.FieldCondition(key="metadata.n", match=models.MatchAny(any=[1, 30]))]),
        lambda n: n == 1,
    ),
    "match except": (
        models.Filter(
            must=[models.FieldCondition(key="metadata.lang", match=models.MatchExcept(**{"except": ["de"]}))]
        ),
        lambda n: n % 3 != 0,
    ),
    "match in a list": (
        models.Filter(must=[models.FieldCondition(key="metadata.tags", match=models.MatchValue(value="a"))]),
        lambda n: n % 5 == 0,
    ),
    "range": (
        models.Filter(must=[models.FieldCondition(key="metadata.f", range=models.Range(gt=2, lte=4))]),
        lambda n: 4 < n <= 8,
    ),
    "dates": (
        models.Filter(
            must=[
                models.FieldCondition(
                    key="metadata.day", range=models.DatetimeRange(lt="2024-01-05T00:00:00Z")
                )
            ]
        ),
        lambda n: n < 4,
    ),
    "ids": (
        models.Filter(must=[models.HasIdCondition(has_id=[ID[1], ID[2], ID[40]])]),
        lambda n: n in (1, 2),
    ),
    "empty": (
        models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="metadata.tags"))]),
        lambda n: n % 5 > 1,
    ),
    "null": (
        models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="metadata.maybe"))]),
        lambda n: n <= 10,
    ),
    "must not": (models.Filter(must_not=[N]), lambda n: n < 15),
    "should": (models.Filter(should=[N, models.HasIdCondition(has_id=[ID[0]])]), lambda n: n >= 15 or n == 0),
    "min should": (
        models.Filter(
            min_should=models.MinShould(
                min_count=2,
                conditions=[
                    N,
                    models.FieldCondition(key="metadata.even", match=models.MatchValue(value=True)),
                    models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="de")),
                ],
            )
        ),
        lambda n: (n >= 15) + (n % 2 == 0) + (n % 3 == 0) >= 2,
    ),
    "inside": (models.Filter(must=[models.Filter(should=[N, models.Filter(must_not=[N])])]), lambda n: True),
    "nested": (
        models.Filter(
            must=[
                models.NestedCondition(
                    nested=models.Nested(
                        key="metadata.deep.list",
                        filter=models.Filter(must=[models.FieldCondition(key="x", range=models.Range(lt=3))]),
                    )
                )
            ]
        ),
        lambda n: n < 3,
    ),
    "array path": (
        models.Filter(
            must=[models.FieldCondition(key="metadata.deep.list[].x", match=models.MatchValue(value=4))]
        ),
        lambda n: n == 4,
    ),
    "count": (
        models.Filter(
            must=[models.FieldCondition(key="metadata.tags", values_count=models.ValuesCount(gte=2))]
        ),
        lambda n: n % 5 == 0,
    ),
}


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> Iterator[Store]:
    with opened(request.param, tmp_path, request) as store:
        yield store


@pytest.fixture
def filled(store) -> Store:
    make(store)
    for key, kind in {**collection.OUR_INDEXES, "metadata.n": "integer", "metadata.even": "bool"}.items():
        store.create_payload_index("c", key, models.PayloadSchemaType(kind))
    store.upsert("c", points(list(range(20)), payload=FIELDS.get))
    return store


def test_a_filter_finds_what_it_says_in_every_call(filled):
    for name, (where, expected) in FILTERS.items():
        wanted = {n for n in range(20) if expected(n)}
        assert ids(filled, where) == wanted, name
        hits = nearest(filled, "c", np.array([vector(0)], np.float32), 50, where)[0]
        assert {ID.index(hit.id) for hit in hits} == wanted, name
    filled.delete("c", FILTERS["match text"][0])
    assert ids(filled) == {n for n in range(20) if n % 3}


TYPED = [
    (["lang=de"], lambda n: n % 3 == 0),
    (["lang==de"], lambda n: n % 3 == 0),
    (["lang!=de"], lambda n: n % 3 != 0),
    (["lang = en|de"], lambda n: True),
    (["n>=3", "n<5"], lambda n: n in (3, 4)),
    (["n>3", "n<=5"], lambda n: n in (4, 5)),
    (["n=3|5|x"], lambda n: n in (3, 5)),
    (["n!=3|5"], lambda n: n not in (3, 5)),
    (["f=1.5"], lambda n: n == 3),
    (["f=2"], lambda n: n == 4),
    (["even=true"], lambda n: n % 2 == 0),
    (["day<2024-01-03"], lambda n: n < 2),
    (["tags=a"], lambda n: n % 5 == 0),
    (["document_id=d1"], lambda n: n % 4 == 1),
    (["namespace=t"], lambda n: n % 2 == 0),
    (['{"must_not": [{"key": "metadata.n", "range": {"gt": 1}}]}', "lang=de"], lambda n: n == 0),
    (['n="3"'], lambda n: False),
]


def test_conditions_as_a_user_types_them(filled):
    for expressions, expected in TYPED:
        assert ids(filled, parse_filter(expressions)) == {n for n in range(20) if expected(n)}, expressions


@pytest.mark.parametrize(
    "expression",
    ["", "lang", "lang=", "=de", "n>=", "n>x", "day<soon", '{"must": 3}', "{not json", '{"x": 1}'],
)
def test_a_bad_condition_is_shown_good_ones(expression):
    with pytest.raises(UsageError, match="lang=en"):
        parse_filter([expression])
