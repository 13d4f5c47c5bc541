"""Points drawn from a collection by a seed."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

import numpy as np

from pipeline.stores import OURS, Chunk, Store, collection
from pipeline.upgrade.drift import Sample
from pipeline.versions import Contract

_PAGE = 200


def draw(
    store: Store, physical: str, count: int, seed: int = 0, with_vectors: bool = False
) -> Iterator[Chunk]:
    """`count` points of ours, or as many as there are, each once.

    Ids are hashes: points in the order of their ids come in no order, and from a place that the seed says on they are a
    sample. Two collections of the same chunks give the same ones.
    """
    start = str(uuid.UUID(int=random.Random(seed).getrandbits(128)))
    for first, stop in ((start, None), (None, start)):
        offset: str | None = first
        while count > 0:
            records, offset = store.scroll(
                physical, limit=min(count, _PAGE), offset=offset, with_vectors=with_vectors
            )
            inside = [one for one in records if stop is None or str(one.id) < stop]
            ours = [Chunk.of(one) for one in inside if one.payload and OURS in one.payload]
            yield from ours
            count -= len(ours)
            if offset is None or len(inside) < len(records):
                break


def sample_vectors(store: Store, alias: str, count: int, seed: int = 0) -> Sample:
    """Points with their vectors, of the collection that an alias stands for; of codes, where nothing else is kept.

    Holds 4 × count × dims bytes.
    """
    physical = collection.resolve(store, alias) or alias
    contract = Contract.read(collection.read_metadata(store, physical), alias)
    name = contract.vector_name
    if contract.codes and not contract.codes.keep_vectors:
        name = contract.codes.vector_name
    drawn = list(draw(store, physical, count, seed, with_vectors=True))
    vectors = np.array([chunk.vectors[name] for chunk in drawn], np.float32)
    said = [chunk.payload[OURS] for chunk in drawn]
    return Sample(
        alias,
        np.array([chunk.id for chunk in drawn], np.str_),
        vectors.reshape(len(drawn), -1 if len(drawn) else contract.dims),
        np.array([one["end"] - one["start"] for one in said], np.int64),
        np.array([one["encoder_version"] for one in said], np.str_),
    )
