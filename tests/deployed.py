"""The files of deploy/, read for the tests that check them."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(re.findall(r"^([\w.-]+)==([^ \n]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
RAYJOBS = ["kuberay/rayjob.yaml", "kuberay/rayjob-gpu.yaml"]


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def run(*words: str | Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; one that came as a wheel is next to this Python."""
    program = Path(sys.executable).parent / words[0]
    words = (program, *words[1:]) if program.exists() else words
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **keywords)


def instructions(text: str) -> list[tuple[str, str]]:
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    return [
        (part["instruction"], part["value"]) for part in parser.structure if part["instruction"] != "COMMENT"
    ]


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions by the stage's name, those of the stages it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, value in instructions(text):
        if instruction == "FROM":
            base, name = re.split(r"\s+as\s+", value, flags=re.IGNORECASE)
            found[name] = list(found.get(base, []))
        found[name].append((instruction, value))
    return found


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    words = [word for kind, value in stage if kind == "ENV" for word in shlex.split(value)]
    return dict(word.split("=", 1) for word in words)


def variables(text: str) -> dict[str, str]:
    """NAME=value at the beginning of lines."""
    return dict(re.findall(r"^([A-Z]\w*)=(.*)$", text, re.MULTILINE))


def objects() -> dict[str, dict[str, Any]]:
    """Every object of the plain manifests, by kind."""
    names = ("kuberay/claim.yaml", "kuberay/schedule.yaml")
    return {item["kind"]: item for name in names for item in yaml.safe_load_all(read(name))}


def templates(rayjob: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    yield from (group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
