"""A lane in this process that stands still, or is only slow."""

import subprocess
import sys
import time

import documents
import pytest
import runs

from pipeline.config import StoreConfig
from pipeline.encoders import Encoder
from pipeline.ingest import history
from pipeline.stores import open_store
from pipeline.stores.lease import LEASES

HANGS = """
import time
from pipeline.cli import main
from pipeline.encoders import Encoder

encode, calls = Encoder.encode, []

def hang(self, token_ids, documents=None):
    calls.append(1)
    if len(calls) > 2:
        time.sleep(1000)
    return encode(self, token_ids, documents)

Encoder.encode = hang
main()
"""


@pytest.fixture
def source(tmp_path):
    return documents.write(tmp_path / "docs.parquet", documents.rows(30), row_group=5)


def test_an_encoder_that_hangs_ends_the_process_which_lets_go_of_the_collection_and_the_next_run_goes_on(
    source, tiny_model, encoder_cache, qdrant, tmp_path
):
    to = runs.settings(
        tiny_model,
        encoder_cache,
        qdrant.grpc_url,
        store__collection="hung",
        run__state=str(tmp_path / "state"),
    )
    done = subprocess.run(
        [
            sys.executable, "-c", HANGS, "ingest", source, "--encoder", tiny_model, "--store", qdrant.grpc_url,
            "--collection", "hung", "--set", f"encoder.cache={encoder_cache}", "--set", "encoder.provider=cpu",
            "--set", "chunking.max_tokens=48", "--set", "run.commit_every_s=0",
            "--set", f"run.state={tmp_path / 'state'}", "--set", "run.split_deadline_s=3",
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert "no document done for 3 s in" in said
    assert "docs.parquet from row" in said
    assert "An encoder and a store that get on. Run again" in said
    assert "Traceback" not in done.stderr
    (run,) = history(to)
    assert run.state == "failed"
    store = open_store(StoreConfig(url=qdrant.grpc_url))
    leases = [record.payload for record in store.scroll(LEASES, limit=100)[0]]
    assert [lease["holder"] for lease in leases if lease["collection"] == "hung"] == [None]
    store.close()
    again = runs.run(source, to)
    assert again.exit_code == 0
    assert again.resumed_splits == 2
    assert again.counts.read == 30


def test_a_lane_that_gets_on_may_take_longer_than_the_deadline(
    source, tiny_model, encoder_cache, tmp_path, monkeypatch
):
    encode = Encoder.encode

    def slow(self, token_ids, documents=None):
        time.sleep(2)
        return encode(self, token_ids, documents)

    monkeypatch.setattr(Encoder, "encode", slow)
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", run__split_deadline_s=5)
    began = time.monotonic()
    assert runs.run(source, to).counts.indexed == 30
    assert time.monotonic() - began > 6
