"""Runs for tests: settings over a tiny model, ingest in this process, the command line in another."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from pipeline import logs
from pipeline.cli import main
from pipeline.config import Settings, load
from pipeline.ingest import Executor, Summary, ingest
from pipeline.local import LocalExecutor


def settings(model: Path | str, cache: Path, store: str, **more: Any) -> Settings:
    """Settings of a test's run; `section__key=value` sets any other key."""
    flags = {
        "encoder.model": str(model),
        "encoder.cache": str(cache),
        "encoder.provider": "cpu",
        "store.url": store,
        "store.collection": "docs",
        "chunking.max_tokens": 48,
        "run.commit_every_s": 0,
    }
    return load(None, flags | {key.replace("__", "."): value for key, value in more.items()})


def run(uri: Path | str, to: Settings, executor: Executor | None = None) -> Summary:
    """Ingest in this process."""
    return ingest(str(uri), to, executor or LocalExecutor(), threading.Event())


def command(
    *arguments: str | bytes | Path, cache: Path, timeout: float = 240, **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """Run `headwater` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *(a if isinstance(a, bytes) else str(a) for a in arguments)],
        env={**os.environ, "HEADWATER_ENCODER__CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **keywords,
    )


def inside(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run `headwater` in this process, which takes no time to start; what it sets up for a process is put back."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("pipeline").level
    words = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HEADWATER_ENCODER__CACHE", str(cache))
        patch.setattr(sys, "argv", ["headwater", *words])
        for owner, name in ((sys, "excepthook"), (threading, "excepthook"), (warnings, "showwarning")):
            patch.setattr(owner, name, getattr(owner, name))
        try:
            main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            for name in ("pipeline", "workers"):
                logging.getLogger(name).setLevel(ours)
            logs.set_run("")
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, cache: Path) -> subprocess.Popen[str]:
    """Start `headwater` in a process group of its own, to be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        env={**os.environ, "HEADWATER_ENCODER__CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(output: str) -> list[Any]:
    """The JSON values of an output, one a line."""
    return [json.loads(line) for line in output.splitlines()]
