"""Runs for tests: settings over a tiny model, ingest in this process, the command line in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

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


def command(*arguments: str | bytes | Path, cache: Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run `headwater` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *(a if isinstance(a, bytes) else str(a) for a in arguments)],
        env={**os.environ, "HEADWATER_ENCODER__CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **keywords,
    )


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
