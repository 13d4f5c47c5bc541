"""Log lines: their form, whom they are about, and what is never in them."""

import io
import json
import logging
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import documents
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from pipeline import logs
from pipeline.config import load

KEY = 'sk-9"f/+ü7 x'


@pytest.fixture
def configured():
    """A function that configures logging for `lines` and puts all back in the end."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook
    lines = []

    def configure(**settings):
        root.handlers[:] = []  # pytest's own raise what a library says wrongly
        flags = {"run.log": "json", "run.log_level": "debug", "store.api_key": KEY}
        logs.configure(
            load(None, flags | {k.replace("__", "."): v for k, v in settings.items()}), lines.append
        )
        return lines

    yield configure
    root.handlers[:], level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    logs.set_run("")
    for ours in ("pipeline", "workers"):
        logging.getLogger(ours).setLevel(logging.NOTSET)
    logs._form, logs._secrets = "text", ()


log = logs.logger("pipeline.test")


def test_a_line_is_one_json_object_with_what_it_is_about(configured):
    lines = configured()
    logs.set_run("r1")
    with logs.about("s1"):
        log.info("lane_ready", lanes=2, gpus=["0", "1"], where=None)
    (line,) = map(json.loads, lines)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "lane_ready", "level": "info", "logger": "pipeline.test", "run": "r1", "split": "s1",
        "lanes": 2, "gpus": ["0", "1"], "where": None,
    }  # fmt: skip


def test_text_says_the_same_on_one_line(configured):
    lines = configured(run__log="text")
    logs.set_run("r1")
    log.warning("lane_lost", why="out of memory")
    (line,) = lines
    assert line.count("\n") == 0
    assert "[warning  ] lane_lost" in line
    assert "why='out of memory'" in line
    assert "run=r1" in line


def test_a_librarys_line_has_the_same_form_and_the_same_run(configured):
    lines = configured()
    logs.set_run("r1")
    logging.getLogger("httpx").warning("GET %s took %d s", "/points", 3)
    line = json.loads(lines[0])
    assert (line["event"], line["logger"], line["run"]) == ("GET /points took 3 s", "httpx", "r1")


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [("debug", 4, 2), ("info", 3, 2), ("warning", 2, 2), ("error", 1, 1)],
)
def test_the_level_is_ours_and_libraries_chatter_stays_out(configured, level, ours, theirs):
    lines = configured(run__log_level=level)
    for speak in (log, logging.getLogger("httpx")):
        for name in ("debug", "info", "warning", "error"):
            getattr(speak, name)("said")
    names = [json.loads(line)["logger"] for line in lines]
    assert (names.count("pipeline.test"), names.count("httpx")) == (ours, theirs)


def test_a_thread_names_the_split_of_the_context_it_was_given(configured):
    lines = configured()
    with ThreadPoolExecutor(2) as threads:
        for split in ("s1", "s2"):
            with logs.about(split):
                threads.submit(copy_context().run, log.info, split).result()
        threads.submit(log.info, "none").result()
    assert [json.loads(line).get("split") for line in lines] == ["s1", "s2", None]


def test_configured_twice_every_line_is_written_once(configured):
    configured()
    lines = configured()
    log.info("once")
    assert len(lines) == 1


def test_a_librarys_broken_message_is_a_line_and_no_traceback(configured, capsys):
    lines = configured()
    logging.getLogger("odd").warning("%d of %s", "x")
    assert "unreadable" in json.loads(lines[0])["event"]
    assert capsys.readouterr().err == ""


def planted(where):
    """A way to say a secret."""
    if where == "field":
        log.error("refused", answer={"deep": [f"key {KEY} is wrong"]})
    elif where == "event":
        log.error(f"refused {KEY}")
    elif where == "library":
        logging.getLogger("httpx").warning("sent %s", {"api-key": KEY})
    elif where == "object":
        log.error("refused", error=ValueError(f"no {KEY}"))
    else:
        try:
            raise ValueError(f"no {KEY}")
        except ValueError:
            (log if where == "ours" else logging.getLogger("lib")).exception("failed")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("where", ["field", "event", "library", "object", "ours", "theirs"])
def test_the_stores_key_is_in_no_line(configured, form, where):
    lines = configured(run__log=form)
    planted(where)
    (line,) = lines
    assert "***" in line
    for shape in (KEY, json.dumps(KEY)[1:-1], "sk-9", "/+ü7"):
        assert shape not in line


def test_a_key_from_a_file_and_a_password_in_the_url_are_secrets_too(configured, tmp_path):
    (tmp_path / "key").write_text("from-a-file\n")
    lines = configured(
        store__api_key_file=str(tmp_path / "key"), store__url="https://me:p%40ssw0rd@qdrant:6333/"
    )
    log.error("said from-a-file, p%40ssw0rd and p@ssw0rd")
    assert json.loads(lines[0])["event"] == "said ***, *** and ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:pw@host:6333/x?y=1", "at https://***@host:6333/x?y=1"),
        ("s3://bucket/user@example/file", "s3://bucket/user@example/file"),
        ("https://b/f?X-Amz-Signature=ab12&X-Amz-Date=7", "https://b/f?X-Amz-Signature=***&X-Amz-Date=7"),
        ("https://b/f?X-Amz-Credential=A%2Fs3&sig=q%3D", "https://b/f?X-Amz-Credential=***&sig=***"),
        ("https://b/f?X-Amz-Security-Token=zz'", "https://b/f?X-Amz-Security-Token=***'"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("sent 'Bearer abcdefgh.ij-k'", "sent 'Bearer ***'"),
        ("{'api_key': 'k k', 'n': 1}", "{'api_key': ***, 'n': 1}"),
        ("password=hunter2; max_tokens=64, tokens: 12", "password=***; max_tokens=64, tokens: 12"),
        ("the tokenizer has 30522 tokens", "the tokenizer has 30522 tokens"),
    ],
)
def test_what_looks_like_a_secret_in_a_text_is_hidden(text, shown):
    assert logs.redacted(text) == shown


def test_what_is_named_a_secret_is_hidden():
    said = {
        "api_key": "a", "Authorization": "b", "aws_secret_access_key": "c", "hf_token": "d", "PASSWORD": "e",
        "credentials": {"f": "g"}, "tokens": 5, "max_tokens": 6, "token_ids": [7], "api_key_file": "/h", "token": "",
    }  # fmt: skip
    shown = logs.redacted(said)
    assert {name for name, value in shown.items() if value == "***"} == {
        "api_key", "Authorization", "aws_secret_access_key", "hf_token", "PASSWORD", "credentials"
    }  # fmt: skip
    assert (shown["tokens"], shown["token_ids"], shown["api_key_file"]) == (5, [7], "/h")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(values)
def test_anything_can_be_redacted_and_twice_is_as_once(value):
    once = logs.redacted(value)
    json.dumps(once)
    assert logs.redacted(once) == once


def test_a_run_says_what_it_does_and_every_line_carries_it(configured, tmp_path, tiny_model, encoder_cache):
    rows = documents.rows(30)
    rows[3]["text"] = rows[4]["text"] = ""
    rows[17]["id"] = None
    source = documents.write(tmp_path / "docs.parquet", rows, row_group=10)
    to = runs.settings(
        tiny_model, encoder_cache, f"edge:{tmp_path}/index", run__log="json", run__log_level="debug"
    )
    lines = configured()
    summary = runs.run(source, to)
    said = [json.loads(line) for line in lines if json.loads(line)["logger"].startswith("pipeline")]
    about = said[[line["event"] for line in said].index("run_started") :]
    assert {line["run"] for line in about} == {summary.run}
    by = {
        name: [line for line in about if line["event"] == name] for name in {said["event"] for said in about}
    }
    assert by["run_started"][0]["documents"] == 30
    assert len(by["split_begun"]) == len(by["split_done"]) == 3
    assert {line["split"] for line in by["split_begun"]} == {line["split"] for line in by["split_done"]}
    reasons = [(line.get("empty_text"), line.get("null_id")) for line in by["documents_rejected"]]
    assert sorted(reasons, key=str) == [(2, None), (None, 1)]
    assert by["run_finished"][0]["rejected"] == 3
    assert sum(line["indexed"] for line in by["split_done"]) == by["run_finished"][0]["indexed"] == 27


def test_a_retry_of_the_store_names_its_split(configured, tmp_path, tiny_model, encoder_cache, monkeypatch):
    from qdrant_client.http.exceptions import ResponseHandlingException
    from qdrant_server import running

    from pipeline.stores.server import ServerStore

    send, failures = ServerStore._send, iter([True] * 2)

    def refuse(self, *arguments):
        if threading.current_thread().name.startswith("split-") and next(failures, False):
            raise ResponseHandlingException(OSError(f"reset; the key was {KEY}"))
        return send(self, *arguments)

    monkeypatch.setattr(ServerStore, "_send", refuse)
    source = documents.write(tmp_path / "docs.parquet", documents.rows(5), row_group=5)
    with running(tmp_path / "qdrant", "") as server:
        lines = configured(run__log_level="warning")
        summary = runs.run(
            source, runs.settings(tiny_model, encoder_cache, server.rest_url, store__prefer_grpc=False)
        )
    assert summary.counts.indexed == 5
    (line,) = [json.loads(line) for line in lines if "retrying" in line]
    assert (line["cause"], line["run"], len(line["split"])) == ("StoreUnavailable", summary.run, 16)
    assert KEY not in json.dumps(line, ensure_ascii=False)


def test_with_json_stderr_holds_nothing_else(tmp_path, tiny_model, encoder_cache):
    rows = documents.rows(30)
    rows[3]["text"] = ""
    source = documents.write(tmp_path / "docs.parquet", rows)
    arguments = [
        "ingest", source, "--encoder", tiny_model, "--store", f"edge:{tmp_path}/index", "--collection", "docs",
        "--set", "run.log=json", "--set", "run.log_level=info",
    ]  # fmt: skip
    done = runs.command(*arguments, cache=encoder_cache)
    assert done.returncode == 3, done.stderr
    said = runs.lines(done.stderr)
    assert {"progress", "run_started", "documents_rejected", "run_finished"} <= {
        line["event"] for line in said
    }
    failed = runs.command(*arguments, "--set", "store.vector_name=other", cache=encoder_cache)
    assert failed.returncode == 1
    assert "other" in runs.lines(failed.stderr)[-1]["error"]


def test_a_bar_on_a_terminal_is_not_torn_by_log_lines(configured, monkeypatch):
    from rich.console import Console

    from pipeline.cli import report
    from pipeline.schemas import Progress

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, soft_wrap=True, highlight=False)
    monkeypatch.setattr(report, "console", console)
    settings = load(None, {"run.log_level": "info"})
    configured()
    logs.configure(settings, report.print_line)
    with report.progress() as observe:
        for documents_done in range(5):
            observe(Progress("indexing", documents_done, 5))
            log.warning("lane_lost", number=documents_done, why="[bold]x[/]")
    said = [line for line in screen.getvalue().split("\n") if "lane_lost" in line]
    assert len(said) == 5
    for line in said:  # the bar is erased before it, and drawn again below
        assert re.search(r"\r\x1b\[2K\d{4}-\S+ \[warning  \] lane_lost .*why=\[bold\]x\[/\]$", line)


def test_in_a_program_with_logging_of_its_own_an_event_is_a_line_of_text(caplog):

    logs.logger("pipeline.stores.x").warning("retrying", cause="StoreUnavailable", error="no answer")
    assert caplog.records[-1].getMessage() == "retrying cause=StoreUnavailable error=no answer"
