from __future__ import annotations

import os
import pickle
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import Settings, load
from pipeline.errors import UsageError

SAMPLE = Path(__file__).parent.parent / "deploy" / "config.toml"


@pytest.fixture(autouse=True)
def _no_twins(monkeypatch):
    for name in os.environ:
        if name.upper().startswith("HEADWATER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "config.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refused(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(file, flags)
    return caught.value


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}", field.get_default(call_default_factory=True)


def leaves(values: Mapping[str, Any], known: set[str], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and f"{path}{name}" not in known:
            yield from leaves(value, known, f"{path}{name}.")
        else:
            yield f"{path}{name}"


# --- deploy/config.toml


def test_the_sample_config_is_the_defaults():
    assert load(SAMPLE) == Settings() == load()


def test_the_sample_config_names_every_key_and_no_other():
    known = dict(keys(Settings))
    text = SAMPLE.read_text(encoding="utf-8")
    active = set(leaves(tomllib.loads(text), set(known)))
    assert active == {key for key, default in known.items() if default is not None}
    examples = tomllib.loads(re.sub(r"(?m)^#(\w+ = )", r"\1", text))
    assert set(leaves(examples, set(known))) == set(known)


def test_the_examples_of_unset_keys_in_the_sample_config_are_valid(config):
    text = re.sub(r"(?m)^#(\w+ = )", r"\1", SAMPLE.read_text(encoding="utf-8"))
    settings = load(config(text))
    assert settings.source.metadata == ("author", "year")
    assert all(value is not None for value in settings.store.hnsw.model_dump().values())


def test_every_key_of_the_sample_config_is_explained():
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    block: list[str] = []
    for line in [*lines, ""]:
        if line:
            block.append(line)
            continue
        if any(re.match(r"#?\w+ = ", entry) for entry in block):
            assert block[0].startswith("# "), f"no comment above {block[0]!r}"
        block = []


# --- the environment, the file and the flags


def test_environment_twins_reach_every_level(monkeypatch):
    monkeypatch.setenv("HEADWATER_STORE__URL", "http://localhost:6333")
    monkeypatch.setenv("HEADWATER_STORE__HNSW__M", "8")
    monkeypatch.setenv("HEADWATER_STORE__PREFER_GRPC", "false")
    monkeypatch.setenv("HEADWATER_RUN__COMMIT_EVERY_S", "0.5")
    settings = load()
    assert settings.store.url == "http://localhost:6333"
    assert settings.store.hnsw.m == 8
    assert settings.store.prefer_grpc is False
    assert settings.run.commit_every_s == 0.5


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ("title", ("title",)),
        ("title,text", ("title", "text")),
        (" title , text ", ("title", "text")),
        ('["a, b", "c"]', ("a, b", "c")),
    ],
)
def test_a_list_in_the_environment_has_commas_or_is_json(monkeypatch, value, columns):
    monkeypatch.setenv("HEADWATER_SOURCE__TEXT", value)
    assert load().source.text == columns
    monkeypatch.delenv("HEADWATER_SOURCE__TEXT")
    assert load(flags={"source.text": value}).source.text == columns


def test_an_empty_list_of_metadata_is_not_the_same_as_no_list(monkeypatch):
    assert load().source.metadata is None
    monkeypatch.setenv("HEADWATER_SOURCE__METADATA", "")
    assert load().source.metadata == ()


@pytest.mark.parametrize(
    "value", ["Year=integer, author=keyword", '{"Year": "integer", "author": "keyword"}']
)
def test_a_table_in_the_environment_has_pairs_or_is_json(monkeypatch, value):
    monkeypatch.setenv("HEADWATER_STORE__PAYLOAD_INDEXES", value)
    assert load().store.payload_indexes == {"Year": "integer", "author": "keyword"}


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch, config):
    file = config(
        '[store]\nurl = "file"\ncollection = "file"\nvector_name = "file"\nhnsw = {m = 4, ef_construct = 9}'
    )
    monkeypatch.setenv("HEADWATER_STORE__URL", "environment")
    monkeypatch.setenv("HEADWATER_STORE__COLLECTION", "environment")
    monkeypatch.setenv("HEADWATER_STORE__HNSW__M", "8")
    store = load(file, {"store.url": "flag"}).store
    assert (store.url, store.collection, store.vector_name) == ("flag", "environment", "file")
    assert (store.hnsw.m, store.hnsw.ef_construct) == (8, 9)


def test_the_environment_is_read_by_load_alone(monkeypatch):
    monkeypatch.setenv("HEADWATER_STORE__URL", "environment")
    assert Settings().store.url == ""
    assert Settings.model_validate({"store": {"collection": "docs"}}).store.url == ""


def test_variables_that_only_share_the_prefix_are_left_alone(monkeypatch):
    monkeypatch.setenv("HEADWATER_PORT", "tcp://10.0.0.1:80")  # Kubernetes, for a service named headwater
    monkeypatch.setenv("HEADWATER_SERVICE_HOST", "10.0.0.1")
    assert load() == Settings()


# --- what is refused, and how


def test_an_unknown_key_lists_the_known_ones(config):
    message = str(refused(config("[chunking]\nmax_token = 12")))
    assert "'max_token' of [chunking]" in message
    assert "config.toml" in message
    assert "format, max_tokens, overlap_tokens" in message
    assert message.endswith("Did you mean 'max_tokens'?")


def test_an_unknown_nested_key_lists_the_known_ones(config):
    message = str(refused(config("[store.hnsw]\nef_constuct = 12")))
    assert "'ef_constuct' of [store.hnsw]" in message
    assert "ef_construct, m, on_disk" in message
    assert "Did you mean 'ef_construct'?" in message


def test_an_unknown_section_lists_the_known_ones(config):
    message = str(refused(config("[chunker]\nmax_tokens = 12")))
    assert "unknown section 'chunker'" in message
    assert "chunking, encoder, gate, run, source, store" in message
    assert "Did you mean 'chunking'?" in message


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("HEADWATER_STORE__URI", "Did you mean 'url'?"),
        ("HEADWATER_STORE__HNSW__EF_CONSTUCT", "Did you mean 'ef_construct'?"),
        ("HEADWATER_STOR__URL", "Did you mean 'store'?"),
        ("HEADWATER_STORE_URL", "Did you mean HEADWATER_STORE__URL?"),
        ("HEADWATER_STORE__HNSW_EF_CONSTRUCT", "Did you mean HEADWATER_STORE__HNSW__EF_CONSTRUCT?"),
    ],
)
def test_a_misspelled_twin_is_refused_by_name(monkeypatch, variable, hint):
    monkeypatch.setenv(variable, "8")
    message = str(refused())
    assert variable in message
    assert hint in message


def test_an_unknown_flag_is_refused_like_a_key():
    assert "Did you mean 'url'?" in str(refused(flags={"store.uri": "edge:points"}))
    assert "unknown section 'stoer'" in str(refused(flags={"stoer.url": "edge:points"}))


@pytest.mark.parametrize(
    ("text", "key", "got"),
    [
        ('[chunking]\nmax_tokens = "many"', "chunking.max_tokens", "'many'"),
        ("[chunking]\nmax_tokens = -1", "chunking.max_tokens", "-1"),
        ('[encoder]\nprecision = "fp8"', "encoder.precision", "'fp8'"),
        ("[source]\ntext = []", "source.text", ""),
        ('[source]\ntext = "[oops"', "source.text", "[oops"),
        ("[store.hnsw]\nef_construct = 1", "store.hnsw.ef_construct", "1"),
        ('[store.payload_indexes]\nyear = "int"', "store.payload_indexes.year", "'int'"),
        ("[store.quantization]\nquantile = 1.5", "store.quantization.quantile", "1.5"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_file(config, text, key, got):
    message = str(refused(config(text)))
    assert key in message
    assert got in message
    assert "config.toml" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("run.id", "my run", "64 letters, digits"), ("source.max_deletes", "101%", "a share of all")],
)
def test_what_a_value_must_look_like_is_said_in_words(key, value, words):
    with pytest.raises(UsageError, match=words) as refused:
        load(None, {key: value})
    assert repr(value) in refused.value.got
    assert "^" not in str(refused.value)


def test_a_bad_value_of_the_environment_is_named_with_its_variable(monkeypatch, config):
    monkeypatch.setenv("HEADWATER_STORE__HNSW__M", "many")
    message = str(refused(config('[store]\nurl = "edge:points"')))
    assert "HEADWATER_STORE__HNSW__M" in message
    assert "'many'" in message


@pytest.mark.parametrize("flags", [None, {"store.url": "edge:points"}])
def test_a_value_where_a_section_belongs_is_named(config, flags):
    message = str(refused(config('store = "edge:points"'), flags))
    assert "store" in message
    assert "is a section" in message
    assert "collection" in message


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path, config):
    assert "missing.toml" in str(refused(tmp_path / "missing.toml"))
    assert "is not TOML" in str(refused(config("[store\n")))
    (tmp_path / "config.toml").write_bytes(b'[store]\nurl = "\xff"')
    assert "cannot be read" in str(refused(tmp_path / "config.toml"))


# --- secrets, and the settings as a value


def test_the_api_key_is_never_shown(monkeypatch, config):
    monkeypatch.setenv("HEADWATER_STORE__API_KEY", "sesame")
    settings = load()
    assert settings.store.api_key.get_secret_value() == "sesame"
    for shown in (str(settings), repr(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "sesame" not in shown
    file = config('[store]\napi_key = "sesame"\nurl = 7')
    assert "sesame" not in str(refused(file))


def test_the_api_key_is_not_shown_when_it_is_what_is_wrong(monkeypatch, config):
    for text in ("[store]\napi_key = 70707", "[store]\napi_key = ['70707']", "[store]\napi_kee = '70707'"):
        message = str(refused(config(text)))
        assert "api_ke" in message
        assert "70707" not in message


def test_settings_survive_pickling_with_their_secret():
    settings = load(flags={"store.api_key": "sesame", "store.hnsw.m": 8})
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert again.store.api_key.get_secret_value() == "sesame"


def test_settings_are_frozen_at_every_level():
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.store = settings.store
    with pytest.raises(ValidationError):
        settings.store.hnsw.m = 3


def test_an_index_on_a_place_in_the_payload_is_refused():
    with pytest.raises(UsageError, match="name the metadata field alone"):
        load(None, {"store.payload_indexes": {"metadata.year": "integer"}})
