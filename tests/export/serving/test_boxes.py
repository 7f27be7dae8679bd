"""Boxes from a server: its warm-up requests, the client, and the client's command."""

import json

import numpy as np
import pytest
import tensorflow as tf

from export.deployment.client import main
from export.deployment.sent_pack import SentPack, SentPackError
from export.deployment.warmup import warm_up_requests
from export.servable.folder import read_description
from piggyback_tf.data import boxes_at_own_size, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from tests.export.boxes import LABELS, assert_same_boxes, packed
from tests.export.helpers import BATCH, encode, picture
from tests.export.serving.conftest import client_of, running_server
from tests.packs.test_segments import images_of

FILES = [encode(picture(50 + 9 * index, 70, seed=index), "JPEG" if index % 2 else "PNG") for index in range(4)]
NAMES = ["animals", "faces", "fish", "plants"]


@pytest.fixture(scope="module", name="running")
def _running(found_boxes):
    folder = found_boxes.packed.parent
    models = [f"--model=piggyback={folder}", f"--model=piggyback_with_mask={folder / 'with_mask'}"]
    with running_server(*models, "--batched=piggyback") as server:
        yield server


def expected_boxes(found_boxes, task, file):
    """Returns the boxes of a file in its own pixels, by the bank."""
    original, operations = decode_image(file, "file"), parse_augment(found_boxes.pack(task).eval_augment)
    found = found_boxes.predict(apply_operations(operations, original)[None], task)[0]
    found[:, :4] = boxes_at_own_size(found[:, :4], operations, original.shape[:2])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_client_gets_boxes(running, found_boxes, protocol):
    client = client_of(running, protocol, deadline=60)
    images = images_of((24, 40), 4)
    found = client.detect(images, NAMES)
    assert np.asarray(found["task_ok"]).tolist() == [True, False, False, True]
    for row in (0, 3):
        assert_same_boxes(packed(found, row), found_boxes.predict(images[row : row + 1], NAMES[row])[0])
    rows = client.detect_files([*FILES[:3], b"none"], NAMES)
    assert [(row["task_ok"], row["image_ok"]) for row in rows] == [(True, True)] * 2 + [(False, True), (True, False)]
    assert [bool(row["boxes"]) for row in rows] == [True, True, False, False]
    for row, name, file in zip(rows[:2], NAMES, FILES, strict=False):
        columns = [np.array(row[key], np.float32)[:, None] for key in ("classes", "scores")]
        own = np.concatenate([np.array(row["boxes"], np.float32), *columns], axis=1)
        assert_same_boxes(own, expected_boxes(found_boxes, name, file), pixels=0.05)


@pytest.mark.slow
def test_the_command_prints_boxes_as_coco_has_results(running, found_boxes, tmp_path, capsys):
    photos, address = tmp_path / "photos", f"--url=http://127.0.0.1:{running.rest}"
    photos.mkdir()
    (photos / "a.png").write_bytes(FILES[0])
    (photos / "broken.png").write_bytes(b"none")
    assert main(["detect", address, "--task=animals", "--min_score=0.5", str(photos), str(photos / "none.png")]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image_ok"] for line in lines] == [True, False, False] and "cannot be read" in lines[2]["error"]
    assert lines[1]["boxes"] == lines[2]["boxes"] == []
    expected = expected_boxes(found_boxes, "animals", FILES[0])
    expected = expected[expected[:, 5] >= 0.5]
    assert len(lines[0]["boxes"]) == len(expected) > 1
    told = lines[0]["boxes"]
    assert {row["class"] for row in told} <= set(LABELS)
    assert all(LABELS[row["category_id"] - 1] == row["class"] for row in told)
    corners = np.array([row["bbox"] for row in told])
    own = np.concatenate([corners[:, [1, 0]], corners[:, [1, 0]] + corners[:, [3, 2]]], axis=1)
    rows = [[row["category_id"] - 1, row["score"]] for row in told]
    assert_same_boxes(np.concatenate([own, rows], axis=1), expected, pixels=0.05)


@pytest.mark.slow
def test_warm_up_requests_are_for_every_signature(found_boxes):
    requests = list(warm_up_requests(read_description(found_boxes.packed), BATCH))
    signatures = {*found_boxes.loaded().signatures, "with_mask", "find_tasks", "tasks"}
    assert {"detect", "detect_24x40", "detect_32x32", "segment", "encoded"} < signatures
    assert {signature for signature, _ in requests} == signatures
    for signature, inputs in requests:
        if signature.startswith("detect"):
            answer = found_boxes.loaded().signatures[signature](
                **{
                    name: tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype))
                    for name, proto in inputs.items()
                }
            )
            assert answer["task_ok"].numpy().all() and answer["image_ok"].numpy().all()


@pytest.mark.slow
def test_a_task_of_boxes_is_not_sent(found_boxes, tmp_path):
    found_boxes.pack("animals").save(tmp_path / "animals.task.safetensors")
    with pytest.raises(SentPackError, match="Task 'animals' finds a box around each object; the signature with_mask"):
        SentPack(str(tmp_path / "animals.task.safetensors"), str(found_boxes.packed))
