"""Tasks that have gamma and beta of their own and nothing else, beside tasks with masks: what exports make of them."""

import numpy as np
import pytest
import tensorflow as tf

from export.deployment.sent_pack import SentPack, SentPackError
from export.lite.compare import enter_task, open_export
from export.lite.options import LiteOptions
from export.lite.write import export_litert
from export.saved_model import export_saved_model
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank, TaskPack
from tests.methods.toy import SIZE, toy_backbone

IMAGES = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module", name="tasks")
def _tasks():
    """Returns a base and packs of two methods, as after a training."""
    backbone, rng, packs = toy_backbone(), np.random.default_rng(0), []
    for method in ("norm_only", "piggyback"):
        model = METHODS[method]().build(backbone, 3)
        for variable in model.trainable_variables:
            scale = 0.01 if "mask" in variable.path else 0.2
            variable.assign(variable + scale * rng.standard_normal(variable.shape))
        packs.append(
            TaskPack.from_model(
                model,
                task=method,
                class_names=["a", "b", "c"],
                backbone=backbone,
                method=method,
                eval_augment=f"resize({SIZE},{SIZE})",
            )
        )
    assert not any("moving" in path for path in packs[0].norm) and packs[1].zeros_total > 0
    return backbone, packs


def test_a_server_has_them(tasks, tmp_path):
    backbone, packs = tasks
    folder = export_saved_model(backbone, packs, tmp_path / "served")
    bank = TaskBank(backbone).add(packs[0]).add(packs[1])
    names = [pack.task for pack in packs] * 2
    answer = tf.saved_model.load(str(folder)).signatures["by_name"]
    found = answer(images=tf.constant(IMAGES), task=tf.constant(names))["probabilities"].numpy()
    np.testing.assert_allclose(found[:, :3], np.stack(bank.predict(IMAGES, names)), rtol=0, atol=1e-5)
    pack = tmp_path / "pack"
    packs[0].save(pack)
    # A client does not have the base, and so not its statistics.
    with pytest.raises(SentPackError, match="has batch norm of its own, but not 'first_norm/moving_mean'"):
        SentPack(str(pack), str(folder))


@pytest.mark.parametrize("design", ["patch", "plain"])
def test_a_device_has_them(tasks, tmp_path, design):
    backbone, packs = tasks
    bank = TaskBank(backbone).add(packs[0])
    folder = export_litert(backbone, packs, tmp_path / "device", LiteOptions(design=design))
    path = folder / ("base.tflite" if design == "patch" else "norm_only.tflite")
    export = open_export(path, backbone)
    enter_task(export, packs[0])
    found = np.stack([export.answer(image.astype("float32")).found for image in IMAGES])
    np.testing.assert_allclose(found, bank.predict(IMAGES, "norm_only"), rtol=0, atol=1e-5)
