"""A sequence with tasks of both kinds on one base: classes of images, and classes of pixels."""

import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import TaskData
from piggyback_tf.file_names import folders_of, pack_name
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank
from piggyback_tf.sequences import SequenceSettings, run_sequence
from piggyback_tf.training import InputConfig, TrainConfig
from tests.methods.toy import toy_tasks
from tests.training.test_segments import Rectangles

INPUTS = InputConfig(augment_train="resize(32,32)|flip", augment_eval="resize(32,32)")


@pytest.mark.slow
def test_tasks_of_both_kinds_are_learned_measured_and_served(tmp_path):
    names = ("ground", "rectangle")
    # The one of pixels between, so that it is learned after one of classes and measured after another.
    tasks = {"stripes": toy_tasks()["stripes"]}
    tasks["parts"] = TaskData(
        "parts", "parts", names, Rectangles(0, 6), Rectangles(6, 4), Rectangles(10, 4), target="map"
    )
    tasks["spots"] = toy_tasks()["spots"]
    config = METHODS["piggyback"].Config()
    settings = SequenceSettings("piggyback", config, TrainConfig(epochs=1, batch_size=4, chance_epochs=0), INPUTS)
    backbone = load_backbone("shapesnet", image_size=32)
    found = run_sequence(tmp_path, backbone, tasks, settings)
    errors = found["steps"][-1]["errors"]
    assert list(errors) == list(tasks)
    assert "top1_error" in errors["stripes"] and "mean_iou_error" in errors["parts"] and "top1_error" in errors["spots"]
    # Masks keep earlier tasks, to the bit.
    assert found["steps"][1]["answers"]["parts"] == found["steps"][2]["answers"]["parts"]
    assert "task_agnostic" not in found
    bank = TaskBank(backbone)
    for task, folder in folders_of(tmp_path, list(tasks)).items():
        bank.add(folder / pack_name(task))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert bank.predict(images, task="parts").shape == (2, 32, 32)
    assert bank.predict(images, task="spots").shape == (2, 3)
