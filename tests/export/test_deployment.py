"""What Compose, Kubernetes and Prometheus are told about a server."""

import http.server
import json
import shutil
import subprocess
import threading

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from export.deployment.memory import memory_of
from export.deployment.options import ServingOptions
from export.serving import write_deployment
from tests.export.helpers import BATCH


def test_compose(exports):
    text = (exports / "packed/deployment/docker-compose.yml").read_text()
    service = yaml.safe_load(text)["services"]["serving"]
    assert service["image"] == "tensorflow/serving:2.21.0"
    assert {"--enable_batching=true", "--enable_per_model_batching_parameters=true"} < set(service["command"])
    assert "--allow_version_labels_for_unavailable_models=true" in service["command"]
    mounts = {volume["target"]: volume["source"] for volume in service["volumes"]}
    assert mounts == {"/models/piggyback": "..", "/deployment": "."}
    for flag in ("model_config_file", "batching_parameters_file", "monitoring_config_file"):
        path = next(line for line in service["command"] if line.startswith(f"--{flag}=")).partition("=")[2]
        assert (exports / "packed/deployment" / path.removeprefix("/deployment/")).is_file()
    assert service["deploy"]["resources"]["limits"]["cpus"] == "2"


def test_a_deployment_elsewhere_names_the_export_by_its_path(export, tmp_path):
    moved = export.rename(tmp_path / "a $dollar: and space")
    write_deployment(moved, tmp_path / "out")
    service = yaml.safe_load((tmp_path / "out/docker-compose.yml").read_text())["services"]["serving"]
    assert service["volumes"][0]["source"] == str(moved).replace("$", "$$")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, as the image has")
@pytest.mark.parametrize("where", ["compose", "kubernetes"])
@pytest.mark.parametrize(
    "states, status",
    [(("AVAILABLE", "AVAILABLE"), 0), (("LOADING", "AVAILABLE"), 1), (("AVAILABLE", "LOADING"), 1)]
    + [(("AVAILABLE", None), 1), (None, 1)],
)
def test_both_models_must_be_loaded_and_bash_alone_finds_out(exports, where, states, status):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            state = dict(zip(("piggyback", "piggyback_with_mask"), states, strict=True)).get(self.path[11:])
            # A server answers with status 200 for a model that is not loaded yet.
            body = json.dumps({"model_version_status": [{"version": "1", "state": state}]}, indent=1).encode()
            self.send_response(404 if state is None or not self.path.startswith("/v1/models/") else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if states is None:
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    if where == "compose":
        text = (exports / "packed/deployment/docker-compose.yml").read_text()
        kind, *command = yaml.safe_load(text)["services"]["serving"]["healthcheck"]["test"]
        assert kind == "CMD"
    else:
        command = _container(exports / "packed/deployment")["readinessProbe"]["exec"]["command"]
    command[-1] = command[-1].replace("/8501", f"/{server.server_port}")
    run = subprocess.run(command, capture_output=True, timeout=20)
    if states is not None:
        server.shutdown()
        server.server_close()
    assert run.returncode == status


def _container(folder):
    """Returns the container of the pods, and checks that there is no other."""
    (deployment,) = (
        item for item in yaml.safe_load_all((folder / "kubernetes.yaml").read_text()) if item["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def test_monitoring(exports):
    """The message of TensorFlow Serving's monitoring_config.proto, of which no Python package has the definition."""
    text = (exports / "packed/deployment/monitoring.config").read_text()
    file = descriptor_pb2.FileDescriptorProto(name="monitoring.proto", package="p", syntax="proto3")
    inner = file.message_type.add(name="PrometheusConfig")
    inner.field.add(name="enable", number=1, type=8, label=1)
    inner.field.add(name="path", number=2, type=9, label=1)
    outer = file.message_type.add(name="MonitoringConfig")
    outer.field.add(name="prometheus_config", number=1, type=11, label=1, type_name=".p.PrometheusConfig")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("p.MonitoringConfig"))()
    found = text_format.Parse(text, message).prometheus_config
    annotations = next(
        item["spec"]["template"]["metadata"]["annotations"]
        for item in yaml.safe_load_all((exports / "packed/deployment/kubernetes.yaml").read_text())
        if item["kind"] == "Deployment"
    )
    assert (found.enable, found.path) == (True, annotations["prometheus.io/path"])
    assert annotations["prometheus.io/port"] == "8501"


def test_pods_are_as_the_restricted_standard_asks(exports):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    folder = exports / "packed/deployment"
    objects = {item["kind"]: item for item in yaml.safe_load_all((folder / "kubernetes.yaml").read_text())}
    pod, container = objects["Deployment"]["spec"]["template"]["spec"], _container(folder)
    assert all(set(volume) <= {"name", "persistentVolumeClaim", "configMap"} for volume in pod["volumes"])
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all("hostPort" not in port for port in container["ports"])
    # That user must be able to read what the volume holds.
    for path in (exports / "packed").rglob("*"):
        wanted = 0o005 if path.is_dir() else 0o004
        assert path.stat().st_mode & wanted == wanted, path


def test_kubernetes(exports, tmp_path):
    folder = exports / "packed/deployment"
    objects = {item["kind"]: item for item in yaml.safe_load_all((folder / "kubernetes.yaml").read_text())}
    assert set(objects) == {"PersistentVolumeClaim", "ConfigMap", "Deployment", "Service"}
    data = objects["ConfigMap"]["data"]
    for name in ("models.config", "batching_parameters.txt", "monitoring.config"):
        assert data[name].rstrip() == (folder / name).read_text().rstrip()
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    container = _container(folder)
    compose = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]["serving"]
    assert container["args"] == compose["command"]
    assert container["image"] == compose["image"]
    assert container["startupProbe"]["httpGet"]["path"] == "/v1/models/piggyback"
    memory = memory_of([exports / "packed" / "1"], ServingOptions(max_batch_size=BATCH, cpus=2), 1)
    assert container["resources"]["requests"]["memory"] == f"{memory.request}Mi"
    assert container["resources"]["limits"]["memory"] == f"{memory.limit}Mi"
    claim = objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert objects["Service"]["spec"]["selector"] == objects["Deployment"]["spec"]["selector"]["matchLabels"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kubectl_reads_every_object(exports):
    # Without a server this is what kubectl can check: each object is one of Kubernetes' own kinds.
    command = ["kubectl", "label", "--local", "--filename", "kubernetes.yaml", "checked=yes", "--output=name"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=exports / "packed/deployment")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [
        "persistentvolumeclaim/piggyback-export",
        "configmap/piggyback-config",
        "deployment.apps/piggyback",
        "service/piggyback",
    ]


def test_several_servers_share_the_volume_and_names_are_those_of_kubernetes(export):
    write_deployment(export, options=ServingOptions(name="Birds_v1.2", replicas=3))
    objects = list(yaml.safe_load_all((export / "deployment/kubernetes.yaml").read_text()))
    assert objects[0]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert objects[2]["spec"]["strategy"]["type"] == "RollingUpdate"
    assert [item["metadata"]["name"].removeprefix("birds-v1-2") for item in objects] == ["-export", "-config", "", ""]
    models = (export / "deployment/models.config").read_text()
    assert [name in models for name in ('"Birds_v1.2"', '"Birds_v1.2_with_mask"')] == [True, True]


@pytest.mark.parametrize("name", ["on", "null"])
def test_names_are_texts_in_yaml(export, name):
    write_deployment(export, options=ServingOptions(name=name, image="1:20"))
    objects = list(yaml.safe_load_all((export / "deployment/kubernetes.yaml").read_text()))
    assert objects[2]["metadata"]["name"] == objects[3]["metadata"]["name"] == name
    assert objects[2]["metadata"]["labels"]["app"] == objects[3]["spec"]["selector"]["app"] == name
    compose = yaml.safe_load((export / "deployment/docker-compose.yml").read_text())
    assert (compose["name"], compose["services"]["serving"]["image"]) == (name, "1:20")
