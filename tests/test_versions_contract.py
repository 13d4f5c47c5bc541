"""The contract of a collection: what it says survives being written, and what it refuses says how to go on."""

from dataclasses import replace

import pytest

from pipeline.config import EncoderConfig
from pipeline.errors import CollectionMismatch
from pipeline.versions import CodesContract, Contract

PLAIN = Contract("v2", "minilm", "fp32", 256, "", "query: ", "cut2", "", 384, "cosine", "plain")
CODES = CodesContract("codes", "f", 2, 48, "norm", "planes", "codes", True)


@pytest.mark.parametrize(
    "contract",
    [
        PLAIN,
        replace(PLAIN, codes=CODES),
        replace(PLAIN, compatible={"v1": "b1", "v0": "b1"}, also_cut_by=("cut0", "cut1")),
    ],
)
def test_it_is_read_as_it_was_written(contract):
    assert Contract.read(contract.metadata(), "docs") == contract


def test_what_is_optional_is_not_written_where_there_is_none_and_not_needed():
    assert PLAIN.metadata()["headwater"].keys().isdisjoint({"codes", "compatible", "also_cut_by"})
    assert PLAIN.metadata()["headwater"]["document_prompt"] == ""
    assert PLAIN.encoder_versions == {"v2"}
    mixed = replace(PLAIN, compatible={"v1": "b"}, also_cut_by=("cut1",))
    assert (mixed.encoder_versions, mixed.chunker_versions) == ({"v1", "v2"}, {"cut1", "cut2"})


def test_another_encoder_is_refused_with_the_three_ways_on_also_where_its_points_may_be():
    mixed = replace(PLAIN, compatible={"v1": "b"})
    mixed.check_encoder("v2", "minilm", "docs")
    for version in ("v1", "v3"):
        with pytest.raises(CollectionMismatch) as refused:
            mixed.check_encoder(version, "mpnet", "docs")
        for way in ("reindex --to mpnet --bridge DIR", "reindex --to mpnet embeds", "another --collection"):
            assert way in refused.value.do


def test_another_version_of_the_same_model_is_told_apart_by_its_settings():
    late = replace(PLAIN, settings={"long": "late-chunking"})
    with pytest.raises(
        CollectionMismatch, match="precision = 'fp32', max_tokens = 256, long = 'late-chunking'"
    ):
        late.check_encoder("v1", "minilm", "docs")
    with pytest.raises(CollectionMismatch) as refused:
        late.check_encoder("v1", "mpnet", "docs")
    assert "late-chunking" not in str(refused.value)


def test_the_encoder_is_the_contracts_and_run_as_asked():
    how = EncoderConfig(cache="here", threads=2, codes="c", query_prompt="")
    config = PLAIN.encoder_config(how)
    assert (config.model, config.query_prompt, config.max_tokens) == ("minilm", "query: ", 256)
    assert (config.cache, config.threads, config.codes) == ("here", 2, "")
    assert PLAIN.encoder_config(EncoderConfig(model="moved")).model == "moved"
