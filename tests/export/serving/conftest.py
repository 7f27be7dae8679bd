"""Servers in processes of their own, and clients of them."""

import contextlib
import functools
import json
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from export.deployment.client import Client
from export.saved_model import add_tasks, export_saved_model
from export.servable.options import ExportOptions
from tests.export.helpers import ROOT, encode, picture
from tests.packs.helpers import VARIANTS

REAL = "tensorflow_model_server"
# Ours and, where it is installed, TensorFlow Serving's, each without batching and with it.
OURS = ["plain", "batching"]
SERVERS = OURS + [f"{REAL}, {way}" for way in OURS if shutil.which(REAL)]
# Batching is for all models of a process there, and a mask has no first dimension to merge along.
WITH_SECOND = [name for name in SERVERS if name != f"{REAL}, batching"]
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
# One unknown task among the others.
NAMES = [*VARIANTS, "fish", "ternary", "binary"]
FILES = [encode(picture(9 + 5 * index, 30, seed=index), "JPEG" if index % 2 else "PNG") for index in range(len(NAMES))]


@contextlib.contextmanager
def running_server(*arguments):
    """Yields the ports and the process id of a `prediction_server`."""
    command = [sys.executable, "-m", "tests.export.serving.prediction_server", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        try:
            yield types.SimpleNamespace(**json.loads(process.stdout.readline()))
        finally:
            process.kill()


@contextlib.contextmanager
def running_real_server(folders, batching, folder):
    """Yields the same of TensorFlow Serving's own server."""
    ports = types.SimpleNamespace(grpc=free_port(), rest=free_port())
    label, config = 'version_labels { key: "stable" value: 1 }', ""
    for name, path in folders.items():
        config += f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" '
        config += f"model_version_policy {{ all {{}} }} {label if name == 'piggyback' else ''} }}\n"
    (folder / "models.txt").write_text(f"model_config_list {{ {config} }}")
    command = [REAL, f"--port={ports.grpc}", f"--rest_api_port={ports.rest}"]
    command += [f"--model_config_file={folder}/models.txt", "--allow_version_labels_for_unavailable_models=true"]
    if batching:
        (folder / "batching.txt").write_text("max_batch_size { value: 1000 } batch_timeout_micros { value: 2000 }")
        command += ["--enable_batching=true", f"--batching_parameters_file={folder}/batching.txt"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ports.pid, status = process.pid, f"http://127.0.0.1:{ports.rest}/v1/models/{next(iter(folders))}"
            for _ in range(300):
                with contextlib.suppress(OSError), urllib.request.urlopen(status) as answer:
                    if b"AVAILABLE" in answer.read():
                        break
                time.sleep(0.2)
            yield ports
        finally:
            process.kill()


def free_port():
    """Returns a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def client_of(server, protocol, **options):
    """Returns a client of a server, over "rest" or "grpc"."""
    if protocol == "rest":
        return Client(url=f"http://127.0.0.1:{server.rest}", **options)
    return Client(grpc=f"127.0.0.1:{server.grpc}", **options)


@pytest.fixture(scope="session", name="served")
def _served(small, tmp_path_factory):
    """Folders of models by name: an export whose version 1 has two tasks and version 2 all, and one of floats."""
    folder = tmp_path_factory.mktemp("served")
    first = export_saved_model(small.backbone, small.packs[:2], folder, ExportOptions(cache="packed"))
    add_tasks(first, small.packs[2:])
    return {
        "piggyback": folder,
        "piggyback_with_mask": folder / "with_mask",
        "floats": small.unpacked.parent,
        "floats_with_mask": small.unpacked.parent / "with_mask",
    }


@pytest.fixture(scope="session", name="start_server")
def _start_server(served, tmp_path_factory):
    """A function that returns one of `SERVERS`, started when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(name):
            batching = "batching" in name
            if REAL in name:
                models = {model: path for model, path in served.items() if not batching or "with_mask" not in model}
                started = running_real_server(models, batching, tmp_path_factory.mktemp("real"))
            else:
                arguments = [f"--model={model}={folder}" for model, folder in served.items()]
                arguments += ["--label=piggyback:stable=1", *(["--batched=piggyback"] if batching else [])]
                started = running_server(*arguments)
            server = stack.enter_context(started)
            server.batching, server.real = batching, REAL in name
            return server

        yield start


# Not of the session, or pytest would stop a server for the next one, and start it again in the next file.
@pytest.fixture(params=SERVERS, name="server")
def _server(request, start_server):
    """A server, with and without batching."""
    return start_server(request.param)


@pytest.fixture(params=["rest", "grpc"], name="client")
def _client(request, server):
    """A client over each protocol."""
    client = client_of(server, request.param, deadline=20)
    client.protocol = request.param
    return client


@pytest.fixture(scope="session", name="expected")
def _expected(small):
    """The bank's probabilities of `IMAGES` for `NAMES`, filled up with zeros."""
    found = np.zeros((len(NAMES), max(len(pack.class_names) for pack in small.packs)), np.float32)
    for row, (image, name) in enumerate(zip(IMAGES, NAMES, strict=True)):
        if name in small.bank.names:
            answer = small.bank.predict(image[None], task=name)[0]
            found[row, : len(answer)] = answer
    return found


@pytest.fixture(name="still_right")
def _still_right(client, expected):
    """Looks whether the server still answers as the bank does."""

    def check():
        found = client.classify(IMAGES, NAMES)
        np.testing.assert_allclose(found["probabilities"], expected, rtol=0, atol=1e-5)

    return check


def resident(pid):
    """Returns the resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096
