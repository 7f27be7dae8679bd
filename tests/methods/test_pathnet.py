"""PathNet: what a path goes through, who wins a tournament, and what of a path stays."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import named_variables
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.parts.tournaments import Population
from piggyback_tf.methods.pathnet import module_name, population_of
from piggyback_tf.settings.methods.pathnet import PathNetConfig
from piggyback_tf.training import TrainConfig
from tests.methods.learning import answers, check_old_tasks_stay, noise_images
from tests.methods.test_pnn import strided_backbone

PathNet = METHODS["pathnet"]
SETTINGS = {"pathnet_modules": 3, "pathnet_active": 2, "pathnet_reduction": 2, "pathnet_population": 4}
CONFIG = PathNetConfig(**SETTINGS)


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return strided_backbone()


def _compiled(backbone, memory=None, config=CONFIG, optimizer=None):
    method = PathNet(config, memory)
    model = method.build(backbone, 3, seed=1)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(6, 3)))
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    return method, model


def _values(model):
    return {path: variable.numpy() for path, variable in named_variables(model).items()}


def _step(model):
    model.train_on_batch(noise_images(16), np.arange(8) % 3)


def test_every_path_starts_as_the_base(backbone):
    _, model = _compiled(backbone)
    population, features = population_of(model), keras.Model(model.input, model.get_layer("head").input)
    assert population.genes.shape == (4, 3, 2), "three stages"
    for path in range(4):
        population.open(path)
        assert np.array_equal(features(noise_images(16)), backbone.model(noise_images(16)))


def test_a_step_moves_the_modules_of_its_path_and_no_others(backbone):
    _, model = _compiled(backbone)
    population = population_of(model)
    for path in (0, 1):
        population.open(path)
        for _ in range(2):  # The first moves the last kernel alone, which is 0.
            before = _values(model)
            _step(model)
        on = {(s, int(n)) for s, row in enumerate(population.read("genes")[path]) for n in row}
        assert 0 < len(on) < 9
        for stage in range(3):
            for number in range(3):
                own = [name for name in before if name.startswith(f"{module_name(stage, number)}_")]
                moved = {name for name in own if not np.array_equal(before[name], named_variables(model)[name])}
                assert moved == ({*own} if (stage, number) in on else set()), (stage, number)


def test_the_fitness_of_a_path_is_the_mean_loss_of_its_steps(backbone):
    method, model = _compiled(backbone, config=PathNetConfig(**SETTINGS, pathnet_steps=2))
    method.begin_phase(model, 0)
    (callback,), population = method.callbacks(model), population_of(model)
    losses = []
    for batch in range(4):
        callback.on_train_batch_begin(batch)
        if batch == 2:  # Behind the two steps of the first path.
            (first,) = np.flatnonzero(np.isfinite(population.read("fitness")))
            assert population.read("fitness")[first] == pytest.approx(-np.mean(losses), rel=1e-5)
        images, labels = noise_images(16, seed=batch), np.arange(8) % 3
        losses.append(float(model.compute_loss(None, labels, model(images, training=True), training=False)))
        model.train_on_batch(images, labels)
        callback.on_train_batch_end(batch)
    means = -np.mean(losses[:2]), -np.mean(losses[2:])
    # The loser is another path now, which was not judged yet.
    assert population.read("fitness")[np.isfinite(population.read("fitness"))] == pytest.approx(max(means), rel=1e-4)
    assert int(population.read("turn")) == 4
    # The second part trains the fittest path alone.
    method.begin_phase(model, 1)
    gates, genes = population.read("gates"), population.read("genes")[population.best()]
    callback.on_train_batch_begin(0)
    callback.on_train_batch_end(0)
    assert np.array_equal(population.read("gates"), gates) and int(population.read("turn")) == 4
    assert [np.flatnonzero(row).tolist() for row in gates] == [np.unique(row).tolist() for row in genes]


def _evolve(tournaments, population, stop=None):
    """Lets paths compete of which those with more genes 2 lose less."""
    for _ in range(2 * tournaments):
        population.begin_step()
        hits = population.read("gates")[:, 2].sum()
        population.gain(np.float32(3.0 - hits))
        population.end_step()


def _population(seed=0):
    population = Population(seed, paths=8, stages=3, modules=6, active=2, steps=1, name="population")
    population.build(())
    return population


def test_evolution_finds_the_better_modules():
    def share(population):
        return (population.read("genes") == 2).any(axis=2).mean()

    before, after = [], []
    for seed in range(2):
        population = _population(seed)
        before.append(share(population))
        _evolve(120, population)
        after.append(share(population))
        assert population.read("fitness").max() == 0.0, "a path through all of them was found"
    assert np.mean(before) < 0.45 and np.mean(after) > 0.75, (before, after)


def test_the_winner_takes_the_place_of_the_other_with_few_genes_moved():
    population, moved = _population(), []
    for tournament in range(40):
        genes, pair = population.read("genes"), population._contestants(tournament)
        _evolve(1, population)
        after, fitness = population.read("genes"), population.read("fitness")
        (loser,) = (path for path in pair if np.isneginf(fitness[path]))
        (winner,) = {*pair} - {loser}
        hits = [(genes[path] == 2).any(axis=1).sum() for path in (winner, loser)]
        assert fitness[winner] == hits[0] - 3 and hits[0] >= hits[1]
        assert np.array_equal(np.delete(after, loser, axis=0), np.delete(genes, loser, axis=0))
        distance = (after[loser] - genes[winner]) % 6
        assert np.minimum(distance, 6 - distance).max() <= 2
        moved.append((distance > 0).sum())
    assert 0.3 < np.mean(moved) < 1.3, "one gene of six, which stays where it is one time in five"


def test_what_is_drawn_follows_from_seed_and_tournament():
    whole, broken, other = _population(), _population(), _population(seed=1)
    assert not np.array_equal(whole.read("genes"), other.read("genes"))
    _evolve(6, whole)
    _evolve(3, broken)
    again = _population()
    for name in ("genes", "fitness", "gates", "turn", "gained"):
        getattr(again, name).assign(broken.read(name))
    _evolve(3, again)
    for name in ("genes", "fitness", "gates"):
        assert np.array_equal(whole.read(name), again.read(name)), name


@pytest.mark.slow
def test_old_tasks_answer_bit_for_bit_the_same(backbone, tmp_path):
    memory = check_old_tasks_stay(PathNet, backbone, tmp_path / "memory", **SETTINGS)
    used = {
        module_name(stage, int(number))
        for task in memory.tasks
        for stage, row in enumerate(memory.of(task)["genes"])
        for number in row
    }
    assert {"_".join(path.split("/")[0].split("_")[:4]) for path in memory.shared} == used
    assert {*memory.of("one")} == {"genes", "head/kernel", "head/bias"}
    assert {*memory.learning} == {f"{t}/{name}" for t in memory.tasks for name in ("genes", "fitness")}
    assert memory.learning_nbytes == 3 * (4 * 3 * 2 * 8 + 4 * 4)


@pytest.mark.slow
def test_later_tasks_go_through_frozen_modules_and_start_the_others_anew(backbone):
    method, model = _compiled(backbone)
    method.begin_phase(method.begin_phase(model, 0), 1)
    for _ in range(3):
        _step(model)
    memory = method.remember(model, backbone, "one", [])
    later, again = _compiled(backbone, memory)
    fresh = _values(_compiled(backbone)[1])
    values = _values(again)
    for path in values:
        if path.startswith("stage_"):
            assert np.array_equal(values[path], memory.shared.get(path, fresh[path])), path
    assert not any(v.trainable for path, v in named_variables(again).items() if path in memory.shared)
    population_of(again).gates.assign(np.ones((3, 3)))
    _step(again)
    for path, array in memory.shared.items():
        assert np.array_equal(named_variables(again)[path], array), path
    # They are used: without them the answers are others.
    with_all = answers(again)
    population_of(again).gates.assign(np.zeros((3, 3)))
    assert not np.allclose(with_all, answers(again))
    with pytest.raises(ValueError, match="Keep --pathnet_modules and --pathnet_reduction as for the first task"):
        PathNet(PathNetConfig(**{**SETTINGS, "pathnet_reduction": 1}), memory).build(backbone, 3)
    assert later.memory.tasks == ("one",) and isinstance(memory, Memory)


def test_the_recipe_has_no_momentum():
    recipe = TrainConfig(**PathNetConfig.recipe)
    assert recipe.sgd_momentum == 0
    assert {recipe.adapter_optimizer, recipe.head_optimizer} == {"sgd"}


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(ValueError, match="at least 2 epochs.*epochs=1"):
        PathNet().phases(1)
    assert [PathNet().phases(epochs) for epochs in (2, 5, 30)] == [(1, 1), (2, 3), (15, 15)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pathnet_modules", 256, "from 1 to 255"),
        ("pathnet_active", 9, "from 1 to 8"),
        ("pathnet_reduction", 0, "at least 1"),
        ("pathnet_population", 1, "at least 2"),
        ("pathnet_steps", 0, "at least 1"),
        ("pathnet_search", 1.0, r"in \(0, 1\)"),
    ],
)
def test_wrong_settings_name_the_right_ones(name, value, message):
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        PathNetConfig(**{name: value})
