"""Methods that learn on with images of earlier tasks: what is kept, what is drawn, and what it does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import load_backbone
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.agem import AGEM
from piggyback_tf.methods.derpp import DERPP
from piggyback_tf.methods.er import ER
from piggyback_tf.methods.parts.replay import DRAWS_NAME, KeptImages
from piggyback_tf.settings.methods.replay import AGEMConfig, DERPPConfig, ERConfig
from piggyback_tf.training import TrainConfig
from tests.methods.learning import check_same_as_finetuning
from tests.methods.real_training import digits_task, error_of, train_and_remember
from tests.methods.toy import SIZE, toy_backbone, toy_tasks

CONFIG = TrainConfig(epochs=2, batch_size=10, chance_epochs=0, warmup_steps=0, weights_lr=1e-3, head_lr=1e-2)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (6, SIZE, SIZE, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
COUNTS = {"a": (2, 50), "b": (3, 40), "c": (4, 30)}


def _batches(task):
    """Images whose first number is their place, in batches of 7, and labels."""
    classes, count = COUNTS[task]
    images = np.random.default_rng(classes).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return [(images[at : at + 7], np.arange(count)[at : at + 7] % classes) for at in range(0, count, 7)]


def _memory(kind, tasks, **settings):
    """Tasks whose heads and network say something, as a method remembers them."""
    memory, rng = Memory(), np.random.default_rng(1)
    for task in tasks:
        method = kind(kind.Config(**settings), memory)
        model = method.build(toy_backbone(), COUNTS[task][0])
        model.get_layer("head").kernel.assign(rng.normal(size=(10, COUNTS[task][0])).astype(np.float32))
        memory = method.remember(model, toy_backbone(), task, _batches(task))
    return memory


@pytest.fixture(scope="module", name="memory")
def _two() -> Memory:
    return _memory(DERPP, "ab", replay_images=21, replay_batch=8)


def _model(kind, memory, **settings):
    method = kind(kind.Config(head_init="glorot", replay_batch=8, **settings), memory)
    model = method.build(toy_backbone(), 3, seed=3)
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    return method, model


# ----------------------------------------------------------------------------------------------------- what is kept


def test_tasks_have_equal_shares_of_whole_images_and_their_labels():
    shares = {1: 21, 2: 10, 3: 7}
    before: dict[str, np.ndarray] = {}
    for tasks in ("a", "ab", "abc"):
        memory = _memory(ER, tasks, replay_images=21)
        for place, task in enumerate(tasks):
            images, labels = (memory.learning[f"{place}/{name}"] for name in ("images", "labels"))
            assert images.dtype == np.uint8 and images.shape == (shares[len(tasks)], SIZE, SIZE, 3)
            given, classes = (np.concatenate(parts) for parts in zip(*_batches(task), strict=True))
            places = images[:, 0, 0, 0]
            assert len(set(places.tolist())) == len(places), "no image twice"
            assert np.array_equal(images, given[places]) and np.array_equal(labels, classes[places])
            # What is left of a share was in it.
            assert {*places.tolist()} <= {*before.get(task, places).tolist()}
            before[task] = places
        assert len(memory.learning) == 2 * len(tasks)
        assert memory.learning_nbytes == sum(shares[len(tasks)] * (SIZE * SIZE * 3 + 4) for _ in tasks)


def test_every_image_is_as_likely_to_be_kept_after_later_tasks():
    """The first of a sample of a stream would be the first of the stream."""
    kept = {}
    for task in "ab":
        method = ER(ERConfig(replay_images=400), Memory())
        model = method.build(toy_backbone(), 2)
        images = np.zeros((1000, 1, 1, 3), np.uint8)
        labels = np.arange(1000)
        memory = method.remember(model, toy_backbone(), task, [(images, labels)])
        kept[task] = memory.learning["0/labels"]
    assert 400 < kept["a"].mean() < 600
    # After a second task a half of it is left, after ten a tenth. Images that were early in the stream, but not among
    # as many as are left, are in it as often as others are.
    for left in (200, 40):
        found = kept["a"][:left]
        assert ((left <= found) & (found < 400)).mean() > 0.5 * (400 - left) / 1000
    assert np.array_equal(kept["a"], kept["b"]), "always the same"


def test_what_is_kept_comes_back_from_its_file(memory, tmp_path):
    memory.save(tmp_path / "memory")
    again = Memory.load(tmp_path / "memory")
    assert again.learning.keys() == memory.learning.keys()
    for name, array in memory.learning.items():
        assert again.learning[name].dtype == array.dtype and np.array_equal(again.learning[name], array)


def test_derpp_keeps_the_logits_of_the_model_it_is_given(memory):
    """That is the one of the best epoch, and its images are those that are kept."""
    network = DERPP(None, memory).recall(toy_backbone(), "b")
    expected = network(memory.learning["1/images"].astype(np.float32), training=False)
    np.testing.assert_allclose(memory.learning["1/logits"], expected, rtol=1e-4, atol=1e-5)
    assert memory.learning["0/logits"].shape == (10, 2) and memory.learning["1/logits"].shape == (10, 3)


def test_a_memory_has_room_for_each_task():
    ER(ERConfig(replay_images=3)).check_room(toy_backbone(), 3)
    with pytest.raises(ValueError, match="at least 1 for each task, of which there are 4. Received: replay_images=3"):
        ER(ERConfig(replay_images=3)).check_room(toy_backbone(), 4)
    with pytest.raises(ValueError, match="no images of task 't' to keep"):
        ER().remember(ER().build(toy_backbone(), 2), toy_backbone(), "t", [])


# ---------------------------------------------------------------------------------------------------- what is drawn


def test_draws_follow_from_seed_epoch_and_step(memory):
    method, model = _model(DERPP, memory)
    (callback,) = method.callbacks(model)
    rows = model.get_layer(DRAWS_NAME).rows

    def draw(epoch, step):
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_begin(step)
        return rows.numpy()

    first = draw(0, 0)
    assert first.shape == (2, 8) and all(len({*row.tolist()}) == 8 for row in first)
    others = [draw(epoch, step) for epoch, step in ((0, 1), (1, 0), (1, 1))]
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(draw(0, 0), first) and not np.array_equal(first[0], first[1])
    other = DERPP(DERPPConfig(replay_batch=8), memory).build(toy_backbone(), 3, seed=4)
    assert not np.array_equal(other.get_layer(DRAWS_NAME).rows, first)
    # All images are drawn, of all tasks.
    assert {*np.concatenate([draw(0, step).reshape(-1) for step in range(20)]).tolist()} == set(range(20))


def test_each_image_is_judged_by_its_own_tasks_head(memory):
    _, model = _model(DERPP, memory, derpp_alpha=0.3, derpp_beta=0.7)
    rows = model.get_layer(DRAWS_NAME).rows
    rows.assign([[0, 1, 2, 3, 10, 11, 12, 13], [9, 8, 7, 6, 19, 18, 17, 16]])
    kernel = model.get_layer("dense").kernel
    kernel.assign(kernel + np.random.default_rng(2).normal(scale=0.3, size=kernel.shape).astype(np.float32))
    # The graph has the new head in front: 3 classes.
    distances, losses = [], []
    for time, found in ((0, distances), (1, losses)):
        for row in rows.numpy()[time]:
            task, place, own = ("0", row, slice(3, 5)) if row < 10 else ("1", row - 10, slice(5, 8))
            image = memory.learning[f"{task}/images"][place].astype(np.float32)
            logits = model(image[None], training=True).numpy()[0, own].astype(float)
            if found is distances:
                found.append(np.mean(np.square(logits - memory.learning[f"{task}/logits"][place])))
            else:
                label = memory.learning[f"{task}/labels"][place]
                found.append(np.log(np.exp(logits).sum()) - logits[label])
    assert np.mean(distances) > 1e-3
    expected = 0.3 * np.mean(distances) + 0.7 * np.mean(losses)
    np.testing.assert_allclose(model.added_loss(None, None), expected, rtol=1e-4)
    kept = KeptImages(memory, keras.Model(model.input, model.output))
    np.testing.assert_allclose(kept.cross_entropy(1), np.mean(losses), rtol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param(ER, marks=pytest.mark.slow), DERPP])
def test_kept_images_leave_statistics_alone(kind, memory):
    _, model = _model(kind, memory, norm="task", norm_statistics="task", head_dropout=0.5)
    before = {layer.name: [v.numpy() for v in layer.non_trainable_variables] for layer in model.layers}
    first, second = (float(model.added_loss(None, None)) for _ in range(2))
    assert first == second, "without dropout"
    for layer in model.layers:
        for old, variable in zip(before[layer.name], layer.non_trainable_variables, strict=True):
            assert np.array_equal(old, variable), variable.path
    model(IMAGES, training=True)
    assert not np.array_equal(before["first_norm"][0], model.get_layer("first_norm").moving_mean)


# -------------------------------------------------------------------------------------------------- what it does


@pytest.mark.slow
def test_derpp_without_weights_is_finetuning_in_sequence():
    first = train_and_remember(DERPP(), toy_backbone(), "stripes", toy_tasks()["stripes"], CONFIG)
    config = DERPPConfig(derpp_alpha=0.0, derpp_beta=0.0)
    found = check_same_as_finetuning(DERPP(config, first), toy_tasks()["spots"], CONFIG)
    assert found.learning.keys() == {f"{n}/{name}" for n in (0, 1) for name in ("images", "labels", "logits")}


class Recorder(keras.optimizers.SGD):
    """Keeps the gradients that it was given."""

    def apply_gradients(self, grads_and_vars):
        pairs = list(grads_and_vars)
        self.given = {variable.path: gradient for gradient, variable in pairs}
        return super().apply_gradients(pairs)


@pytest.mark.parametrize("against", [True, False])
def test_no_step_of_agem_raises_the_loss_of_kept_images(against, memory):
    _, model = _model(AGEM, memory)
    model.compile(
        Recorder(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
        jit_compile=False,
    )
    model.get_layer(DRAWS_NAME).rows.assign(np.arange(8)[None] * 2)
    variables = model.trainable_variables
    if against:
        # What the labels ask for is made the opposite of what the kept images ask for, and something else.
        head = model.get_layer("head")
        with tf.GradientTape() as tape:
            replayed = model.added_loss(None, None)
        (towards,) = tape.gradient(replayed, [model.get_layer("dense").bias.value])
        # Small, so that all classes are about as likely.
        head.kernel.assign(np.outer(towards / np.linalg.norm(towards), [0.05, -0.05, 0.0]))
        images, labels = IMAGES, np.zeros(6, int)
    else:
        images = memory.learning["1/images"][:6].astype(np.float32)
        labels = memory.learning["1/labels"][:6]
        model.get_layer("head").kernel.assign(memory.of("b")["head/kernel"])
    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as tape:
        plain = model.labels_loss(images, labels, model(images, training=True))
        replayed = model.added_loss(None, None)
    zero = tf.UnconnectedGradients.ZERO
    own, added = (tape.gradient(one, values, unconnected_gradients=zero) for one in (plain, replayed))
    model.train_on_batch(images, labels)
    shared = [place for place, variable in enumerate(variables) if "head" not in variable.path]
    given = [model.optimizer.given[variable.path] for variable in variables]

    def product(one, two):
        return sum(float(tf.reduce_sum(one[place] * two[place])) for place in shared)

    asked, got, square = product(own, added), product(given, added), product(added, added)
    cosine = asked / np.sqrt(square * product(own, own))
    assert cosine < -0.1 if against else cosine > 0.1, cosine
    assert got > -1e-5 * square
    factor = min(asked / square, 0.0)
    for variable, found, one, other in zip(variables, given, own, added, strict=True):
        np.testing.assert_allclose(found, one - factor * other, rtol=1e-3, atol=1e-5, err_msg=variable.path)
    old = next(g for variable, g in zip(variables, given, strict=True) if "old_heads" in variable.path)
    assert bool(np.any(old.numpy() != 0)) == against, "old heads follow with the same factor"


def test_the_recipe_of_agem_steps_along_its_gradient():
    recipe = TrainConfig(**AGEMConfig.recipe)
    assert recipe.sgd_momentum == 0
    assert (
        len({(getattr(recipe, f"{group}_optimizer"), getattr(recipe, f"{group}_lr")) for group in AGEM.Config.trains})
        == 1
    )
    assert recipe.weights_optimizer == "sgd"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er", "derpp"])
def test_forgets_less_than_finetuning_in_sequence(name):
    backbone, old, new = load_backbone("shapesnet"), digits_task(0, 4, 200), digits_task(5, 9, 200)
    config = TrainConfig(epochs=4, chance_epochs=0, warmup_steps=3, weights_lr=3e-3, head_lr=1e-2)
    # In so few steps a higher price of old answers leaves the new task less.
    settings = {"derpp_alpha": 0.1} if name == "derpp" else {}
    method = METHODS[name](METHODS[name].Config(replay_images=50, **settings))
    memory = train_and_remember(method, backbone, "old", old, config)
    start = error_of(method.__class__(None, memory).recall(backbone, "old"), old)
    errors = {}
    for other in ("finetune_sequential", name):
        settings_of = method.config if other == name else None
        learned = train_and_remember(METHODS[other](settings_of, memory), backbone, "new", new, config)
        recalled = METHODS[other](None, learned)
        errors[other] = {
            task: error_of(recalled.recall(backbone, task), data) for task, data in (("old", old), ("new", new))
        }
        old_head = learned.of("old")["head/kernel"]
        assert np.array_equal(old_head, memory.of("old")["head/kernel"]) == (other == "finetune_sequential")
    forgotten = {other: found["old"] - start for other, found in errors.items()}
    assert forgotten["finetune_sequential"] > 3, (start, errors)
    assert forgotten[name] < 0.67 * forgotten["finetune_sequential"], (start, errors)
    # Not by learning less.
    assert errors[name]["new"] < errors["finetune_sequential"]["new"] + 5 < 30, errors


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (ERConfig, "replay_images", 0),
        (ERConfig, "replay_batch", 0),
        (DERPPConfig, "derpp_alpha", -1.0),
        (DERPPConfig, "derpp_beta", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(config, name, value):
    with pytest.raises(ValueError, match=f"`?{name}`? must .*{name}={value}"):
        config(**{name: value})
