"""Stores of every kind for tests, and points that are known by a number."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import models
from real_qdrant import open_real

from pipeline.config import StoreConfig
from pipeline.stores import Points, Store, open_store

KINDS = ["memory", "local", "edge", "grpc", "rest", "real"]
ID = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))) for n in range(50)]


@contextmanager
def opened(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store of this kind, which sends three points at a time."""
    if kind == "real":
        store: Store = open_real(batch_points=3)
    elif kind in ("grpc", "rest"):
        server = request.getfixturevalue("qdrant")
        url = server.grpc_url if kind == "grpc" else server.rest_url
        store = open_store(StoreConfig(url=url, prefer_grpc=kind == "grpc", batch_points=3, retries=0))
    else:
        url = "memory:" if kind == "memory" else f"{kind}:{folder / 'store'}"
        store = open_store(StoreConfig(url=url, batch_points=3))
    for left in store.get_collections().collections:
        store.delete_collection(left.name)
    yield store
    store.close()


def vector(n: int, dims: int = 4) -> list[float]:
    row = np.random.default_rng(n).normal(size=dims)
    return (row / np.linalg.norm(row)).tolist()


def points(numbers: list[int], dims: int = 4, name: str = "", payload=None) -> Points:
    rows = np.array([vector(n, dims) for n in numbers], dtype=np.float32).reshape(-1, dims)
    made = [payload(n) if payload else {"metadata": {"n": n}} for n in numbers]
    return Points([ID[n] for n in numbers], {name: rows}, made)


def make(store: Store, name: str = "c", **extra) -> None:
    store.create_collection(name, models.VectorParams(size=4, distance=models.Distance.COSINE), **extra)


def ids(store: Store, where: models.Filter | None = None) -> set[int]:
    found, offset = [], None
    while True:
        page, offset = store.scroll("c", where, limit=7, offset=offset, with_payload=False)
        found += [ID.index(record.id) for record in page]
        if offset is None:
            assert len(found) == len(set(found)) == store.count("c", where).count
            return set(found)


def alias(name: str, target: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=target, alias_name=name)
    )
