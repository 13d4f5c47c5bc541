"""Every command and setting inside the files of deploy/, against the real command line."""

from __future__ import annotations

import re

import pytest
import yaml
from commands import WRONG, check, check_environment, check_words
from deployed import environment, read, stages, variables


def check_compose(text: str) -> int:
    found = 0
    for service in yaml.safe_load(text)["services"].values():
        check_environment(service.get("environment", {}))
        found += check_words(service["command"]) + check_words(service["healthcheck"]["test"][1:])
    return found


def check_rayjob(text: str) -> int:
    spec = yaml.safe_load(text)["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        check_environment({item["name"]: item.get("value", "elsewhere") for item in container.get("env", [])})
        check_words(["ray", "start", *(f"--{key}={value}" for key, value in group["rayStartParams"].items())])
    # As KubeRay writes it into the shell of the pod that submits.
    return check(f"ray job submit --address http://head:8265 --no-wait -- {spec['entrypoint']} ;")


def check_crontab(text: str) -> int:
    check_environment(variables(text))
    return sum(check(line.split(maxsplit=6)[6]) for line in text.splitlines() if re.match(r"[\d*]", line))


def check_service(text: str) -> int:
    settings = " ".join(re.findall(r"^Environment=(.*)$", text, re.MULTILINE))
    check_environment(dict(word.split("=", 1) for word in settings.split()))
    return sum(map(check, re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)))


def check_variables(text: str) -> int:
    return check_environment(variables(text))


def check_dockerfile(text: str) -> int:
    return check_environment(environment(stages(text)["cpu"]))


def check_comments(text: str) -> int:
    """Commands that a file's comments tell to type."""
    lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   ")]
    return sum(check(line) for line in lines if line.startswith("headwater "))


@pytest.mark.parametrize(
    ("name", "check_file", "commands"),
    [
        ("Dockerfile", check_dockerfile, 1),
        ("compose.yaml", check_compose, 3),
        ("config.toml", check_comments, 1),
        ("kuberay/rayjob.yaml", check_rayjob, 2),
        ("kuberay/rayjob-gpu.yaml", check_rayjob, 2),
        ("schedule/crontab", check_crontab, 1),
        ("schedule/headwater.env", check_variables, 3),
        ("schedule/headwater.service", check_service, 1),
    ],
)
def test_commands_and_settings_are_those_of_the_real_command_line(name, check_file, commands):
    assert check_file(read(name)) == commands


@pytest.mark.parametrize(
    ("name", "check_file", "right", "wrong"),
    [
        ("Dockerfile", check_dockerfile, "HEADWATER_ENCODER__CACHE", "HEADWATER_ENCODER__CACH"),
        ("compose.yaml", check_compose, "--num-cpus=0", "--num-cpu=0"),
        ("compose.yaml", check_compose, "health-check", "healthcheck"),
        ("compose.yaml", check_compose, "HEADWATER_RUN__EXECUTOR: ray", "HEADWATER_RUN__EXECUTOR: rays"),
        ("config.toml", check_comments, "--config", "--confg"),
        ("kuberay/rayjob.yaml", check_rayjob, "--collection", "--colection"),
        ("kuberay/rayjob.yaml", check_rayjob, "num-cpus", "cpus"),
        ("kuberay/rayjob.yaml", check_rayjob, "HEADWATER_STORE__API_KEY_FILE", "HEADWATER_STORE__KEY_FILE"),
        ("kuberay/rayjob-gpu.yaml", check_rayjob, "value: cuda", "value: coda"),
        ("schedule/crontab", check_crontab, "--json", "--jsom"),
        ("schedule/crontab", check_crontab, "API_KEY_FILE", "KEY_FILE"),
        ("schedule/headwater.env", check_variables, "HEADWATER_RUN__LOG=json", "HEADWATER_RUN__LOG=xml"),
        ("schedule/headwater.service", check_service, "--json", "--jsom"),
        ("schedule/headwater.service", check_service, "STORE__API_KEY_FILE", "STORE__KEY_FILE"),
    ],
)
def test_a_wrong_command_or_setting_in_a_file_is_found(name, check_file, right, wrong):
    text = read(name)
    assert right in text
    with pytest.raises(WRONG):
        check_file(text.replace(right, wrong))
