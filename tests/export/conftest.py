"""One export of small tasks for all tests, made once."""

import dataclasses
import functools
import shutil
import types

import pytest
import tensorflow as tf

from export.deployment.options import ServingOptions
from export.saved_model import export_saved_model
from export.servable.options import ExportOptions
from export.serving import write_deployment
from piggyback_tf.packs import TaskBank
from tests.export.boxes import BoxedTasks
from tests.export.fcn import fcn_tasks
from tests.export.helpers import BATCH
from tests.export.segments import base_and_tasks
from tests.packs.helpers import packs_of_all_kinds, small_backbone


@pytest.fixture(scope="session", name="small")
def _small(tmp_path_factory):
    """A base, packs of every kind with two ways of preparing images, a bank with them, and their two exports.

    `packed` takes bytes, `unpacked` floating point numbers. `loaded()` is the former, loaded once for all tests.
    """
    backbone = small_backbone()
    packs = packs_of_all_kinds(backbone)
    packs[1] = dataclasses.replace(packs[1], eval_augment="resize(10)|central_crop(8)")
    bank, folder = TaskBank(backbone), tmp_path_factory.mktemp("export")
    for pack in packs:
        bank.add(pack)
    options = {
        "packed": ExportOptions(cache="packed"),
        "unpacked": ExportOptions(cache="unpacked", image_dtype="float32", top_k=9),
    }
    exports = {name: export_saved_model(backbone, packs, folder / name, option) for name, option in options.items()}
    loaded = functools.cache(lambda: tf.saved_model.load(str(exports["packed"])))
    return types.SimpleNamespace(backbone=backbone, packs=packs, bank=bank, loaded=loaded, **exports)


@pytest.fixture(scope="session", name="exports")
def _exports(small, tmp_path_factory):
    """Copies of both exports, each with the deployment in it."""
    folder = tmp_path_factory.mktemp("serving")
    for name in ("packed", "unpacked"):
        shutil.copytree(getattr(small, name).parent, folder / name)
        write_deployment(folder / name, options=ServingOptions(max_batch_size=BATCH, cpus=2))
    return folder


@pytest.fixture(scope="session", name="mixed")
def _mixed(tmp_path_factory):
    """A base, models and packs of tasks of classes and of segments, a bank with them, and their export.

    `loaded()` is the export, loaded once for all tests.
    """
    found, folder = base_and_tasks(), tmp_path_factory.mktemp("mixed")
    found.packed = export_saved_model(found.backbone, found.packs, folder, ExportOptions(cache="packed"))
    found.loaded = functools.cache(lambda: tf.saved_model.load(str(found.packed)))
    return found


@pytest.fixture(scope="session", name="boxed")
def _boxed():
    """A base with tasks of classes, of segments and of boxes."""
    return BoxedTasks()


@pytest.fixture(scope="session", name="found_boxes")
def _found_boxes(boxed, tmp_path_factory):
    """The same with its export, as `mixed` has it."""
    folder = tmp_path_factory.mktemp("boxes")
    boxed.packed = export_saved_model(boxed.backbone, boxed.packs(), folder, ExportOptions(cache="packed"))
    boxed.loaded = functools.cache(lambda: tf.saved_model.load(str(boxed.packed)))
    return boxed


@pytest.fixture(scope="session", name="fcn")
def _fcn():
    """A narrow VGG with a task for each fully convolutional head."""
    return fcn_tasks()


@pytest.fixture(name="export")
def _export(small, tmp_path):
    """An export of three versions, of which the second and third are the first one again."""
    for version in ("1", "2", "3"):
        shutil.copytree(small.packed, tmp_path / "export" / version)
        shutil.copytree(small.packed.parent / "with_mask" / "1", tmp_path / "export" / "with_mask" / version)
    return tmp_path / "export"
