import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sync import COUNT, KEYS, Buckets, absent, ids_of, keys_of
from pipeline.sync import buckets as module

# Few different bytes, zeros at either end among them: neighbours in order, and what a string type might cut off.
ids = st.lists(
    st.builds(
        lambda data: str(uuid.UUID(bytes=bytes(data))),
        st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("buckets")


def filled(folder, ids, at_a_time=7):
    buckets = Buckets(folder / uuid.uuid4().hex, KEYS)
    for start in range(0, len(ids), at_a_time):
        buckets.add(keys_of(ids[start : start + at_a_time]))
    return buckets


@given(ids, ids)
def test_what_the_other_side_lacks_is_the_difference_of_two_sets(folder, left, right):
    sides = filled(folder, left), filled(folder, right)
    for _ in range(2):  # safe to repeat
        found = [id for keys in absent(*sides) for id in ids_of(keys)]
        assert sorted(found) == sorted(id for id in left if id not in right)


@given(ids)
def test_ids_come_back_as_they_were(ids):
    assert ids_of(keys_of(ids)["key"]) == ids


def test_records_are_dealt_out_by_their_first_byte_and_nothing_is_lost_between_two_deals(folder, monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 100)
    draw = np.random.default_rng(0)
    ids = [str(uuid.UUID(bytes=draw.bytes(16))) for _ in range(1000)]
    buckets = filled(folder, ids)
    parts = [ids_of(buckets.read(number)["key"]) for number in range(COUNT)]
    assert all(int(id[:2], 16) == number for number, part in enumerate(parts) for id in part)
    assert sorted(id for part in parts for id in part) == sorted(ids)


def test_only_a_part_is_held(folder, monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 100)
    buckets = Buckets(folder / "part", KEYS)
    held = 0
    for _ in range(50):
        buckets.add(keys_of([str(uuid.uuid4()) for _ in range(30)]))
        held = max(held, sum(map(len, buckets._waiting)))
    assert held <= 130
