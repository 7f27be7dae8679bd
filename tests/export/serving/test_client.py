"""The client's answers are those of the bank."""

import ast
import io
import json
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from export.deployment import client as client_module
from export.deployment.client import Client, ClientError, NoAnswerError
from export.deployment.sent_pack import SentPack
from piggyback_tf.data import decode_image, parse_augment
from tests.export.serving.conftest import FILES, IMAGES, NAMES, WITH_SECOND, client_of, free_port, running_server
from tests.packs.helpers import VARIANTS

GOOD = np.array([name != "fish" for name in NAMES])
UNAVAILABLE, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 14, 3, 8


@pytest.mark.parametrize("by", ["name", "number"])
def test_prepared_images_of_mixed_tasks(client, expected, by):
    tasks = NAMES if by == "name" else np.array([[*VARIANTS, "fish"].index(name) for name in NAMES])
    found = client.classify(IMAGES, tasks)
    np.testing.assert_allclose(found["probabilities"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["task_ok"], GOOD)
    np.testing.assert_array_equal(found["class_id"], np.where(GOOD, expected.argmax(axis=1), -1))


def test_files_of_mixed_tasks(client, small):
    for name, file, row in zip(NAMES, FILES, client.classify_files(FILES, NAMES), strict=True):
        assert (row["task_ok"], row["image_ok"]) == (name != "fish", True)
        best = []
        if name != "fish":
            image = decode_image(file, "file")
            for operation in parse_augment(small.bank.info(name)["eval_augment"]):
                image = operation.apply(image)
            best = small.bank.top_k(image[None], task=name, k=5)[0]
        assert row["labels"] == [label for label, _ in best]
        np.testing.assert_allclose(row["scores"], [score for _, score in best], rtol=0, atol=1e-5)


@pytest.mark.parametrize("server", WITH_SECOND, indirect=True)
def test_a_task_that_the_server_does_not_have(client, small, served, tmp_path):
    for pack in small.packs[::2]:
        pack.save(tmp_path / "new.task.safetensors")
        sent = SentPack(str(tmp_path / "new.task.safetensors"), str(served["piggyback"] / "1"))
        found = client.classify_with_mask(IMAGES, **sent.inputs)
        expected = small.bank.predict(IMAGES, task=pack.task)
        np.testing.assert_allclose(found["probabilities"], expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found["class_id"], expected.argmax(axis=1))


def test_tasks_and_status(client, server, small):
    assert {line["version"]: line["state"] for line in client.status()} == {1: "AVAILABLE", 2: "AVAILABLE"}
    if not (server.real and server.batching):
        assert client.tasks() == {pack.task: pack.class_names for pack in small.packs}


def test_a_version_is_chosen_by_number_or_label(server, client):
    for version in (1, "stable"):
        found = client_of(server, client.protocol, version=version).classify(IMAGES, NAMES)
        np.testing.assert_array_equal(found["task_ok"], [name in list(VARIANTS)[:2] for name in NAMES])
    for version in (7, "unheard of"):
        with pytest.raises(ClientError, match="refused the request"):
            client_of(server, client.protocol, version=version).classify(IMAGES, NAMES)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_what_passes_is_asked_again(served, protocol):
    fails = [f"--fail={code}" for code in (UNAVAILABLE, RESOURCE_EXHAUSTED, UNAVAILABLE, INVALID_ARGUMENT)]
    with running_server(f"--model=piggyback={served['piggyback']}", *fails) as server:
        client, started = client_of(server, protocol), time.monotonic()
        with pytest.raises(ClientError, match="The server was told to fail") as error:
            client.classify(IMAGES, NAMES)
        # Three pauses, of at least half of 0.1, 0.2 and 0.4 s; then what is wrong with a request is final.
        assert time.monotonic() - started > 0.35
        assert not isinstance(error.value, NoAnswerError)
        assert client.classify(IMAGES, NAMES)["task_ok"].any()


@pytest.mark.parametrize(
    "message, longest",
    [("Tensors with name 'images' from different tasks have different shapes", 0.1), ("Not ready", 5)],
)
def test_a_request_failed_by_another_is_asked_again_soon(monkeypatch, message, longest):
    pauses, clock = [], [0.0]

    def sleep(seconds):
        pauses.append(seconds)
        clock[0] += seconds

    def refuse(opener, request, timeout):
        raise urllib.error.HTTPError(request.full_url, 503, "", {}, io.BytesIO(json.dumps({"error": message}).encode()))

    monkeypatch.setattr(client_module.time, "sleep", sleep)
    monkeypatch.setattr(client_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(client_module.urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(NoAnswerError, match=message):
        Client(url="http://a", deadline=20).status()
    assert longest / 2 <= max(pauses) <= longest


def test_a_server_that_comes_up_late_is_waited_for(served, expected):
    """By a client over each protocol."""
    ports = [f"--{kind}_port={free_port()}" for kind in ("rest", "grpc")]
    address = dict(zip(("rest", "grpc"), (port.partition("=")[2] for port in ports), strict=True))
    late, found = type("Server", (), address), {}

    def ask(protocol):
        found[protocol] = client_of(late, protocol).classify(IMAGES, NAMES)

    threads = [threading.Thread(target=ask, args=[protocol]) for protocol in address]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    with running_server(f"--model=piggyback={served['piggyback']}", *ports):
        for thread in threads:
            thread.join()
    for protocol in address:
        np.testing.assert_allclose(found[protocol]["probabilities"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"url": "http://127.0.0.1:{port}"}, {"grpc": "127.0.0.1:{port}"}])
def test_no_server_is_an_error_at_the_deadline(options):
    options = {name: value.format(port=free_port()) for name, value in options.items()}
    started = time.monotonic()
    with pytest.raises(NoAnswerError, match=r"did not answer within 1 s, asked \d+ times; at last: "):
        Client(**options, deadline=1).status()
    assert 0.4 < time.monotonic() - started < 3


@pytest.mark.parametrize("options", [{"url": "http://127.0.0.1:{port}"}, {"grpc": "127.0.0.1:{port}"}])
def test_that_nobody_answers_is_said_at_once_and_once(options):
    """A minute went by without a word."""
    options, said = {name: value.format(port=free_port()) for name, value in options.items()}, []
    started = time.monotonic()
    client = Client(**options, deadline=2, on_wait=lambda sentence: said.append((time.monotonic(), sentence)))
    asking = [threading.Thread(target=lambda: pytest.raises(NoAnswerError, client.status)) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    ((moment, sentence),) = said
    assert moment - started < 1
    assert next(iter(options.values())) in sentence
    assert "does not answer yet (" in sentence
    assert sentence.endswith("it is asked again for 2 s (--deadline).")


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Give the address of the server"),
        ({"url": "http://a", "grpc": "a:1"}, "Give the address of the server"),
        ({"url": "localhost:8501"}, "no address of a server; it should look like http://localhost:8501"),
        ({"url": "http://localhost:x"}, "no address of a server"),
        ({"url": "http://local host:8501"}, "no address of a server"),
        ({"url": "http://[::1:8501"}, "no address of a server"),
        ({"url": "http://me:secret@localhost:8501"}, "no address of a server"),
        ({"grpc": "http://localhost:8500"}, "should look like localhost:8500"),
        ({"grpc": "localhost:85000"}, "should look like localhost:8500"),
        ({"url": "http://a", "deadline": 0}, "deadline is 0"),
        ({"url": "http://a", "timeout": float("nan")}, "timeout is nan"),
        ({"grpc": "a:1", "version": ""}, "The label of the version is empty"),
        ({"url": "https://a", "tls": True}, "a --url with TLS begins with https"),
        ({"url": "http://a", "ca": __file__}, "whose address begins with https; 'http://a' does not"),
        ({"url": "https://a", "ca": "/none"}, "--ca=/none cannot be used: No such file or directory"),
        ({"url": "https://a", "ca": __file__}, "--ca=.* cannot be used: it holds no certificate"),
        ({"grpc": "a:1", "ca": __file__}, "--ca=.* cannot be used: it holds no certificate"),
        ({"url": "http://a", "headers": {"a b": "c"}}, "The header 'a b' is none"),
        ({"grpc": "a:1", "headers": {"a": "b\nc: d"}}, "The header 'a' is none"),
    ],
)
def test_a_client_is_not_made_of_what_is_not_valid(options, message):
    with pytest.raises(ClientError, match=message):
        Client(**options)


def test_the_messages_are_those_of_tensorflow_serving():
    from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

    real = {
        "Predict": predict_pb2.PredictRequest,
        "Predicted": predict_pb2.PredictResponse,
        "Status": get_model_status_pb2.GetModelStatusRequest,
        "Statuses": get_model_status_pb2.GetModelStatusResponse,
    }
    for name, kind in real.items():
        _compare(client_module._message_classes()[name].DESCRIPTOR, kind.DESCRIPTOR)


def _compare(own, real):
    for field in own.fields:
        other = real.fields_by_name[field.name]
        assert other.number == field.number, field.full_name
        assert other.is_repeated == field.is_repeated, field.full_name
        # Of the same bytes on the wire.
        assert other.type == field.type or (other.type, field.type) == (other.TYPE_ENUM, other.TYPE_INT32)
        if field.message_type:
            _compare(field.message_type, other.message_type)


def test_the_file_stands_alone():
    source = client_module.__file__
    ast.parse(Path(source).read_text(encoding="utf-8"), feature_version=(3, 9))
    run = f"import sys; sys.argv = ['client.py']; exec(open({source!r}).read().replace('__main__', '')); "
    run += "RestTransport('http://a'); GrpcTransport('a:1'); "
    run += "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'keras', 'export', 'piggyback_tf')])"
    assert subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, cwd="/").stdout == "[]\n"
