"""What the READMEs say holds: commands parse, files exist, Python blocks import what there is. Nothing is run here."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from commands import WRONG, check
from deployed import DEPLOY, ROOT, stages

READMES = {folder: (folder / "README.md").read_text(encoding="utf-8") for folder in (ROOT, DEPLOY)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOP = tuple(f"{folder}/" for folder in ("deploy", "pipeline", "tests", "workers"))
MADE = "deploy/secrets"  # by the reader, as the README says


def blocks(language: str) -> list[str]:
    return [code for text in READMES.values() for kind, code in FENCE.findall(text) if kind == language]


def named_files(text: str, folder: Path = ROOT) -> set[Path]:
    """Links within the repository, and what looks like a path of it: in backticks, or a word of a command."""
    links = {folder / link for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)}
    ticked = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    typed = [word for kind, code in FENCE.findall(text) if kind == "bash" for word in code.split()]
    words = {word.strip("'\",;:") for word in (*ticked, *typed)}
    paths = {ROOT / word for word in words if word.startswith(TOP) and not word.startswith(MADE)}
    return {path for path in {*links, *paths} if "*" not in path.name}


def missing_imports(code: str) -> list[str]:
    """What a block imports of modules that are not there, or that do not have it."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            missing += [name.name for name in node.names if importlib.util.find_spec(name.name) is None]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
    return missing


def test_there_is_something_to_check():
    assert sum(map(check, blocks("bash"))) > 15
    assert blocks("python")


@pytest.mark.parametrize("script", blocks("bash"))
def test_commands_are_those_of_the_real_command_line(script):
    check(script)


@pytest.mark.parametrize("folder", READMES)
def test_every_file_it_names_exists(folder):
    named = {Path(str(path).partition("#")[0]) for path in named_files(READMES[folder], folder)}
    assert named
    assert [path for path in sorted(named) if not path.exists()] == []


def test_docker_builds_stages_that_exist():
    built = stages((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    targets = re.findall(r"--target (\w+)", "\n".join(blocks("bash")))
    assert targets
    assert set(targets) <= set(built)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_imports_what_there_is(code):
    compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert missing_imports(code) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("--collection docs", "--colection docs"),
        ("headwater search", "headwater serach"),
        ("ray job submit", "ray job sumbit"),
        ("--executor ray", "--executor rays"),
        ("--run-id manual", "--run-id 'not a name'"),
    ],
)
def test_a_wrong_command_would_be_found(right, wrong):
    scripts = [script for script in blocks("bash") if right in script]
    assert scripts
    for script in scripts:
        with pytest.raises(WRONG):
            check(script.replace(right, wrong))


def test_a_missing_file_or_name_would_be_found():
    assert ROOT / "deploy/confg.toml" in named_files("[settings](deploy/confg.toml)")
    assert DEPLOY / "confg.toml" in named_files("[settings](confg.toml)", DEPLOY)
    assert ROOT / "tests/chekc.py" in named_files("`tests/chekc.py`")
    assert missing_imports("from pipeline.search import Raeder") == ["pipeline.search.Raeder"]
