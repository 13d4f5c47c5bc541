"""What unkind users do: each gets an answer in words, the right exit code, and everything else done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import documents
import numpy as np
import pytest
import runs

from pipeline.config import EncoderConfig, StoreConfig
from pipeline.errors import CollectionMismatch, EncoderError
from pipeline.search import Reader
from pipeline.stores import parse_filter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def moved_model(tiny_model, folder):
    """A model folder that the collection was made with, and that has gone elsewhere since."""
    return shutil.copytree(tiny_model, folder / "model"), folder / "moved"


@pytest.fixture(scope="module")
def index(moved_model, encoder_cache, folder):
    model, moved = moved_model
    rows = [row | {"text": f"{row['text']} Köln 日本"} for row in documents.rows(6, most_words=9)]
    to = runs.settings(model, encoder_cache, f"edge:{folder}/index")
    assert runs.run(documents.write(folder / "docs.parquet", rows), to).exit_code == 0
    model.rename(moved)
    return to.store.url


def search(index, model, cache, *arguments, **keywords):
    return runs.command(
        "search", *arguments, "--store", index, "--collection", "docs", "--encoder", model, "--json", cache=cache,
        **keywords,
    )  # fmt: skip


def test_arguments_and_json_are_utf8_in_any_locale(index, moved_model, encoder_cache, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    done = search(index, moved_model[1], encoder_cache, "Köln".encode(), encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (found,) = runs.lines(done.stdout)
    assert found["query"] == "Köln"
    assert "日本" in found["results"][0]["text"]


@pytest.mark.parametrize(
    ("query", "words"), [(b"\xff\xfe", "is not UTF-8"), (b" \n", "an empty query")], ids=["bytes", "blank"]
)
def test_a_query_without_words_is_refused(query, words, index, moved_model, encoder_cache):
    done = search(index, moved_model[1], encoder_cache, query)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_input_is_said(tiny_model, encoder_cache, tmp_path):
    arguments = ["ingest", "-", "--encoder", tiny_model, "--store", f"edge:{tmp_path}/i", "--collection", "c"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr


def test_a_file_name_that_is_not_utf8_is_said(tiny_model, encoder_cache, tmp_path):
    source = documents.write(tmp_path / "docs.parquet", documents.rows(3))
    try:
        os.rename(source, os.fsencode(tmp_path) + b"/\xff.parquet")
    except OSError:
        pytest.skip("this file system takes no such name")
    for uri in (tmp_path, os.fsencode(tmp_path) + b"/\xff.parquet"):
        done = runs.command("ingest", uri, "--store", "edge:none", "--collection", "c", cache=encoder_cache)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert "utf-8" in done.stderr.lower()


def test_ctrl_c_while_the_program_loads_is_no_traceback(encoder_cache):
    process = runs.start("doctor", cache=encoder_cache)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


def test_searching_makes_no_folder(encoder_cache, tmp_path):
    with pytest.raises(CollectionMismatch, match="no collection 'docs'"):
        Reader.open(StoreConfig(url=f"edge:{tmp_path}/none", collection="docs"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_has_moved_can_be_named(index, moved_model, other_model, encoder_cache):
    store = StoreConfig(url=index, collection="docs")
    cache = str(encoder_cache)
    with pytest.raises(EncoderError, match=r"collection 'docs' cannot be loaded.*--encoder"):
        Reader.open(store, EncoderConfig(cache=cache))
    with pytest.raises(CollectionMismatch, match="cannot be compared"):
        Reader.open(store, EncoderConfig(cache=cache, model=str(other_model)))
    with Reader.open(store, EncoderConfig(cache=cache, model=str(moved_model[1]))) as reader:
        assert len(reader.search("river", 3)) == 3


def test_a_query_whose_vector_is_nan_is_an_error(index, moved_model, encoder_cache, monkeypatch):
    store = StoreConfig(url=index, collection="docs")
    with Reader.open(store, EncoderConfig(cache=str(encoder_cache), model=str(moved_model[1]))) as reader:
        broken = np.array([[1.0] * 32, [np.nan] * 32], np.float32)
        with reader._following.searcher() as searcher:
            monkeypatch.setattr(searcher.encoder, "encode_queries", lambda _: broken)
        with pytest.raises(EncoderError, match=r"query 'zebra'.*NaN"):
            reader.search_many(["river", "zebra"])


@pytest.mark.parametrize("value", [2**64 - 1, 2**63, -(2**63), 10**30])
def test_integers_beyond_64_bits_filter(value, index, moved_model, encoder_cache):
    store = StoreConfig(url=index, collection="docs")
    assert parse_filter([f"year={value}"]) is not None
    with Reader.open(store, EncoderConfig(cache=str(encoder_cache), model=str(moved_model[1]))) as reader:
        assert reader.search("river", where=[f"year={value}"]) == []
