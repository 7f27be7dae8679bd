"""Every method with every problem: it learns it, with the guarantees that it has on classes, or says why not.

What is the same for all problems is tested on classes, in test_contract.py.
"""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.lite.compare import compare_lite, describe, open_export
from export.lite.options import LiteOptions
from export.litert import export_litert
from export.saved_model import export_saved_model
from export.servable.compare_answers import compare_answers
from export.servable.options import ExportOptions
from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.data import BoxTable, TaskData
from piggyback_tf.data.geometry import VOID
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.problems import PROBLEMS, image_shape_of, problem_of
from piggyback_tf.sequences import SequenceSettings, run_sequence
from piggyback_tf.settings import CONFIGS
from piggyback_tf.targets import TARGETS, USUAL
from piggyback_tf.training import InputConfig, TrainConfig, train_task
from piggyback_tf.training.backup import BackupAndRestore
from tests.methods.toy import PatternSource
from tests.problems.narrow_vgg import narrow_vgg

SIZE, SHAPE = 16, (16, 24)
OTHERS = [name for name in PROBLEMS if name != USUAL]
PAIRS = [(method, problem) for problem in OTHERS for method in METHODS.names()]
LEARNED = [pair for pair in PAIRS if pair[1] in CONFIGS[pair[0]].problems]
# Of those that learn, these run every time.
QUICK = ("piggyback",)


def params(quick):
    """Returns the pairs that learn; those that are not quick are slow tests."""
    return [pytest.param(*pair, marks=[pytest.mark.slow] * (not quick(*pair)), id="-".join(pair)) for pair in LEARNED]


SOMETIMES = params(lambda method, problem: method in QUICK)
# This trains twice more.
RESUMED = params(lambda method, problem: method in QUICK and problem == "multilabel")


class Pictures(PatternSource):
    """Grey noise; its left half may be brighter, all of it may be red, and a patch may be bright.

    Args:
        target: What there is to find: which is the case, whether the left is bright, or where the patch is. A box
            around it is of the class of red images.
        images: How many there are.
        seed: Of the noise.
    """

    def __init__(self, target: str, images: int, seed: int):
        rng, places = np.random.default_rng(seed), np.arange(images)
        self._target, self._seed, self._facts = target, seed, np.stack([places % 2, places // 2 % 2], axis=1)
        self.has_maps, self.has_boxes, boxes = target == "map", target == "boxes", []
        self.image_size = SHAPE if TARGETS[target].own_size else (SIZE, SIZE)
        height, width = self.image_size
        self._images = rng.integers(0, 60, (images, height, width, 3))
        self._maps = np.zeros((images, height, width), np.int64)
        for place in places:
            self._images[place, :, : width // 2] += 100 * self._facts[place, 0]
            self._images[place, ..., 0] += 80 * self._facts[place, 1]
            top, left = rng.integers(1, 8, 2)
            self._maps[place, top : top + 7, left : left + 8] = 1
            boxes.append(np.array([[top, left, top + 7, left + 8, self._facts[place, 1], 0]]))
        self._boxes = BoxTable.of_images(boxes, [self.image_size] * images)
        if self.moves_targets:
            self._images += 110 * self._maps[..., None]
            self._maps[:, 0] = VOID

    def __len__(self) -> int:
        return len(self._images)

    @property
    def labels(self) -> np.ndarray:
        if self.has_boxes:
            return self._boxes.by_class(2)
        kinds = {"class": self._facts[:, 0], "multilabel": self._facts, "map": np.zeros(len(self))}
        return kinds[self._target].astype(np.int32)

    @property
    def boxes(self) -> BoxTable:
        return self._boxes

    def read(self, index: int) -> np.ndarray:
        image = np.minimum(self._images[index], 255).astype(np.uint8)
        return np.dstack([image, self._maps[index].astype(np.uint8)]) if self.has_maps else image

    def fingerprint(self) -> str:
        return f"{self._target} {self._seed} {len(self)}"


def data_of(problem: str) -> TaskData:
    splits = [Pictures(problem, count, seed) for seed, count in enumerate((16, 8, 8))]
    return TaskData(problem, problem, ("first", "second"), *splits, target=problem)


def inputs_of(problem: str) -> InputConfig:
    height, width = Pictures(problem, 1, 0).image_size
    return InputConfig(augment_train=f"translate(1)|resize({height},{width})", augment_eval=f"resize({height},{width})")


def small_backbone(method: str) -> Backbone:
    """Returns a network with feature maps of stride 4, and with batch norm unless a method refuses that."""
    norm = method != "ssf"
    images = x = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scaling")(x)
    for place, stride in enumerate((2, 2, 1)):
        seed = keras.initializers.HeNormal(seed=place)
        x = keras.layers.Conv2D(
            8, 3, stride, padding="same", use_bias=not norm, kernel_initializer=seed, name=f"conv_{place}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"norm_{place}")(x) if norm else x
        x = keras.layers.ReLU(name=f"relu_{place}")(x)
    return Backbone.from_model(
        keras.Model(images, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="small"), image_size=SIZE
    )


def settings_of(method: str, problem: str) -> TrainConfig:
    # A head of pixels gives each of them the same class for a while, and one of boxes no box.
    epochs = {"map": 12, "boxes": 16}.get(problem, 6)
    recipe = {**METHODS[method].Config.recipe, "head_lr": 0.03, "chance_epochs": 0, "warmup_steps": 1}
    return TrainConfig(**{**recipe, "epochs": epochs, "batch_size": 8})


@functools.cache
def trained(method: str, problem: str, folder=None):
    """Returns a base, a method and what it has trained on it."""
    # A head that starts at zero gives each pixel the same class for a while.
    backbone, learner = small_backbone(method), METHODS[method](CONFIGS[method](head_init="glorot"))
    data, inputs = data_of(problem), inputs_of(problem)
    return (
        backbone,
        learner,
        train_task(learner, backbone, data, settings_of(method, problem), inputs, state_dir=folder),
    )


def test_there_is_data_for_every_problem():
    assert len(LEARNED) > len(OTHERS) > 0
    for problem in PROBLEMS:
        assert len(data_of(problem).train.labels) == len(data_of(problem).train) == 16


@pytest.mark.parametrize(("method", "problem"), [pair for pair in PAIRS if pair not in LEARNED])
def test_what_it_does_not_learn_it_refuses_with_the_reason(method, problem, tmp_path):
    config = CONFIGS[method]
    settings = SequenceSettings(method, config(), TrainConfig(epochs=1), inputs_of(problem))
    reason = config.why_not.get(problem, "it has not been tried")
    with pytest.raises(ValueError, match=f"Task 'b' has .* which method {method} does not learn: {reason}. Methods"):
        run_sequence(tmp_path, small_backbone(method), {"a": data_of(USUAL), "b": data_of(problem)}, settings)
    assert not list(tmp_path.iterdir()), "it is said before the first training"
    with pytest.raises(ValueError, match=f"has .* does not learn: {reason}"):
        train_task(METHODS[method](), small_backbone(method), data_of(problem), settings.train, settings.inputs)


@pytest.mark.parametrize(("method", "problem"), SOMETIMES)
def test_it_learns_and_leaves_the_base_alone(method, problem):
    backbone, _, found = trained(method, problem)
    assert backbone.hash == small_backbone(method).hash
    assert found.history["loss"][-1] < found.history["loss"][0]
    counts = found.problem.count(answers_of(found, images_of(problem)), targets_of(problem))
    measured = found.problem.measured(counts)
    error = next(iter(measured.values()))
    # Of eight images, boxes whose scores differ by less than a training tells apart make some tenths of a percent.
    tolerance = 0.5 if problem == "boxes" else 0.1
    assert error == pytest.approx(found.history["val_error"][found.best_epoch], abs=tolerance)
    assert error < 90


def images_of(problem: str) -> np.ndarray:
    source = data_of(problem).validation
    return np.stack([source.read(place)[..., :3] for place in range(len(source))])


def targets_of(problem: str) -> np.ndarray:
    source = data_of(problem).validation
    if source.has_boxes:
        return np.stack([source.boxes.of(place) for place in range(len(source))])
    return np.stack([source.read(i)[..., 3] for i in range(len(source))]) if source.has_maps else source.labels


def answers_of(found, images) -> np.ndarray:
    """Returns what users are answered, from the model that was trained."""
    logits = found.model(images.astype(np.float32), training=False)
    return found.problem.predicted(found.problem.answer(logits)).numpy()


@pytest.mark.parametrize(("method", "problem"), LEARNED)
def test_the_loss_has_a_gradient_for_all_that_is_trained(method, problem):
    backbone, data, learner = small_backbone(method), data_of(problem), METHODS[method]()
    kind = problem_of(data, image_shape_of(data, inputs_of(problem).augment_eval, SIZE))
    model = learner.build(backbone, kind.head(learner.config))
    for phase in range(len(learner.phases(6))):
        model = learner.begin_phase(model, phase)
    with tf.GradientTape() as tape:
        loss = kind.loss("sum_over_batch_size")(targets_of(problem), model(images_of(problem), training=True))
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    assert not [v.path for v, gradient in zip(variables, gradients, strict=True) if gradient is None]
    assert float(loss) > 0 and any(float(tf.reduce_max(tf.abs(gradient))) > 0 for gradient in gradients)


@pytest.mark.parametrize(("method", "problem"), SOMETIMES)
def test_what_is_kept_answers_as_the_trained_model(method, problem, tmp_path):
    backbone, learner, found = trained(method, problem)
    images, expected = images_of(problem), answers_of(found, images_of(problem))
    assert len(np.unique(expected)) > 1
    if not learner.makes_pack:
        memory = learner.remember(found.model, backbone, "task", [(images, targets_of(problem))])
        memory.save(tmp_path / "memory")
        network = METHODS[method](learner.config, type(memory).load(tmp_path / "memory")).recall(backbone, "task")
        answers = answers_of(dataclasses.replace(found, model=network), images)
        np.testing.assert_allclose(answers, expected, atol=1e-5)
        return
    bank = TaskBank(small_backbone(method)).add(TaskPack.from_bytes(pack_of(method, problem).to_bytes()))
    answers = bank.predict(images, task="task")
    assert answers.dtype == expected.dtype
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    # A plain model judges as the bank does.
    errors = [
        next(iter(found.problem.measured(found.problem.count(each, targets_of(problem))).values()))
        for each in (answers, np.asarray(bank.to_keras("task")(images)))
    ]
    assert errors[0] == pytest.approx(errors[1])


def pack_of(method, problem):
    """Returns the pack of what was trained."""
    backbone, _, found = trained(method, problem)
    return TaskPack.from_model(
        found.model,
        task="task",
        class_names=list(data_of(problem).class_names),
        backbone=backbone,
        method=method,
        eval_augment=inputs_of(problem).augment_eval,
        problem=problem,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "problem"), [pair for pair in LEARNED if METHODS[pair[0]].makes_pack])
def test_exports_answer_as_the_bank(method, problem, tmp_path):
    """For a server, and for devices as a file for a base and as a model of its own."""
    backbone, pack, files = trained(method, problem)[0], pack_of(method, problem), []
    bank = TaskBank(backbone).add(pack)
    for place, image in enumerate(images_of(problem)[:4]):
        files.append(tmp_path / f"{place}.png")
        Image.fromarray(image).save(files[-1])
    folder = export_saved_model(backbone, [pack], tmp_path / "served", ExportOptions(cache="packed"))
    served = compare_answers(tf.saved_model.load(str(folder)), bank, "task", files)
    assert served.good and served.files is not None, served.text
    for design, name in (("patch", "base.tflite"), ("plain", "task.tflite")):
        export_litert(backbone, [pack], tmp_path / design, LiteOptions(design=design))
        compared = compare_lite(open_export(tmp_path / design / name, backbone), bank, pack, files)
        assert compared.good, describe(compared)


@pytest.mark.parametrize(("method", "problem"), RESUMED)
def test_broken_off_and_started_again(method, problem, tmp_path, monkeypatch):
    _, _, whole = trained(method, problem)
    save, saves = BackupAndRestore._save, []

    class BrokenOffError(Exception):
        pass

    def break_off(self):
        save(self)
        saves.append(self)
        if len(saves) == 2:
            raise BrokenOffError

    monkeypatch.setattr(BackupAndRestore, "_save", break_off)
    with pytest.raises(BrokenOffError):
        trained.__wrapped__(method, problem, tmp_path)
    _, _, found = trained.__wrapped__(method, problem, tmp_path)
    assert found.history == whole.history
    first, second = (named_variables(one.model) for one in (whole, found))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[path].numpy(), second[path].numpy()) for path in first)


SHARED = [name for name in METHODS.names() if METHODS[name].replaces_base and "map" in CONFIGS[name].problems]


@pytest.mark.slow
@pytest.mark.parametrize("method", SHARED)
def test_tasks_of_several_sizes_share_one_network(method, tmp_path):
    """Weights have the same names and shapes for images of every size."""
    assert {"packnet", "hat", "finetune_sequential"} == set(SHARED)
    backbone, kind, memory, answers = small_backbone(method), METHODS[method], None, {}
    images = {problem: images_of(problem).astype(np.float32) for problem in ("map", "class")}
    for place, problem in enumerate(("map", "class", "map")):
        # Half of the gates of HAT are closed at the start, which leaves this small network nothing.
        config = CONFIGS[method](**{"head_init": "glorot"} | ({"hat_mean": 1.0} if method == "hat" else {}))
        learner, settings = kind(config, memory), dataclasses.replace(settings_of(method, problem), epochs=2)
        found = train_task(learner, backbone, data_of(problem), settings, inputs_of(problem))
        memory = learner.remember(found.model, backbone, f"{problem}{place}", [(images[problem], None)])
        memory.save(tmp_path / "memory")
        memory = type(memory).load(tmp_path / "memory")
        answers[f"{problem}{place}"] = found.model(images[problem], training=False).numpy()
    assert memory.head("map0").kind == "fpn" and memory.head("class1").is_dense
    for task, expected in answers.items():
        found = kind(config, memory).recall(backbone, task)(images[task[:-1]], training=False).numpy()
        if kind.keeps_old_tasks or task == "map2":
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert found.std() > 0
        else:
            assert not np.allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", SHARED)
def test_a_run_of_tasks_of_all_its_problems_on_one_network(method, tmp_path):
    inputs = InputConfig(augment_train=f"resize({SIZE},{SIZE})", augment_eval=f"resize({SIZE},{SIZE})")
    config = dataclasses.replace(settings_of(method, "class"), epochs=2)
    tasks = {problem: data_of(problem) for problem in sorted(CONFIGS[method].problems, reverse=True)}
    settings = SequenceSettings(method, CONFIGS[method](head_init="glorot"), config, inputs)
    found = run_sequence(tmp_path, small_backbone(method), tasks, settings)
    assert found["measures"]["old_answers_identical"] == METHODS[method].keeps_old_tasks


@pytest.mark.parametrize("method", SHARED)
def test_a_head_without_a_part_of_a_shared_network_is_refused(method):
    with pytest.raises(ValueError, match="'fpn' does without 'fc1/kernel' and what follows it, and this method trains"):
        METHODS[method](CONFIGS[method]()).build(narrow_vgg(), HeadSpec("fpn", 2, 4, (96, 96)))


def test_gates_of_hat_are_in_front_of_the_head():
    """What a task has closed later tasks may change, so that its head must not see it."""
    backbone = small_backbone("hat")
    model = METHODS["hat"](CONFIGS["hat"]()).build(backbone, HeadSpec("fpn", 2, 4, SHAPE))
    images = images_of("map").astype(np.float32)
    for layer in model.layers:
        if layer.name.endswith("_gates"):
            layer.embedding.assign(-np.ones(layer.embedding.shape))
    closed = model(images, training=False).numpy()
    for layer in model.layers:
        if layer.name in ("conv_0", "conv_1", "conv_2"):
            layer._kernel.assign(layer._kernel + 1.0)
    assert np.array_equal(model(images, training=False).numpy(), closed)


@pytest.mark.slow
def test_tasks_of_all_problems_are_the_same_in_any_order(tmp_path):
    """Of masks; the images of all have one size here, since a run has one augmentation."""
    tasks = {problem: data_of(problem) for problem in PROBLEMS}
    inputs = InputConfig(augment_train=f"resize({SIZE},{SIZE})", augment_eval=f"resize({SIZE},{SIZE})")
    config = dataclasses.replace(settings_of("piggyback", "class"), epochs=1)
    settings, digests = SequenceSettings("piggyback", CONFIGS["piggyback"](), config, inputs), []
    for order in (list(tasks), list(tasks)[::-1]):
        folder = tmp_path / "_".join(order)
        folder.mkdir()
        found = run_sequence(folder, small_backbone("piggyback"), {task: tasks[task] for task in order}, settings)
        assert found["measures"]["old_answers_identical"] and "task_agnostic" not in found
        packs = [TaskPack.load(path) for path in folder.rglob("*.task.safetensors")]
        assert {pack.task: pack.problem for pack in packs} == {problem: problem for problem in PROBLEMS}
        digests.append({pack.task: pack.content_digest() for pack in packs})
    assert digests[0] == digests[1]
