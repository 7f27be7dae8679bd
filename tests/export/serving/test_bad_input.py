"""What is wrong with a request is said, or flagged, and the server is right afterwards."""

import base64
import itertools
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from export.deployment.client import Client, ClientError
from tests.export.helpers import huge_jpeg
from tests.export.serving.conftest import FILES, IMAGES, NAMES, OURS, WITH_SECOND, client_of

FLOATS = IMAGES.astype("float32")
LIMIT = 4 * 2**20


def _post(server, body, model="piggyback"):
    """Returns HTTP's status and the answer to a body that the client would not send."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest}/v1/models/{model}:predict", body.encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_an_unknown_task_flags_its_row(client, still_right):
    found = client.classify(IMAGES[:3], ["binary", "fish", "Binary"])
    assert found["task_ok"].tolist() == [True, False, False]
    assert found["class_id"].tolist()[1:] == [-1, -1]
    assert not found["probabilities"][1:].any()
    numbers = client.classify(IMAGES[:4], np.array([0, -1, 6, 2**31 - 1]))
    assert numbers["task_ok"].tolist() == [True, False, False, False]
    still_right()


@pytest.mark.parametrize("shape", [(9, 7, 8, 3), (9, 8, 8, 1), (9, 8, 8), (9,)])
def test_images_of_another_size_are_refused(client, still_right, shape):
    with pytest.raises(ClientError, match=r"refused.*images must be \[B, 8, 8, 3\], not"):
        client.classify(np.zeros(shape, np.uint8), NAMES)
    still_right()


# A number of JSON is of no type: what is sent as int32 there is as good as uint8.
@pytest.mark.parametrize(
    ("client", "dtype"),
    [*itertools.product(("rest", "grpc"), ("float32", "float64")), ("grpc", "int32")],
    indirect=["client"],
)
def test_images_of_another_type_are_refused(client, still_right, dtype):
    with pytest.raises(ClientError, match="not of expected type|to be uint8 but|cannot be sent, only float32"):
        client.classify(IMAGES.astype(dtype), NAMES)
    still_right()


def test_numbers_where_names_are_expected_are_refused(client, still_right):
    with pytest.raises(ClientError, match="not of expected type|to be string but"):
        client.call("by_name", {"images": IMAGES, "task": np.zeros(9, np.int32)})
    still_right()


def test_broken_files_flag_their_rows(client, still_right):
    files = [FILES[1], FILES[1][:100], b"", b"no image", huge_jpeg()]
    rows = client.classify_files(files, ["binary"] * 5)
    assert [row["image_ok"] for row in rows] == [True, False, False, False, False]
    assert [len(row["labels"]) for row in rows] == [2, 0, 0, 0, 0]
    still_right()


def test_an_empty_batch(client, still_right):
    assert client.classify_files([], []) == []
    if client.protocol == "grpc":
        assert client.classify(IMAGES[:0], [])["class_id"].shape == (0,)
    else:  # A list of nothing has no size of images.
        with pytest.raises(ClientError, match="images must be"):
            client.classify(IMAGES[:0], [])
    still_right()


@pytest.mark.parametrize("signature", ["classify", "classify_files"])
@pytest.mark.parametrize("count", [1, 8])
def test_as_many_tasks_as_images(client, still_right, signature, count):
    with pytest.raises(ClientError, match="one task for each image|equal 0th-dimension size"):
        getattr(client, signature)(IMAGES if signature == "classify" else FILES, NAMES[:count])
    still_right()


def test_ten_thousand_rows(server, expected, still_right):
    client = client_of(server, "grpc")
    rows = np.arange(10_000) % len(IMAGES)
    images, tasks = IMAGES[rows], [NAMES[row] for row in rows]
    if server.batching:
        with pytest.raises(ClientError, match="10000 is larger than maximum input batch size 1000"):
            client.classify(images, tasks)
    else:
        found = client.classify(images, tasks)
        np.testing.assert_allclose(found["probabilities"], expected[rows], rtol=0, atol=1e-5)
    still_right()


# TensorFlow Serving has none below 2 GB.
@pytest.mark.parametrize("server", OURS, indirect=True)
def test_a_message_above_the_limit_of_the_server_is_explained(server, still_right):
    images = np.zeros((LIMIT // 192 + 1, 8, 8, 3), np.uint8)
    with pytest.raises(ClientError, match=r"takes no message of 4\.\d MiB: send fewer images in a request"):
        client_of(server, "grpc").classify(images, ["binary"] * len(images))
    still_right()


def test_pixels_that_are_no_numbers(server, client, still_right):
    floats, images = client_of(server, client.protocol, model="floats"), FLOATS.copy()
    images[1, 0, 0, 0], images[2, 3, 3, 1] = np.nan, np.inf
    if client.protocol == "grpc":
        found = floats.classify(images, NAMES)
        assert (found["class_id"] == -1).tolist() == [row in (1, 2) or NAMES[row] == "fish" for row in range(9)]
        assert np.isfinite(found["probabilities"]).all()
    else:
        with pytest.raises(ClientError, match="JSON has no NaN"):
            floats.classify(images, NAMES)
        # The server itself reads them.
        body = json.dumps({"signature_name": "by_name", "inputs": {"images": images.tolist(), "task": NAMES}})
        status, answer = _post(server, body, "floats")
        assert status == 200
        assert answer["outputs"]["class_id"][1:3] == [-1, -1]
        assert "NaN" not in json.dumps(answer)
    still_right()


@pytest.mark.parametrize("server", WITH_SECOND, indirect=True)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": np.zeros(10, np.uint8)}, r"mask must be \[\d+\], or \[\d+\] if ternary, not"),
        ({"mask": np.zeros((1, 10), np.uint8)}, r"mask must be \[\d+\], or \[\d+\] if ternary, not"),
        ({"head": np.zeros((3, 2), np.float32)}, r"head must be \[10, C\], not"),
        ({"norm": np.zeros(3, np.float32)}, "norm must be"),
    ],
)
def test_a_mask_of_another_base_is_refused(client, still_right, change, message):
    inputs = {"mask": np.zeros(10, np.uint8), "head": np.zeros((10, 2), np.float32), **change}
    with pytest.raises(ClientError, match=message if "mask" in change else f"{message}|mask must be"):
        client.classify_with_mask(IMAGES, **inputs)
    still_right()


@pytest.mark.parametrize(
    "signature, inputs, message",
    [
        ("unheard_of", {"images": IMAGES}, "unheard_of.* not found"),
        ("by_name", {"images": IMAGES}, "task"),
        ("by_name", {}, "(images|task)"),
    ],
)
def test_a_call_that_fits_no_signature_is_refused(client, still_right, signature, inputs, message):
    with pytest.raises(ClientError, match=f"refused the request.*{message}"):
        client.call(signature, inputs)
    still_right()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_an_unknown_model_is_not_found(server, protocol):
    with pytest.raises(ClientError, match=r"refused the request \((HTTP 404|NOT_FOUND)\)"):
        client_of(server, protocol, model="unheard of").classify(IMAGES, NAMES)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"instances": []}',
        '{"instances": [1], "inputs": [1]}',
        '{"signature_name": "encoded", "instances": [{"image_bytes": {"b64": "?"}, "task": "binary"}]}',
        '{"signature_name": "by_name", "inputs": {"images": [[1], [1, 2]], "task": ["binary"]}}',
    ],
)
def test_a_body_that_is_no_request_is_refused(server, still_right, body):
    status, answer = _post(server, body)
    assert status == 400
    assert isinstance(answer["error"], str)
    still_right()


def test_rows_are_answered_as_columns_are(server, expected):
    rows = [{"images": image.tolist(), "task": name} for image, name in zip(IMAGES, NAMES, strict=True)]
    status, answer = _post(server, json.dumps({"signature_name": "by_name", "instances": rows}))
    assert status == 200
    found = np.array([row["probabilities"] for row in answer["predictions"]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    file = {"image_bytes": {"b64": base64.b64encode(FILES[0]).decode()}, "task": NAMES[0]}
    status, answer = _post(server, json.dumps({"signature_name": "encoded", "instances": [file]}))
    assert status == 200
    assert answer["predictions"][0]["image_ok"]


def test_what_is_not_tensorflow_serving_is_said(server):
    with pytest.raises(ClientError, match="refused the request"):
        Client(url=f"http://127.0.0.1:{server.rest}/elsewhere").status()


def test_those_who_ask_well_are_answered_beside_one_who_does_not(server, client, expected):
    done, refused, wrong = threading.Event(), [], []

    def ask_badly():
        while not done.is_set():
            try:
                client.classify(np.zeros((2, 5, 5, 3), np.uint8), ["binary"] * 2)
            except ClientError as error:
                refused.append(str(error))

    def ask_well():
        for _ in range(20):
            try:
                found = client.classify(IMAGES, NAMES)["probabilities"]
                wrong.extend([found] if np.abs(found - expected).max() > 1e-5 else [])
            except ClientError as error:
                wrong.append(error)

    bad, good = threading.Thread(target=ask_badly), [threading.Thread(target=ask_well) for _ in range(3)]
    for thread in (bad, *good):
        thread.start()
    for thread in good:
        thread.join()
    done.set()
    bad.join()
    assert not wrong
    assert refused
    assert all("images must be" in text for text in refused)
