"""A maker of vectors from words, and what a mirror of `histories`' collection must hold then."""

from __future__ import annotations

import threading
from typing import Any

import histories
import numpy as np
from qdrant_client import models

from pipeline.stores import Store
from pipeline.upgrade.difference import Mirrored, Sides
from pipeline.upgrade.limits import Limits
from pipeline.upgrade.mirror import mirror

NEW = "w" * 8
SIDES = Sides("c", "c", "d", {"": 3}, frozenset({NEW}))
Points = dict[str, tuple[dict[str, Any], list[float]]]


class Words:
    """Embeds a chunk by its word; a word in `long` is more than it takes, one in `blank` gets no usable vector."""

    maps = False
    window_tokens = 3

    def __init__(self, long: tuple[str, ...] = (), blank: tuple[str, ...] = ()) -> None:
        self.long, self.blank = long, blank
        self.words: list[str] = []

    def read(self, chunk):
        return np.frombuffer(chunk.payload["text"].encode(), np.uint8).astype(np.int32)

    def tokens(self, given):
        return 1

    def refuses(self, given):
        word = bytes(given.astype(np.uint8)).decode()
        return ("too_long", "more than it takes") if word in self.long else None

    def make(self, given):
        words = [bytes(one.astype(np.uint8)).decode() for one in given]
        self.words += words
        return np.stack([np.zeros(3, np.float32) if word in self.blank else vector(word) for word in words])

    def stamp(self, ours):
        return {name: value for name, value in ours.items() if name != "bridge"} | {"encoder_version": NEW}

    def close(self):
        pass


def vector(word: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(sum(word.encode())).random(3).astype(np.float32)


def new_target(store: Store, name: str = "d") -> None:
    store.create_collection(name, models.VectorParams(size=3, distance=models.Distance.DOT))


def one_pass(store: Any, maker: Any = None, sides: Sides = SIDES, limits: Limits | None = None) -> Mirrored:
    return mirror(store, sides, maker or Words(), limits or Limits(), threading.Event())


def until_equal(store: Any, **how: Any) -> Mirrored:
    """Passes until one finds nothing to do."""
    for _ in range(5):
        done = one_pass(store, **how)
        if done.equal and not done.changed:
            return done
    raise AssertionError(done)


def contents(store: Store, name: str) -> Points:
    found, offset = store.scroll(name, limit=1000, with_vectors=True)
    assert offset is None
    return {str(record.id): (record.payload, record.vector) for record in found}


def wanted(source: Points) -> Points:
    """What the target holds when it is in step with these points."""
    made = {}
    for id, (payload, _) in source.items():
        ours = payload["headwater"] | {"encoder_version": NEW}
        made[id] = (payload | {"headwater": ours}, vector(payload["text"]).tolist())
    return made


def index(store: Any, *rows: histories.Row, sequenced: bool = True) -> None:
    histories.index(histories.Crashing(store, None, True), histories.Run(rows, 9, 9, None, True), sequenced)
