"""Channels whose filter is nearly zero and whose bias is large, which would not fit into int32 beside such a filter."""

import dataclasses
import types

import keras
import numpy as np
import pytest

from export.edge.piggyback_edge import Base, Model, Task
from export.lite import plain
from export.lite.checks import run_model
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.patch.elements import filter_inputs
from export.lite.patch.write import read_base
from export.litert import export_litert
from export.shared.errors import ExportError
from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskBank
from tests.export.lite.conftest import noise
from tests.packs.helpers import pack_of, renamed, trained_model, with_arrays

SIZE, CHANNEL = 16, 2
INT8 = LiteOptions(quantize="int8", representative_data="images")


def _backbone(size_of_channel):
    """Returns a network with a channel whose filter is multiplied by a number, and whose bias is not small."""
    keras.utils.set_random_seed(3)
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="first")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2D(12, 3, activation="relu", name="last")(x)
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="own")
    factors = np.where(np.arange(8) == CHANNEL, size_of_channel, 1).astype(np.float32)
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel * factors)
    model.get_layer("norm").beta.assign(np.where(np.arange(8) == CHANNEL, 1.5, 0.1))
    return Backbone.from_model(model)


@pytest.fixture(scope="module", name="dead")
def _dead(tmp_path_factory):
    """An export of a base with such a channel, for a task of masks and one with a batch norm of its own."""
    return _exported(_backbone(1e-10), tmp_path_factory.mktemp("dead") / "out")


@pytest.fixture(scope="module", name="alive")
def _alive(tmp_path_factory):
    """An export of a base in which every channel is an ordinary one."""
    return _exported(_backbone(1), tmp_path_factory.mktemp("alive") / "out")


def _exported(backbone, folder):
    packs = [
        pack_of(trained_model(backbone), backbone, "masks"),
        pack_of(trained_model(backbone, norm="task", seed=1), backbone, "own"),
    ]
    _export(backbone, packs, folder, INT8)
    return types.SimpleNamespace(backbone=backbone, packs=packs, folder=folder, bank=TaskBank(backbone))


def _export(backbone, packs, folder, options):
    with pytest.MonkeyPatch.context() as patches:
        for module in (write, plain):
            patches.setattr(module, "representative_images", lambda spec, packs, count: [noise(SIZE, 24)] * len(packs))
        export_litert(backbone, packs, folder, options)


def _distance(export, pack, folder=None):
    """Returns how far the probabilities of a task are from the bank's."""
    folder = folder or export.folder
    base = Base.load(folder / "base.tflite")
    task, model = Task.load(folder / f"{pack.task}.edge", base.manifest), Model(base)
    model.install(task)
    expected = export.bank.add(pack).predict(noise(SIZE), task=pack.task)
    export.bank.remove(pack.task)
    return np.abs(task.probabilities(run_model(model.data, noise(SIZE)), model.data) - expected).max()


def _with_norm(pack, task, **values):
    """Returns a task with other numbers of batch norm in the channel."""
    norm = {path: value.copy() for path, value in pack.norm.items()}
    for name, value in values.items():
        norm[f"norm/{name}"][CHANNEL] = value
    return with_arrays(renamed(pack, task), norm=norm)


def test_tasks_answer_as_in_the_bank(dead):
    for pack in dead.packs:
        assert _distance(dead, pack) < 2e-2


def test_the_scale_of_such_a_channel_alone_is_larger(dead):
    (graph,) = read_base(dead.backbone, dead.folder / "base.tflite").graphs
    encoder = graph.encoder
    (made_of,) = encoder.widening
    assert made_of.kernel == "first/kernel"
    assert (encoder.widening[made_of] > 1).tolist() == [channel == CHANNEL for channel in range(8)]
    assert np.log2(encoder.widening[made_of][CHANNEL]) % 1 == 0
    for data, kernel, bias in map(filter_inputs, graph.file.operators):
        if kernel in graph.constants and bias >= 0:
            steps = graph.file.steps(graph.file.tensors[data]) * graph.file.steps(graph.file.tensors[kernel])
            assert np.abs(graph.file.read(graph.file.tensors[bias].data)).max() <= 2**30
            assert steps.min() > 0


def test_a_base_without_such_channels_keeps_its_scales(alive):
    (graph,) = read_base(alive.backbone, alive.folder / "base.tflite").graphs
    assert graph.encoder.widening == {}


def test_a_task_that_is_added_later_has_the_same_bytes(dead, tmp_path):
    added = write.add_patches(dead.backbone, dead.packs, dead.folder / "base.tflite", tmp_path, LiteOptions())
    assert [each.path.read_bytes() for each in added] == [(dead.folder / each.path.name).read_bytes() for each in added]


def test_a_filter_that_needs_larger_scales_for_one_task_is_composed(alive, tmp_path):
    """A filter that is nearly zero under the batch norm of a task alone; that of the base keeps its numbers."""
    pack = _with_norm(alive.packs[1], "later", gamma=1e-8, beta=2)
    (added,) = write.add_patches(alive.backbone, [pack], alive.folder / "base.tflite", tmp_path, LiteOptions())
    task = Task.load(added.path, Base.load(alive.folder / "base.tflite").manifest)
    assert (task.version, len(task.compositions)) == (3, 1)
    _export(alive.backbone, [*alive.packs, pack], tmp_path / "new", INT8)
    assert (tmp_path / "new" / "base.tflite").exists()
    for each in (*alive.packs, pack):
        assert _distance(alive, each, tmp_path / "new") < 2e-2


def test_a_bias_beside_a_filter_that_keeps_its_scales(tmp_path):
    """A base in the field has no larger scale for a task that brings another bias, and a new one has."""
    keras.utils.set_random_seed(3)
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="own")
    factors = np.where(np.arange(8) == CHANNEL, 1e-9, 1).astype(np.float32)
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel * factors)
    backbone = Backbone.from_model(model)
    pack = pack_of(trained_model(backbone), backbone)
    first, second = (
        with_arrays(renamed(pack, task), parts={"vector/first/bias": np.full(8, value, np.float32)})
        for task, value in (("first", 1e-7), ("second", 1.0))
    )
    _export(backbone, [first], tmp_path / "old", INT8)
    message = (
        r"Task 'second' does not fit this base. The vector holds 1 in channel 2, too large for int32 .* Use "
        "--design=plain or another quantisation; if the base is in the field, a new one that is exported with this task"
    )
    with pytest.raises(ExportError, match=message):
        write.add_patches(backbone, [second], tmp_path / "old" / "base.tflite", tmp_path, LiteOptions())
    _export(backbone, [first, second], tmp_path / "new", INT8)
    export = types.SimpleNamespace(bank=TaskBank(backbone))
    for each in (first, second):
        assert _distance(export, each, tmp_path / "new") < 2e-2


def test_a_task_that_needs_such_a_channel_is_refused(dead, tmp_path):
    pack = _with_norm(dead.packs[1], "needs", gamma=5e5)
    with pytest.raises(ExportError, match="gamma of channel 2 of 'norm' is so near zero in the base .* hold in int8"):
        write.add_patches(dead.backbone, [pack], dead.folder / "base.tflite", tmp_path, LiteOptions())


def test_a_task_of_its_own_model_answers_as_in_the_bank(dead, tmp_path):
    """The converter makes room itself."""
    _export(dead.backbone, dead.packs, tmp_path / "plain", dataclasses.replace(INT8, design="plain"))
    for pack in dead.packs:
        found = run_model((tmp_path / "plain" / f"{pack.task}.tflite").read_bytes(), noise(SIZE))
        expected = dead.bank.add(pack).predict(noise(SIZE), task=pack.task)
        dead.bank.remove(pack.task)
        assert np.abs(found - expected).max() < 2e-2
