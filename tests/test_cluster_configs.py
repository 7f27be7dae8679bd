"""Manifests and scripts in configs/cluster: Kubernetes knows every field, and the commands in them are ours."""

import json
import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from piggyback_tf.flags import HEADINGS
from tests.flag_values import defined_flags

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "cluster"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))


def objects_of(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def job_of(name):
    (job,) = [item for item in objects_of(name) if item["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return job, container


def expanded(text, variables):
    """Returns a text as Kubernetes makes it of one with $(NAME)."""
    for name, value in variables.items():
        text = text.replace(f"$({name})", value)
    assert "$(" not in text, "Kubernetes would leave a variable that it does not know"
    return text


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_knows_every_field(name):
    for item in objects_of(name):
        kubernetes_validate.validate(item, "1.33", strict=True)
    job, container = job_of(name)
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    # What is wrong in what was given is not tried again.
    (rule,) = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    claims = {item["metadata"]["name"] for item in objects_of(name) if item["kind"] == "PersistentVolumeClaim"}
    (volume,) = spec["template"]["spec"]["volumes"]
    assert {volume["persistentVolumeClaim"]["claimName"]} == claims
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"] and container["workingDir"] == mount["mountPath"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_flags_are_those_of_the_command(name):
    _, container = job_of(name)
    with defined_flags():
        known = {flag for names in HEADINGS.values() for flag in names} | {"row"}
    given = {each.partition("=")[0].removeprefix("--") for each in container["args"] if each.startswith("--")}
    # --strategy's choices are checked where it is.
    assert given <= known, given - known
    assert container["command"][0] == "piggyback" and "output_dir" in given


def test_a_pod_learns_the_row_of_its_index():
    _, container = job_of("farm_kubernetes.yaml")
    arguments = [expanded(each, {"JOB_COMPLETION_INDEX": "7"}) for each in container["args"]]
    assert container["command"] == ["piggyback", "farm"] and "--row=7" in arguments


def test_pods_of_one_task_find_one_another():
    job, container = job_of("workers_kubernetes.yaml")
    (service,) = [item for item in objects_of("workers_kubernetes.yaml") if item["kind"] == "Service"]
    names = [variable["name"] for variable in container["env"]]
    # A variable can refer only to those before it.
    assert names.index("INDEX") < names.index("TF_CONFIG")
    index, config = container["env"][names.index("INDEX")], container["env"][names.index("TF_CONFIG")]
    path = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    number = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == number
    # With its service as the subdomain a pod of an indexed job is JOB-INDEX.SERVICE.
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    (port,) = service["spec"]["ports"]
    assert [each["containerPort"] for each in container["ports"]] == [port["port"]]
    workers = [f"{name}-{place}.{pod['subdomain']}:{port['port']}" for place in range(number)]
    for place in range(number):
        found = json.loads(expanded(config["value"], {"INDEX": str(place)}))
        assert found == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": place}}
    (batch_size,) = [int(each.partition("=")[2]) for each in container["args"] if each.startswith("--batch_size=")]
    assert batch_size % number == 0 and "--strategy=multi_worker" in container["args"]


def test_a_job_of_slurm_learns_the_row_of_its_index(tmp_path):
    program = tmp_path / "piggyback"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "7"}
    command = ["bash", FOLDER / "farm_slurm.sh", "my tasks.csv", "/shared/my farm", "--augment_train=a(1)|b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = ["farm", "my tasks.csv", "--output_dir=/shared/my farm", "--row=7", "--augment_train=a(1)|b"]
    assert done.stdout.splitlines() == expected
