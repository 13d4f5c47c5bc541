"""The Kubernetes manifests: valid against schemas, and in step with each other, the lock and the image."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deployed import DEPLOY, PINS, PROJECT, RAYJOBS, ROOT, objects, read, run, stages, templates

KUBERNETES = "1.34"
RAYJOB = jsonschema.Draft202012Validator(json.loads((ROOT / "tests/schemas/rayjob.json").read_text()))


def validate(item: dict[str, Any]) -> None:
    """Check one object strictly: a RayJob by our schema, its pods and all else by Kubernetes' own."""
    if item["kind"] != "RayJob":
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        return
    RAYJOB.validate(item)
    for template in templates(item):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["claim.yaml", "schedule.yaml", "rayjob.yaml", "rayjob-gpu.yaml"])
def test_manifests_are_valid(name):
    for item in yaml.safe_load_all(read(f"kuberay/{name}")):
        validate(item)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(item: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        inner: Any = item
        for step in steps:
            inner = inner[int(step)] if step.isdigit() else inner[step]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("CronJob", put("spec/concurencyPolicy", "Forbid")),
        ("CronJob", put("spec/startingDeadlineSeconds", "2h")),
        ("CronJob", put("spec/jobTemplate/spec/template/spec/containers/0/imag", "x")),
        ("PersistentVolumeClaim", put("spec/accessMode", ["ReadWriteOnce"])),
        ("Role", put("rules/0/verb", ["create"])),
        ("RoleBinding", put("roleref", {})),
        ("ServiceAccount", put("automountServiceAccountToken", "no")),
        ("RayJob", put("spec/ttlSecondAfterFinished", 1)),
        ("RayJob", put("spec/backoffLimit", "2")),
        ("RayJob", put("spec/shutdownAfterJobFinishes", False)),
        ("RayJob", put("spec/rayClusterSpec/rayVersion", 2.6)),
        ("RayJob", put("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0)),
        ("RayJob", put("spec/rayClusterSpec/headGroupSpec/template/spec/container", [])),
        ("RayJob", put("spec/rayClusterSpec/workerGroupSpecs/0/replica", 2)),
        ("RayJob", put("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/volumes/0/emptydir", {})),
    ],
)
def test_a_misspelled_key_or_a_wrong_type_is_refused(kind, change):
    item = yaml.safe_load(read(RAYJOBS[0])) if kind == "RayJob" else objects()[kind]
    item = copy.deepcopy(item)
    validate(item)
    change(item)
    with pytest.raises(jsonschema.ValidationError):
        validate(item)


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_rayjob_runs_the_ray_and_the_version_of_the_lock(name):
    rayjob = yaml.safe_load(read(name))
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == PINS["ray"]
    target = "gpu" if "gpu" in name else "cpu"
    images = {pod["spec"]["containers"][0]["image"] for pod in templates(rayjob)}
    assert images == {f"headwater:{PROJECT['version']}-{target}"}


@pytest.mark.parametrize("name", RAYJOBS)
def test_driver_and_lanes_find_the_key_where_the_settings_say(name):
    pods = [template["spec"] for template in templates(yaml.safe_load(read(name)))]
    (file,) = (
        Path(item["value"])
        for item in pods[0]["containers"][0]["env"]
        if item["name"].endswith("API_KEY_FILE")
    )
    assert f"--from-file={file.name}=" in read(RAYJOBS[0])
    for pod in pods:
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        (secret,) = (
            volume["secret"] for volume in pod["volumes"] if volume["name"] == mounts[str(file.parent)]
        )
        assert f"secret generic {secret['secretName']} " in read(RAYJOBS[0])


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_retry_finds_its_run_again(name):
    head, _ = templates(yaml.safe_load(read(name)))
    container = head["spec"]["containers"][0]
    (volume,) = (value for kind, value in stages(read("Dockerfile"))["runtime"] if kind == "VOLUME")
    assert {"name": "state", "mountPath": volume} in container["volumeMounts"]
    claim = {
        "name": "state",
        "persistentVolumeClaim": {"claimName": objects()["PersistentVolumeClaim"]["metadata"]["name"]},
    }
    assert claim in head["spec"]["volumes"]
    (run_id,) = (item for item in container["env"] if item["name"] == "HEADWATER_RUN__ID")
    assert "originated-from-cr-name" in run_id["valueFrom"]["fieldRef"]["fieldPath"]


def test_the_two_rayjobs_differ_in_nothing_but_gpus():
    plain, gpu = (yaml.safe_load(read(name)) for name in RAYJOBS)
    for template in (*templates(plain), *templates(gpu)):
        container = template["spec"]["containers"][0]
        del container["image"], container["resources"]
        container["env"] = [item for item in container.get("env", []) if "PROVIDER" not in item["name"]]
    assert plain == gpu


def test_the_schedule_may_create_rayjobs_and_nothing_else():
    found = objects()
    account = found["ServiceAccount"]["metadata"]["name"]
    assert found["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    ]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    assert [subject["name"] for subject in found["RoleBinding"]["subjects"]] == [account]
    pod = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account
    assert found["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_schedules_pod_finds_the_rayjob_that_kustomize_carries():
    kustomization = yaml.safe_load(read("kuberay/kustomization.yaml"))
    assert set(kustomization) == {"apiVersion", "kind", "resources", "configMapGenerator"}
    assert all((DEPLOY / "kuberay" / name).is_file() for name in kustomization["resources"])
    (generated,) = kustomization["configMapGenerator"]
    assert all((DEPLOY / "kuberay" / name).is_file() for name in generated["files"])
    pod = objects()["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    assert volume["configMap"]["name"] == generated["name"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert container["command"] == [
        "kubectl",
        "create",
        "-f",
        f"{mount['mountPath']}/{generated['files'][0]}",
    ]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_makes_valid_objects_that_fit():
    said = run("kubectl", "kustomize", DEPLOY / "kuberay")
    assert said.returncode == 0, said.stderr
    made = {item["kind"]: item for item in yaml.safe_load_all(said.stdout)}
    for item in made.values():
        validate(item)
    pod = made["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    assert yaml.safe_load(made["ConfigMap"]["data"]["rayjob.yaml"]) == yaml.safe_load(read(RAYJOBS[0]))
