"""Commands as they are written in files and documents, parsed by the real command lines without being run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import ray.scripts.scripts
import typer

from pipeline.cli import options
from pipeline.cli.app import app
from pipeline.config import load
from pipeline.errors import UsageError

PROGRAMS = {"headwater": typer.main.get_command(app), "ray": ray.scripts.scripts.cli}
# What a wrong command raises: Ray's click, typer's own copy of it, our settings.
WRONG = (click.UsageError, typer.BadParameter.__base__, UsageError)
_IMAGE = re.compile(r"headwater:[\d.]+-\w+")
_OPERATORS = set("();<>|&")
_REDIRECTIONS = {"<", ">", ">>", "<<", ">&", "&>"}


def check(script: str) -> int:
    """Parse each `headwater` and `ray` command of a shell script, also inside others; returns how many there are.

    Raises one of WRONG.
    """
    return sum(check_words(words) for words in _commands(script))


def check_words(words: Sequence[str]) -> int:
    """Parse one command, already split into words; returns how many of ours are in it."""
    words = words[1:] if words[:1] == ["sudo"] else words
    assigned = {}
    while words and "=" in words[0] and words[0].partition("=")[0].isidentifier():
        name, _, assigned[name] = words[0].partition("=")
        words = words[1:]
    check_environment(assigned)
    program, *rest = [Path(words[0]).name, *words[1:]] if words else [""]
    if program in PROGRAMS:
        return 1 + _parse(program, rest)
    if program in {"sh", "bash"} and rest[:1] == ["-c"]:
        return check(rest[1])
    if program in {"docker", "kubectl"}:
        return check_words(_inside(rest))
    return 0


def check_environment(variables: Mapping[str, str]) -> int:
    """Load the settings as they would be with these variables alone; returns how many are ours.

    Raises one of WRONG.
    """
    with pytest.MonkeyPatch.context() as process:
        for name in list(os.environ):
            process.delenv(name)
        for name, value in variables.items():
            process.setenv(name, value)
        load()
    return sum(name.startswith("HEADWATER_") for name in variables)


def _commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command; redirections are left out."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        tokens = iter(lexer)
        for token in tokens:
            if token in _REDIRECTIONS:
                next(tokens, None)
                if words and words[-1].isdigit():
                    words.pop()
            elif set(token) <= _OPERATORS:
                yield words
                words = []
            else:
                words.append(token)
        yield words


def _inside(words: Sequence[str]) -> Sequence[str]:
    """The command that runs in a container: after `exec SERVICE`, or what our image's entrypoint makes of it."""
    if "exec" in words:
        started = [number for number, word in enumerate(words) if word in PROGRAMS]
        return words[started[0] :] if started else []
    images = [number for number, word in enumerate(words) if _IMAGE.fullmatch(word)]
    if "run" not in words or not images:
        return []
    command = words[images[0] + 1 :]
    return (
        command if command and command[0] in {*PROGRAMS, "sh", "bash", "python"} else ["headwater", *command]
    )


def _parse(name: str, words: Sequence[str]) -> int:
    """Let the command line parse its words; returns how many commands of ours a submitted job holds."""
    context = PROGRAMS[name].make_context(name, list(words))
    while hasattr(context.command, "resolve_command"):
        left = [*context._protected_args, *context.args]
        child_name, child, left = context.command.resolve_command(context, left)
        context = child.make_context(child_name, left, parent=context)
    values: dict[str, Any] = context.params
    if name == "headwater":
        options.settings(None, values.get("set"), {"run.id": values.get("run_id")})
    return check(shlex.join(values["entrypoint"])) if "entrypoint" in values else 0
