"""Segments from a server: its warm-up requests, the client, and the client's command."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from export.deployment.client import ClientError, main
from export.deployment.options import ServingOptions
from export.deployment.sent_pack import SentPack, SentPackError
from export.deployment.warmup import warm_up_requests
from export.servable.folder import read_description
from export.serving import write_deployment
from piggyback_tf.data import at_own_size, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.evaluation.segment_pictures import palette
from tests.export.helpers import BATCH, encode, picture, replay
from tests.export.segments import SPECS, assert_same_labels
from tests.export.serving.conftest import client_of, running_server
from tests.packs.test_segments import images_of

FILES = [encode(picture(50 + 9 * index, 70, seed=index), "JPEG" if index % 2 else "PNG") for index in range(4)]
NAMES = ["roads", "lakes", "fish", "fields"]


@pytest.fixture(scope="module", name="running")
def _running(mixed):
    folder = mixed.packed.parent
    models = [f"--model=piggyback={folder}", f"--model=piggyback_with_mask={folder / 'with_mask'}"]
    with running_server(*models, "--batched=piggyback") as server:
        yield server


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_client_gets_label_maps(running, mixed, protocol):
    client = client_of(running, protocol, deadline=60)
    images = images_of((40, 56), 4)
    found = client.segment(images, NAMES)
    assert np.asarray(found["task_ok"]).tolist() == [True, False, False, True]
    for row in (0, 3):
        logits = mixed.models[NAMES[row]].predict(images[row : row + 1], verbose=0)
        assert_same_labels(np.asarray(found["labels"], np.uint8)[row : row + 1], logits)
    rows = client.segment_files([*FILES[:3], b"none"], NAMES)
    assert [(row["task_ok"], row["image_ok"]) for row in rows] == [(True, True)] * 2 + [(False, True), (True, False)]
    assert [bool(row["png"]) for row in rows] == [True, True, False, False]
    for row, name, file in zip(rows[:2], NAMES, FILES, strict=False):
        with Image.open(io.BytesIO(row["png"])) as image:
            assert np.mean(np.asarray(image) != _expected(mixed, name, file)) <= 1e-4
    with pytest.raises(ClientError, match="segment_32x32"):
        client.segment(images_of((32, 32), 1), NAMES[:1])
    listed = client.listed()
    assert [task for task, _, _ in listed] == mixed.bank.names == list(client.tasks())
    assert {task: signature for task, _, signature in listed} == {
        name: "segment" if name in SPECS else "encoded" for name in mixed.bank.names
    }


def _expected(mixed, task, file):
    """Returns the label map of a file at its own size, by the bank."""
    original, operations = decode_image(file, "file"), parse_augment(mixed.bank.info(task)["eval_augment"])
    labels = mixed.bank.predict(apply_operations(operations, original)[None], task)[0]
    return at_own_size(labels, operations, original.shape[:2])


def test_the_command_writes_label_maps(running, mixed, tmp_path, capsys):
    photos, labels, address = tmp_path / "photos", tmp_path / "labels", f"--url=http://127.0.0.1:{running.rest}"
    (photos / "more").mkdir(parents=True)
    for name, file in zip(("a.png", "more/b.jpg"), FILES, strict=False):
        (photos / name).write_bytes(file)
    (photos / "broken.png").write_bytes(b"none")
    command = ["segment", address, "--task=lakes", f"--output_dir={labels}", str(photos)]
    assert main(command) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["labels"] and line["labels"].rpartition("/")[2] for line in lines] == [
        "a.png.labels.png",
        None,
        "b.jpg.labels.png",
    ]
    assert [line["image_ok"] for line in lines] == [True, False, True] and all(line["task_ok"] for line in lines)
    assert sorted(path.name for path in labels.iterdir()) == ["a.png.labels.png", "b.jpg.labels.png"]
    with Image.open(labels / "a.png.labels.png") as image:
        # The numbers of the classes, in the colours that `predict` shows.
        assert image.mode == "P" and image.getpalette() == palette().reshape(-1).tolist()
        assert np.mean(np.asarray(image) != _expected(mixed, "lakes", FILES[0])) <= 1e-4
    assert main(["tasks", address]) == 0
    listed = {line["task"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert listed["roads"]["signature"] == "segment" and "signature" not in listed["shapes4"]
    (photos / "more" / "a.png").write_bytes(FILES[0])
    assert main(command) == 2 and "Two images are called 'a.png'" in capsys.readouterr().err
    assert main([*command[:3], f"--output_dir={photos}/a.png", str(photos / "b.jpg")]) == 2
    assert "a.png: the folder cannot be made: File exists." in capsys.readouterr().err


def test_warm_up_requests_are_for_every_signature(mixed):
    found = list(warm_up_requests(read_description(mixed.packed), BATCH))
    signatures = {*mixed.loaded().signatures, "with_mask", "find_tasks", "tasks"}
    assert {"segment", "segment_40x56", "segment_48x48", "encoded"} < signatures
    assert {signature for signature, _ in found} == signatures
    tasks = {}
    for signature, inputs in found:
        if "task" in inputs and signature != "find_tasks":
            values = inputs["task"].string_val or inputs["task"].int_val
            tasks.setdefault((signature, inputs["task"].tensor_shape.dim[0].size), set()).update(values)
    # Each signature has its own tasks, all of them in one batch.
    assert tasks["segment_48x48", BATCH] == {b"lakes"} and tasks["serving_default", BATCH] == {1, 3}
    assert tasks["segment_40x56", BATCH] == {b"roads", b"fields", b"paths"}
    # Each way of preparing files.
    assert tasks["segment", BATCH] == {b"roads", b"lakes"} and tasks["encoded", 1] == {b"shapes4"}


@pytest.mark.slow
def test_warm_up_requests_are_answered(mixed, tmp_path):
    shutil.copytree(mixed.packed.parent, tmp_path / "export")
    write_deployment(tmp_path / "export", options=ServingOptions(max_batch_size=BATCH, cpus=2))
    for signature, _, outputs in replay(tmp_path / "export" / "1"):
        for flag in {"task_ok", "image_ok"} & set(outputs):
            assert outputs[flag].numpy().all(), signature


def test_a_task_of_segments_is_not_sent(mixed, tmp_path):
    mixed.packs[0].save(tmp_path / "roads.task.safetensors")
    with pytest.raises(SentPackError, match="Task 'roads' finds a class for each pixel; the signature with_mask takes"):
        SentPack(str(tmp_path / "roads.task.safetensors"), str(mixed.packed))
