from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import models
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.config import EncoderConfig
from pipeline.encoders import describe, export, exporting, load_encoder, prepare
from pipeline.encoders.building import building_beside, put_in_place
from pipeline.encoders.exported import GRAPH, MANIFEST, TOKENIZER, read_manifest
from pipeline.errors import EncoderError, ParityError


@pytest.fixture
def built(tiny_model, encoder_cache, tmp_path):
    """A config whose cache already holds the tiny model, copied so that a test may break it."""
    shared = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))
    prepared = prepare(describe(shared), shared)
    shutil.copytree(prepared, tmp_path / "cache" / prepared.name)
    return shared.model_copy(update={"cache": str(tmp_path / "cache")})


def identity(file):
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns


def test_the_second_time_nothing_is_made(built):
    spec = describe(built)
    graph = prepare(spec, built) / GRAPH
    before = identity(graph)

    assert prepare(spec, built) / GRAPH == graph
    assert identity(graph) == before


def test_the_manifest_says_what_was_measured_with_what(built):
    manifest = read_manifest(prepare(describe(built), built))

    assert manifest["version"] == describe(built).version
    assert manifest["parity"]["optimised"]["least_cosine"] > 0.9999
    assert "torch" in manifest["libraries"]


def damage_graph(entry):
    with (entry / GRAPH).open("r+b") as stream:
        stream.truncate(1000)


def damage_manifest(entry):
    (entry / MANIFEST).write_text("{")


def lose_tokenizer(entry):
    (entry / TOKENIZER).unlink()


@pytest.mark.parametrize("damage", [damage_graph, damage_manifest, lose_tokenizer])
def test_a_damaged_entry_is_made_again(built, damage):
    entry = prepare(describe(built), built)
    damage(entry)

    encoder = load_encoder(built)

    assert encoder.encode_queries(["water"]).shape == (1, 32)
    assert {file.name for file in entry.iterdir()} == {GRAPH, TOKENIZER, MANIFEST}


def test_two_builders_at_once_make_it_once(tiny_model, tmp_path):
    code = (
        "import sys\n"
        "from pipeline.config import EncoderConfig\n"
        "from pipeline.encoders import describe, prepare\n"
        f"config = EncoderConfig(model={str(tiny_model)!r}, cache={str(tmp_path)!r})\n"
        "entry = prepare(describe(config), config)\n"
        "print((entry / 'model.onnx').stat().st_ino)"
    )

    builders = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    said = [builder.communicate()[0] for builder in builders]

    assert [builder.returncode for builder in builders] == [0, 0]
    assert said[0] == said[1]
    assert not list(tmp_path.glob(".building.*"))


def test_what_a_killed_builder_left_goes_with_the_next_one(tmp_path):
    entry, other = tmp_path / "entry[1]", tmp_path / "other"
    code = (
        "import pathlib, sys, time\n"
        "from pipeline.encoders.building import building_beside\n"
        "with building_beside(pathlib.Path(sys.argv[1])) as building:\n"
        "    (building / 'some').touch()\n"
        "    print(building, flush=True)\n"
        "    time.sleep(60)\n"
    )
    killed, living, elsewhere = (
        subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True)
        for place in (entry, entry, other)
    )
    try:
        left, held, apart = (Path(one.stdout.readline().strip()) for one in (killed, living, elsewhere))
        killed.kill()
        killed.wait()
        for folder in (left, held, apart):
            os.utime(folder, (0, 0))
        with building_beside(entry) as building:
            put_in_place(building, {}, entry)
        assert entry.is_dir()
        assert (left.exists(), held.exists(), apart.exists()) == (False, True, True)
    finally:
        for one in (killed, living, elsewhere):
            one.kill()
            one.communicate()


def test_what_appears_where_an_encoder_is_to_be_stays(tmp_path):
    building, entry = tmp_path / "building", tmp_path / "entry"
    building.mkdir()
    entry.mkdir()
    (entry / "mine").touch()

    with pytest.raises(OSError, match="not empty"):
        put_in_place(building, {}, entry)

    assert (entry / "mine").is_file()


def test_a_model_that_changes_while_it_is_read_makes_no_encoder(tmp_path, monkeypatch):
    folder, other = models.tiny_bert(tmp_path / "model"), models.tiny_bert(tmp_path / "other", seed=5)
    read = exporting.from_torch

    def changed(*given):
        shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")
        return read(*given)

    monkeypatch.setattr(exporting, "from_torch", changed)
    config = EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"))

    with pytest.raises(EncoderError, match="make encoder version"):
        load_encoder(config)
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


def test_an_encoder_that_another_export_has_put_there_is_taken(built, tmp_path, monkeypatch):
    spec = describe(built)
    there = prepare(spec, built)

    def late(_building, _manifest, entry):
        shutil.copytree(there, entry)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setitem(prepare.__globals__, "put_in_place", late)
    export(built, tmp_path / "out")

    assert read_manifest(tmp_path / "out")["version"] == spec.version


def test_a_link_to_an_empty_folder_is_filled(built, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    export(built, tmp_path / "link")

    assert (tmp_path / "real" / GRAPH).is_file()


def test_a_model_of_nan_fails_the_gate_and_leaves_nothing(tmp_path):
    folder = models.tiny_bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"))

    with pytest.raises(ParityError, match="the model itself gives NaN"):
        prepare(describe(config), config)

    assert not [
        path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock" and path.name != "hashes"
    ]


def test_files_that_changed_since_they_were_described_are_not_used(tmp_path, tiny_model):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"))
    spec = describe(config)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')

    with pytest.raises(EncoderError, match="make encoder version"):
        prepare(spec, config)


def test_a_cache_that_cannot_be_written(tiny_model):
    config = EncoderConfig(model=str(tiny_model), cache="/proc/nowhere")

    with pytest.raises(EncoderError, match=r"cannot be written.*encoder\.cache"):
        prepare(describe(config), config)
