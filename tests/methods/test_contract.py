"""What every registered method must do; a new method's file is tested by being there."""

import dataclasses
import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors import safe_open

from export.saved_model import export_saved_model
from export.servable.options import ExportOptions
from piggyback_tf.backbones import Backbone, model_hash, named_variables
from piggyback_tf.file_names import MEMORY_FILE, STATE_FILE, pack_name
from piggyback_tf.masking import MaskStart
from piggyback_tf.methods import METHODS, Memory, Method
from piggyback_tf.methods.parts.added_loss import ExtendedModel, no_term
from piggyback_tf.packs import BaseSpec, TaskBank, TaskPack
from piggyback_tf.sequences import run_sequence
from piggyback_tf.sequences import runner as runner_module
from piggyback_tf.sequences.store import MemoryStore, PackStore
from piggyback_tf.settings import CONFIGS
from piggyback_tf.training import TrainingError
from piggyback_tf.training.backup import BackupAndRestore
from piggyback_tf.training.guards import StopOnNaN
from tests.methods.toy import CLASSES, SIZE, toy_backbone, toy_settings, toy_tasks

NAMES = METHODS.names()
# Each shares nearly all that is tested here with one that is tested always: `ewc`, `agem`, `lora`, or `packnet`. What
# it has of its own is tested always in its own file.
LIKE_OTHERS = (
    *("bias_only", "cpg", "dan", "den", "derpp", "er", "finetune_sequential", "joint", "lwf", "mas", "norm_only"),
    *("pathnet", "pnn", "residual_adapters", "si", "ssf"),
)


def _params(names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name in names]


IMAGES = np.random.default_rng(1).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)


def _backbone(method):
    """Returns a network that a method learns on: one with batch norm and shortcuts, unless it refuses these."""
    return toy_backbone(norm=method != "ssf", chain=method == "den")


class BrokenOffError(Exception):
    pass


def _settings(method):
    """Returns a short recipe; that tasks are inferred is tested in tests/sequences/test_runner.py."""
    return dataclasses.replace(toy_settings(method), task_agnostic=False)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Returns a function that learns two tasks by a method, once."""
    done = {}

    def learn(method):
        if method not in done:
            folder, backbone = tmp_path_factory.mktemp(method), _backbone(method)
            done[method] = folder, backbone, run_sequence(folder, backbone, toy_tasks(), _settings(method))
        return done[method]

    return learn


def _store(method, folder, backbone):
    folders = {task: folder / f"{place}_{task}" for place, task in enumerate(CLASSES, start=1)}
    return (PackStore if METHODS[method].makes_pack else MemoryStore)(backbone, folders)


@pytest.mark.parametrize("method", _params(NAMES))
def test_learns_and_leaves_the_base_alone(method, sequences):
    _, backbone, metrics = sequences(method)
    assert backbone.hash == _backbone(method).hash == metrics["base_hash"]
    history = metrics["steps"][-1]["history"]
    assert len(history["loss"]) == 4
    assert min(history["loss"][1:]) < history["loss"][0]
    assert metrics["steps"][-1]["trained_parameters"] > 0
    assert metrics["steps"][-1]["bytes"]["added"] > 0


@pytest.mark.parametrize("method", _params(NAMES))
def test_the_loss_has_a_gradient_for_all_that_is_trained(method, sequences):
    folder, backbone, _ = sequences(method)
    kind, heads = METHODS[method], CLASSES if METHODS[method].Config.at_once else None
    memories = [Memory()]
    if kind.sequential and not kind.makes_pack:
        memories.append(Memory.load(folder / "2_spots" / MEMORY_FILE))
    for memory in memories:
        model = kind(None, memory, heads).build(backbone, sum(CLASSES.values()) if heads else 3)
        for phase in range(len(kind().phases(6))):
            model = kind(None, memory, heads).begin_phase(model, phase)
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(tf.square(output)) for output in tf.nest.flatten(model(IMAGES, training=True)))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        without = [v.path for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None]
        assert not without


@pytest.mark.parametrize("method", _params(NAMES))
def test_it_says_which_groups_of_variables_it_trains(method, sequences):
    folder, backbone, _ = sequences(method)
    kind, heads = METHODS[method], CLASSES if METHODS[method].Config.at_once else None
    cases = [(kind.Config(), Memory())]
    if hasattr(kind.Config, "norm"):
        cases.append((kind.Config(norm="task"), Memory()))
    if kind.sequential and not kind.makes_pack:
        cases.append((kind.Config(), Memory.load(folder / "2_spots" / MEMORY_FILE)))
    # DAN trains depthwise kernels as they are; the network here has none.
    found = {"weights"} if method == "dan" else set()
    for config, memory in cases:
        learner = kind(config, memory, heads)
        model = learner.build(backbone, sum(CLASSES.values()) if heads else 3)
        for phase in range(len(learner.phases(6))):
            model = learner.begin_phase(model, phase)
            found |= learner.groups(model).keys()
    assert found == set(kind.Config.trains)


def test_a_group_that_a_method_does_not_name_is_refused():
    class SilentConfig(METHODS["piggyback"].Config):
        trains = ("head", "norm")

    class Silent(METHODS["piggyback"]):
        Config = SilentConfig

    with pytest.raises(ValueError, match="Silent trains variables of group 'mask', and says that it trains head, norm"):
        Silent().groups(Silent().build(toy_backbone(), 3))


@pytest.mark.parametrize("method", _params(NAMES))
def test_old_answers_stay_where_that_is_promised(method, sequences):
    _, _, metrics = sequences(method)
    if METHODS[method].Config.at_once:
        assert metrics["steps"][0] == {"errors": {}}
    else:
        assert metrics["measures"]["old_answers_identical"] == METHODS[method].keeps_old_tasks
    if METHODS[method].keeps_old_tasks:
        assert metrics["measures"]["forgetting"] == 0


def test_what_is_learned_alone_keeps_old_tasks():
    for method in map(METHODS.__getitem__, NAMES):
        assert method.sequential or method.Config.at_once or method.keeps_old_tasks


@pytest.mark.parametrize("method", _params(NAMES))
def test_networks_come_back_from_files(method, sequences, tmp_path):
    folder, backbone, metrics = sequences(method)
    store, kind = _store(method, folder, backbone), METHODS[method]
    for task, classes in CLASSES.items():
        network = store.network(kind(kind.Config()), task, list(CLASSES)[-1])
        expected = network(IMAGES, training=False).numpy()
        assert expected.shape == (4, classes)
        assert np.isfinite(expected).all()
        network.save(tmp_path / "network.keras")
        # Packs have a command that makes plain models of them.
        if not kind.makes_pack and kind.plain_networks:
            assert b"piggyback_tf" not in zipfile.ZipFile(tmp_path / "network.keras").read("config.json")
        loaded = keras.models.load_model(tmp_path / "network.keras")
        assert np.array_equal(loaded(IMAGES, training=False), expected)


@pytest.mark.parametrize("method", _params(name for name in NAMES if METHODS[name].makes_pack))
def test_a_task_goes_from_its_pack_through_bank_and_merged_network(method, sequences):
    folder, backbone, _ = sequences(method)
    bank = TaskBank(backbone)
    for number, task in enumerate(CLASSES, start=1):
        path = folder / f"{number}_{task}" / pack_name(task)
        pack = TaskPack.load(path, BaseSpec.of(backbone))
        assert pack.method == method
        bank.add(pack)
    mixed = bank.predict(IMAGES, task=[*CLASSES, *CLASSES])
    for place, task in enumerate(CLASSES):
        alone, merged = bank.predict(IMAGES[place::2], task), bank.to_keras(task)
        assert np.array_equal(alone, np.stack(mixed[place::2]))
        np.testing.assert_allclose(merged(IMAGES[place::2], training=False), alone, rtol=0, atol=1e-6)
        assert all(type(layer).__module__.startswith("keras.") for layer in merged.layers)
        base = {path: v.numpy() for path, v in named_variables(backbone.model).items()}
        changed = {
            path for path, v in named_variables(merged).items() if path in base and (v.numpy() != base[path]).any()
        }
        assert changed <= {*TaskPack.load(folder / f"{place + 1}_{task}" / pack_name(task)).arrays.changed}
        assert bool(changed) == (method != "classifier_only")


# Of one base; tasks of different methods are served beside one another.
SERVED = [name for name in NAMES if METHODS[name].makes_pack]


@pytest.mark.slow
@pytest.mark.parametrize("methods", [[name for name in SERVED if name != "ssf"], ["ssf"]], ids=["norm", "no norm"])
def test_tasks_of_all_methods_are_in_one_bank_and_on_one_server(methods, sequences, tmp_path):
    backbone, packs = _backbone(methods[0]), []
    bank = TaskBank(backbone)
    for method in methods:
        folder, _, _ = sequences(method)
        packs.append(TaskPack.load(folder / "2_spots" / pack_name("spots"), BaseSpec.of(backbone)))
        packs[-1].task = method
        bank.add(packs[-1])
    folder = export_saved_model(backbone, packs, tmp_path, ExportOptions(cache="packed", image_dtype="float32"))
    answer = tf.saved_model.load(str(folder)).signatures["by_name"]
    asked = [(method, image) for method in methods for image in IMAGES]
    found = answer(images=tf.stack([image for _, image in asked]), task=tf.constant([method for method, _ in asked]))
    expected = bank.predict(np.stack([image for _, image in asked]), task=[method for method, _ in asked])
    np.testing.assert_allclose(found["probabilities"], np.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", _params(NAMES))
def test_sequential_backbones_are_learned_on(method):
    layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D()]
    if method == "norm_only":
        layers.insert(1, keras.layers.BatchNormalization(name="norm"))
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="chain")
    backbone = Backbone.from_model(model)
    kind, heads = METHODS[method], {"a": 3} if METHODS[method].Config.at_once else None
    task_model = kind(heads=heads).build(backbone, 3)
    assert tuple(task_model(IMAGES).shape) == (4, 3)
    assert backbone.hash == model_hash(model)


@pytest.mark.parametrize("method", _params(name for name in NAMES if not METHODS[name].makes_pack))
def test_memory_comes_back_from_its_file(method, sequences, tmp_path):
    folder, backbone, _ = sequences(method)
    memory = Memory.load(folder / "2_spots" / MEMORY_FILE)
    assert memory.tasks == tuple(CLASSES)
    memory.save(tmp_path / "again")
    with safe_open(folder / "2_spots" / MEMORY_FILE, "np") as one, safe_open(tmp_path / "again", "np") as two:
        assert set(one.keys()) == set(two.keys())
        assert all(np.array_equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())  # noqa: SIM118
    with pytest.raises(ValueError, match="was not learned"):
        METHODS[method](None, memory).recall(backbone, "checks")
    (tmp_path / "broken").write_bytes((tmp_path / "again").read_bytes()[:-9])
    with pytest.raises(ValueError, match="no file of learned tasks, or damaged"):
        Memory.load(tmp_path / "broken")


# A training in one part and one in several, in which what is trained changes.
QUICK = ("packnet", "piggyback")


@pytest.mark.parametrize("method", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in NAMES])
def test_broken_off_and_started_again(method, sequences, tmp_path, monkeypatch):
    _, _, expected = sequences(method)
    saves, save = [0], BackupAndRestore._save

    def break_off(self):
        save(self)
        saves[0] += 1
        # Within the last training, in the middle of its epochs.
        if saves[0] == (2 if METHODS[method].Config.at_once else 6):
            raise BrokenOffError

    monkeypatch.setattr(BackupAndRestore, "_save", break_off)
    with pytest.raises(BrokenOffError):
        run_sequence(tmp_path, _backbone(method), toy_tasks(), _settings(method))
    assert (tmp_path / "2_spots" / STATE_FILE).exists()
    found = run_sequence(tmp_path, _backbone(method), toy_tasks(), _settings(method))
    assert found["steps"][-1]["answers"] == expected["steps"][-1]["answers"]
    assert found["steps"][-1]["history"] == expected["steps"][-1]["history"]
    assert not (tmp_path / "2_spots" / STATE_FILE).exists()


# What these do in a step depends on more than the images of the task.
STEPPING = ("agem", "cpg", "den", "derpp", "er", "hat", "pathnet", "si")


@pytest.mark.slow
@pytest.mark.parametrize("method", STEPPING)
def test_killed_within_an_epoch_and_started_again(method, sequences, tmp_path, monkeypatch):
    _, _, expected = sequences(method)
    steps, end_step = [0], StopOnNaN.on_train_batch_end

    def break_off(self, batch, logs=None):
        end_step(self, batch, logs)
        steps[0] += 1
        # Four epochs of two steps for the first task; then the first step of the third epoch of the second.
        if steps[0] == 8 + 5:
            raise BrokenOffError

    monkeypatch.setattr(StopOnNaN, "on_train_batch_end", break_off)
    with pytest.raises(BrokenOffError):
        run_sequence(tmp_path, _backbone(method), toy_tasks(), _settings(method))
    found = run_sequence(tmp_path, _backbone(method), toy_tasks(), _settings(method))
    assert steps[0] == 8 + 5 + 4, "the epoch was done again"
    assert found["steps"][-1]["history"] == expected["steps"][-1]["history"]
    ours, theirs = (Memory.load(path / "2_spots" / MEMORY_FILE) for path in (tmp_path, sequences(method)[0]))
    for one, two in ((ours.shared, theirs.shared), (ours.learning, theirs.learning)):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Returns a function that gives the state of a training of `stripes` by a method, which is done once."""
    done = {}

    def train(method):
        if method not in done:
            settings, done[method] = toy_settings(method, epochs=2), tmp_path_factory.mktemp(method) / STATE_FILE
            runner_module.train_task(
                METHODS[method](),
                _backbone(method),
                toy_tasks()["stripes"],
                settings.train,
                settings.inputs,
                state_dir=done[method].parent,
            )
        return done[method]

    return train


@pytest.mark.parametrize("method", _params(NAMES))
def test_refuses_the_state_of_another_method(method, states, tmp_path):
    other = "classifier_only" if method == "piggyback" else "piggyback"
    own = tmp_path / ("2_spots" if METHODS[method].Config.at_once else "1_stripes")
    own.mkdir()
    shutil.copy(states(other), own / STATE_FILE)
    with pytest.raises(TrainingError, match="belongs to another model"):
        run_sequence(tmp_path, _backbone(method), toy_tasks(), _settings(method))


def test_a_test_split_is_needed(tmp_path):
    import dataclasses

    tasks = toy_tasks()
    tasks["spots"] = dataclasses.replace(tasks["spots"], test=None)
    with pytest.raises(ValueError, match="'spots' has no test split"):
        run_sequence(tmp_path, toy_backbone(), tasks, toy_settings("piggyback"))


def test_a_finished_task_is_not_learned_again(sequences):
    folder, backbone, metrics = sequences("classifier_only")
    path = folder / "1_stripes" / "result.json"
    marked = json.loads(path.read_text()) | {"seconds": 12345.0}
    path.write_text(json.dumps(marked))
    again = run_sequence(folder, backbone, toy_tasks(), toy_settings("classifier_only"))
    assert again["steps"][0]["seconds"] == 12345.0
    assert again["steps"][1] == metrics["steps"][1]


@pytest.mark.parametrize("method", _params(NAMES))
def test_hooks_keep_their_word(method):
    backbone, tasks, kind = _backbone(method), toy_tasks(), METHODS[method]
    heads = CLASSES if kind.Config.at_once else None
    learner = kind(heads=heads)
    learner.check_room(backbone, 2)
    # Images of several tasks are joined, and those of one are its own.
    if kind.Config.at_once:
        data = learner.training_data(tasks)
        assert len(data.class_names) == sum(CLASSES.values())
        assert len(data.train) == sum(len(task.train) for task in tasks.values())
    else:
        data = learner.training_data({"spots": tasks["spots"]})
        assert data is tasks["spots"]
    # Nothing starts from a pack unless its settings say so.
    assert (learner.start_source, learner.provenance) == ("", {})
    if kind.starting_from is Method.starting_from:
        with pytest.raises(ValueError, match=f"{kind.__name__} starts from no pack"):
            learner.starting_from(MaskStart())
    else:
        start = MaskStart(origin={"pack": None})
        assert learner.starting_from(start).provenance == {"start": {"pack": None}}
        assert learner.start is None, "a method is not changed"
    model = learner.build(backbone, len(data.class_names))
    if learner.watches_features:
        features = keras.Model(model.input, model.get_layer("head").input)
        assert np.array_equal(features(IMAGES), backbone.model(IMAGES)), "they start as those of the base"
    assert learner.begin_training(model) is None
    for phase in range(len(learner.phases(6))):
        begun = learner.begin_phase(model, phase)
        assert (begun.input_shape, begun.output_shape) == (model.input_shape, model.output_shape)
        assert begun.trainable_variables
        model = begun
    # What a step adds to the loss is a number, or one for each image.
    later = kind(memory=learner.remember(model, backbone, "spots", [(IMAGES, np.arange(4) % 3)]), heads=heads)
    if later.memory.tasks and not kind.Config.at_once and not kind.makes_pack:
        again = later.build(backbone, 2)
        if isinstance(again, ExtendedModel) and again.added_loss is not no_term:
            term = again.added_loss(IMAGES, again(IMAGES, training=True))
            assert tuple(term.shape) in ((), (4,)) and np.isfinite(term).all()


@pytest.mark.parametrize("method", _params(NAMES))
def test_settings_are_finite(method):
    config = METHODS[method].Config
    for field in dataclasses.fields(config):
        if isinstance(field.default, float):
            for value in (float("nan"), float("inf")):
                with pytest.raises(ValueError, match=field.name):
                    config(**{field.name: value})


@pytest.mark.parametrize("method", _params(NAMES))
def test_a_layer_that_is_called_like_the_head_is_refused(method):
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, name="head")(images)
    x = keras.layers.BatchNormalization(name="norm")(x) if method == "norm_only" else x
    features = keras.layers.GlobalAveragePooling2D()(x)
    backbone = Backbone.from_model(keras.Model(images, features, name="net"))
    kind = METHODS[method]
    with pytest.raises(ValueError, match="a layer named 'head', which is what the head of a task is called"):
        kind(heads={"a": 3} if kind.Config.at_once else None).build(backbone, 3)


def test_a_method_has_the_settings_that_are_registered_under_its_name():
    assert {name: METHODS[name].Config for name in METHODS} == dict(CONFIGS.items())
    with pytest.raises(ValueError, match="The `Config` of method 'new', PiggybackConfig, must be registered under the"):
        METHODS.register("new")(METHODS["piggyback"])
    assert "new" not in METHODS
