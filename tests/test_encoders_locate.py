from __future__ import annotations

from pathlib import Path

import models
import pytest

from pipeline.encoders.locate import locate
from pipeline.errors import EncoderError


def test_a_folder_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)

    found = locate("model")

    assert found.source == str(tmp_path / "model")
    assert found.folder == tmp_path / "model"


def test_a_package_that_carries_weights():
    found = locate(models.PACKAGE)

    assert found.source == models.PACKAGE
    assert found.folder == models.package_folder()


@pytest.mark.parametrize("name", ["sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"])
def test_the_default_comes_from_the_installed_package_under_its_hub_id(name):
    found = locate(name)

    assert found.source == "sentence-transformers/all-MiniLM-L6-v2"
    assert found.folder == models.package_folder()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("package:no-such-package", "not installed"),
        ("package:numpy", "carries no model"),
        ("./nowhere", "no model folder"),
        ("/no/such/folder", "no model folder"),
        ("~/no/such/folder", "no model folder"),
        ("~no-such-user/folder", "no model folder"),
        ("", "no model folder"),
        ("somebody/never-downloaded", "hub cannot be reached"),
        ("never-downloaded", "sentence-transformers/never-downloaded"),
    ],
)
def test_what_cannot_be_found_is_said_with_what_to_do(model, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(EncoderError, match=says) as caught:
        locate(model)

    assert caught.value.need
    assert caught.value.do


def test_a_hub_snapshot_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--somebody--encoder" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--somebody--encoder" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    assert Path(locate("somebody/encoder").folder) == snapshot
