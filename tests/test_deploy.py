"""The image and compose: what they build and run, as far as it can be checked without an engine.

tests/schemas/README.md says what each file of deploy/ is checked by.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from deployed import DEPLOY, PINS, PROJECT, ROOT, environment, instructions, read, run, stages


def test_hadolint_has_nothing_to_say_of_the_dockerfile():
    said = run("hadolint", DEPLOY / "Dockerfile")
    assert (said.returncode, said.stdout) == (0, "")


def test_hadolint_refuses_a_dockerfile_with_a_floating_base(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text(read("Dockerfile").replace("python:3.11.14-slim-bookworm", "python:latest"))
    assert "DL3007" in run("hadolint", bad).stdout


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_images_run_as_a_plain_user_without_telemetry(target):
    stage = stages(read("Dockerfile"))[target]
    assert [value for kind, value in stage if kind == "USER"] == ["1000"]
    assert stage[-1][0] == "USER"  # nothing after it
    assert environment(stage)["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_an_image_writes_lies_on_its_volume(target):
    stage = stages(read("Dockerfile"))[target]
    (volume,) = (value for kind, value in stage if kind == "VOLUME")
    variables = environment(stage)
    for name in ("HEADWATER_ENCODER__CACHE", "XDG_STATE_HOME"):
        assert variables[name].startswith(f"{volume}/")


def test_what_the_dockerfile_copies_is_there_and_is_sent():
    sent = {line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for kind, value in instructions(read("Dockerfile")):
        if kind == "COPY" and "--from=" not in value:
            *sources, _ = [word for word in value.split() if not word.startswith("--")]
            copied.update(sources)
    assert all((ROOT / source).exists() for source in copied)
    assert copied == sent


def test_the_image_installs_nothing_but_what_the_lock_pins():
    installs = [
        part
        for kind, value in instructions(read("Dockerfile"))
        if kind == "RUN"
        for part in re.split(r"&&|;", value)
        if "pip install" in part or "uv build" in part
    ]
    assert len(installs) == 6
    for words in map(shlex.split, installs):
        named = [word for word in words[words.index("pip") + 2 :] if word[0] != "-"] if "pip" in words else []
        exact = bool(named) and all("==" in word for word in named)
        assert "constraints.txt" in words or "--no-deps" in words or exact, words
        extras = {after for word, after in itertools.pairwise(words) if word == "--extra"}
        assert extras <= set(PROJECT["optional-dependencies"])
    assert "hatchling" in PINS  # which `uv build` is constrained to


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["ingest", "docs.parquet"], "headwater ingest docs.parquet"),
        (["--help"], "headwater --help"),
        (["ray", "start", "--head"], "ray start --head"),
        (["headwater", "doctor"], "headwater doctor"),
    ],
)
def test_the_entrypoint_takes_our_commands_and_rays(given, runs, tmp_path):
    for name in ("headwater", "ray"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    said = run(DEPLOY / "entrypoint", *given, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert said.stdout.strip() == runs


def compose(file: Path) -> subprocess.CompletedProcess[str]:
    return run("docker-compose", "--file", file, "config", "--format", "json")


def test_compose_takes_the_file():
    said = compose(DEPLOY / "compose.yaml")
    assert said.returncode == 0, said.stderr
    services = json.loads(said.stdout)["services"]
    assert set(services) == {"qdrant", "ray-head", "ray-worker"}
    assert all(":" in service["image"] and "latest" not in service["image"] for service in services.values())
    assert services["ray-worker"]["depends_on"]["ray-head"]["condition"] == "service_healthy"
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("healthcheck:", "healtcheck:"),
        ("retries: 24", "retries: often"),
        ("condition: service_healthy", "condition: service_well"),
        ("depends_on:\n      qdrant:", "depends_on:\n      qdrent:"),
        ("secrets: [qdrant-api-key]", "secrets: [qdrant-key]"),
    ],
)
def test_compose_refuses_a_wrong_file(right, wrong, tmp_path):
    text = read("compose.yaml")
    assert right in text
    bad = tmp_path / "compose.yaml"
    bad.write_text(text.replace(right, wrong, 1))
    assert compose(bad).returncode != 0


def test_compose_builds_a_stage_of_the_dockerfile_and_mounts_its_volume():
    built = stages(read("Dockerfile"))
    for name in ("ray-head", "ray-worker"):
        service = yaml.safe_load(read("compose.yaml"))["services"][name]
        assert service["build"]["target"] in built
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
            DEPLOY / "Dockerfile"
        )
        assert service["image"] == f"headwater:{PROJECT['version']}-{service['build']['target']}"
        (volume,) = (value for kind, value in built["runtime"] if kind == "VOLUME")
        assert f"headwater:{volume}" in service["volumes"]
        files = {f"/run/secrets/{secret}" for secret in service["secrets"]}
        assert files == {
            value for value in service["environment"].values() if value.startswith("/run/secrets/")
        }
