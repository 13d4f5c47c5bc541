"""The commands as users type them, most in processes of their own."""

import os
import shlex
import subprocess
import sys

import documents
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def source(folder):
    return documents.write(folder / "docs.parquet", documents.rows(30), row_group=8)


@pytest.fixture(scope="module")
def base(tiny_model, folder):
    return ["--id", "id", "--text", "text", "--encoder", tiny_model, "--store", f"edge:{folder}/index"]


@pytest.fixture(scope="module")
def ingested(source, base, encoder_cache):
    done = runs.command("ingest", source, *base, "--collection", "docs", "--json", cache=encoder_cache)
    assert done.returncode == 0, done.stderr
    return runs.lines(done.stdout)[0]


@pytest.fixture
def where(folder, ingested):
    return ["--store", f"edge:{folder}/index", "--collection", "docs"]


def test_plan_counts_what_ingest_does_and_writes_nothing(
    source, base, encoder_cache, folder, ingested, tmp_path
):
    elsewhere = [*base[:-1], f"edge:{tmp_path}/index"]
    done = runs.command("plan", source, *elsewhere, "--collection", "docs", "--json", cache=encoder_cache)
    (plan,) = runs.lines(done.stdout)
    assert plan["documents"] == ingested["indexed"] == 30
    assert plan["chunks"] == ingested["chunks"]
    assert plan["tokens"] == ingested["tokens"]
    assert plan["vector_bytes"] == plan["chunks"] * 32 * 4
    assert plan["seconds"] >= 0
    assert list(tmp_path.iterdir()) == []


def test_ingest_reports_every_count(ingested):
    names = ("indexed", "unchanged", "patched", "deleted", "stale", "rejected")
    assert ingested["read"] == sum(ingested[name] for name in names) == 30
    assert ingested["removed"] == ingested["points_removed"] == 0
    assert ingested["chunks"] == ingested["points"] > 30
    assert ingested["seconds"] > 0


def test_search_finds_a_document_by_its_own_words(where, encoder_cache):
    words = documents.rows(30)[11]["text"]
    done = runs.command("search", words, *where, "--limit", 3, "--json", cache=encoder_cache)
    (found,) = runs.lines(done.stdout)
    assert found["query"] == words
    assert len(found["results"]) == 3
    best = found["results"][0]
    assert set(best) == {
        "document_id", "namespace", "chunk_index", "score", "text", "start", "end", "metadata", "encoder_version",
    }  # fmt: skip
    assert best["document_id"] == "doc-11"
    assert words[best["start"] : best["end"]] == best["text"]
    assert best["metadata"]["year"] == 2011


def test_search_by_document_gives_each_document_once(where, encoder_cache):
    done = runs.command(
        "search", "river", *where, "--limit", 30, "--by", "document", "--json", cache=encoder_cache
    )
    ids = [result["document_id"] for result in runs.lines(done.stdout)[0]["results"]]
    assert len(ids) == len(set(ids)) == 30


def test_search_obeys_filters(where, encoder_cache):
    done = runs.command(
        "search", "river", *where, "--limit", 50, "--filter", "year>=2015", "--filter", "draft=true", "--json",
        cache=encoder_cache,
    )  # fmt: skip
    results = runs.lines(done.stdout)[0]["results"]
    assert results
    assert all(r["metadata"]["year"] >= 2015 and r["metadata"]["draft"] for r in results)


def test_many_queries_give_a_line_each(where, encoder_cache, tmp_path):
    texts = [row["text"] for row in documents.rows(30)[:3]]
    pq.write_table(pa.table({"id": ["q1", "q2", "q3"], "text": texts}), tmp_path / "queries.parquet")
    done = runs.command(
        "search", "--queries", tmp_path / "queries.parquet", *where, "--limit", 5, "--by", "document", "--json",
        cache=encoder_cache,
    )  # fmt: skip
    found = runs.lines(done.stdout)
    assert [line["query_id"] for line in found] == ["q1", "q2", "q3"]
    assert [line["results"][0]["document_id"] for line in found] == ["doc-0", "doc-1", "doc-2"]


def test_evaluate_retrieval_finds_its_own_texts(tiny_model, encoder_cache, tmp_path):
    rows = documents.rows(20, most_words=20)
    pq.write_table(
        pa.Table.from_pylist([{"id": r["id"], "text": r["text"]} for r in rows]), tmp_path / "d.parquet"
    )
    pq.write_table(pa.table({"id": ["q"], "text": [rows[3]["text"]]}), tmp_path / "q.parquet")
    pq.write_table(
        pa.table({"query_id": ["q"], "document_id": ["doc-3"], "relevance": [1]}), tmp_path / "r.parquet"
    )
    done = runs.command(
        "evaluate", "retrieval", "--documents", tmp_path / "d.parquet", "--queries", tmp_path / "q.parquet",
        "--qrels", tmp_path / "r.parquet", "--encoder", tiny_model, "--json", cache=encoder_cache,
    )  # fmt: skip
    assert runs.lines(done.stdout) == [{"ndcg@10": 1.0, "recall@100": 1.0, "queries": 1}]


def test_an_arrow_stream_on_stdin_is_indexed(base, encoder_cache, tmp_path):
    table = pa.Table.from_pylist(documents.rows(9))
    with pa.ipc.new_stream(tmp_path / "docs.arrows", table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    with (tmp_path / "docs.arrows").open("rb") as stdin:
        done = runs.command(
            "ingest", "-", *base[:-1], f"edge:{tmp_path}/index", "--collection", "docs", "--json",
            cache=encoder_cache, stdin=stdin,
        )  # fmt: skip
    assert runs.lines(done.stdout)[0]["indexed"] == 9


def test_doctor_says_what_is_there(source, base, where, encoder_cache):
    done = runs.command("doctor", source, *base, "--collection", "docs", "--json", cache=encoder_cache)
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in runs.lines(done.stdout)[0]}
    assert all(check["ok"] for check in checks.values())
    assert "takes this encoder" in checks["store"]["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--id", "key"], 2, ["'key'", "id, text"]),
        (["--text", "body"], 2, ["'body'"]),
        (["--id", "score"], 2, ["score", "double"]),
        (["--encoder", "/no/such/folder"], 1, ["/no/such/folder"]),
        (["--store", "redis://x"], 2, ["redis", "edge:DIR"]),
        (["--store", "grpc://127.0.0.1:1", "--set", "store.retries=0"], 1, ["127.0.0.1:1"]),
        (["--set", "chunking.max_token=3"], 2, ["max_token", "max_tokens"]),
        (["--set", "chunking.max_tokens=few"], 2, ["chunking.max_tokens"]),
        (["--config", "/no/such/config.toml"], 2, ["/no/such/config.toml"]),
    ],
)
def test_a_users_mistake_gets_a_message_and_no_traceback(
    arguments, code, words, source, base, where, encoder_cache
):
    done = runs.inside("ingest", source, *base, "--collection", "docs", *arguments, cache=encoder_cache)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr.replace("\n", "")


@pytest.mark.parametrize("ending", ["", "2>&-"], ids=["nobody reads", "closed"])
def test_stderr_ends_no_run(ending, tmp_path, source, base, encoder_cache):
    store = ["--store", f"edge:{tmp_path}/index", "--collection", "docs"]
    words = ["ingest", source, *base[:-2], *store, "--json", "--set", "run.log_level=debug"]
    reading, writing = os.pipe()
    os.close(reading)
    command = shlex.join([sys.executable, "-m", "pipeline.cli", *map(str, words)])
    done = subprocess.run(
        ["bash", "-c", f"exec {command} {ending}"],
        env={**os.environ, "HEADWATER_ENCODER__CACHE": str(encoder_cache)},
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        timeout=240,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
    assert runs.lines(done.stdout)[0]["indexed"] == 30


def test_searching_what_is_not_there_says_so(folder, ingested, encoder_cache):
    done = runs.inside(
        "search", "x", "--store", f"edge:{folder}/index", "--collection", "none", cache=encoder_cache
    )
    assert done.returncode == 1
    assert "no collection 'none'" in done.stderr


def test_what_takes_long_to_import_is_imported_where_ctrl_c_is_no_traceback():
    code = "import sys, pipeline.cli; print({'numpy', 'pyarrow', 'rich', 'pydantic'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"
