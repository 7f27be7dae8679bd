"""CPG: what a task picks, what it sets free, how far it climbs, and that the network keeps its size."""

import numpy as np
import pytest

from piggyback_tf.backbones import named_variables
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.cpg import ladder_of, picks_of
from piggyback_tf.methods.parts.owned_weights import free_weights, owned_weights, owner_of
from piggyback_tf.settings.methods.cpg import CPGConfig
from tests.methods.learning import check_old_tasks_stay
from tests.methods.toy import SIZE, toy_backbone

CPG = METHODS["cpg"]
WRONG_LADDERS = ("", "0.5,x", "0.9,0.5", "0.5,1", "-1", "nan")
KERNELS = ("first_conv/kernel", "second_conv/kernel", "third_conv/kernel", "dense/kernel")
IMAGES = np.random.default_rng(1).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


def _learn(memory, backbone, config=None, seed=0):
    """Stands for a training: moves what is trained, and drops a third of what can be picked."""
    method, rng = CPG(config, memory), np.random.default_rng(seed)
    model = method.build(backbone, 3)
    for phase in range(len(method.phases(6))):
        model = method.begin_phase(model, phase)
        for path, variable in named_variables(model).items():
            if variable.trainable and "mask_real" in path:
                variable.assign(np.where(rng.uniform(size=variable.shape) < 1 / 3, 0.0, 0.01))
            elif variable.trainable:
                variable.assign(variable + 0.1 * rng.standard_normal(variable.shape).astype(np.float32))
    return method.remember(model, backbone, f"task{len(memory.tasks) + 1}", []), model


@pytest.fixture(scope="module", name="three")
def _three(backbone):
    """Returns the memories after each of three tasks, and what their models answered."""
    memories, found = [Memory()], []
    for seed in range(3):
        memory, model = _learn(memories[-1], backbone, CPGConfig(cpg_ladder="0.5"), seed)
        memories.append(memory)
        found.append(model(IMAGES, training=False).numpy())
    return memories[1:], found


def test_the_network_keeps_the_size_of_the_base(backbone, three):
    """However many tasks there are: weights, a byte for each, and for each task a bit for each weight before it."""
    base = {path: variable.shape for path, variable in named_variables(backbone.model).items()}
    for number, memory in enumerate(three[0], start=1):
        shared = memory.shared
        assert {path: array.shape for path, array in shared.items() if path in base} == {p: base[p] for p in KERNELS}
        assert {*shared} == {*KERNELS, *map(owner_of, KERNELS)}
        for path, free in free_weights(memory).items():
            size, owner = shared[path].size, shared[owner_of(path)]
            assert size >> number == free, "half of what was free"
            assert owner.max() == number and np.all((shared[path] != 0) <= (owner != 0))
        kernels = sum(shared[path].size for path in KERNELS)
        own = {path for path in base if path not in KERNELS} | {"head/kernel", "head/bias", *map(picks_of, KERNELS)}
        assert all({*memory.of(task)} == own for task in memory.tasks)
        earlier = [sum(int((shared[owner_of(p)] == t).sum()) for p in KERNELS) for t in range(1, number + 1)]
        bits = sum(sum(earlier[:task]) for task in range(number))
        rest = sum(4 * int(np.prod(base[path])) for path in base if path not in KERNELS) + 3 * 11 * 4
        assert memory.nbytes <= 5 * kernels + number * rest + bits // 8 + number * len(KERNELS)


def test_a_task_computes_with_what_it_picks_and_what_it_owns(backbone, three):
    memories, found = three
    last = memories[-1]
    for number, task in enumerate(last.tasks, start=1):
        network = CPG(None, last).recall(backbone, task)
        np.testing.assert_allclose(network(IMAGES, training=False), found[number - 1], rtol=1e-5, atol=1e-5)
        for path in KERNELS:
            kernel, owner = named_variables(network)[path].numpy(), last.shared[owner_of(path)]
            assert np.array_equal(kernel[owner == number], last.shared[path][owner == number])
            assert not kernel[(owner > number) | (owner == 0)].any()
            earlier = (owner > 0) & (owner < number)
            if number > 1:
                used = kernel[earlier] != 0
                assert np.array_equal(kernel[earlier][used], last.shared[path][earlier][used])
                assert 0.4 < used.mean() < 0.9
    # Batch norm is each task's own.
    gammas = {last.of(task)["first_norm/gamma"].tobytes() for task in last.tasks}
    assert len(gammas) == 3


def test_earlier_weights_get_no_gradient_and_picks_do(backbone, three):
    method = CPG(None, three[0][0])
    model = method.begin_phase(method.begin_phase(method.build(backbone, 3), 0), 1)
    model.get_layer("head").kernel.assign(np.ones((10, 3)))
    import tensorflow as tf

    layer = model.get_layer("second_conv")
    mine, mask = layer._kernel_own, layer.mask_variables["kernel"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(IMAGES, training=True)))
    for_mine, for_mask = tape.gradient(loss, [mine.value, mask.value])
    earlier = three[0][0].shared["second_conv/kernel_owner"] == 1
    assert not for_mine.numpy()[earlier].any() and for_mine.numpy()[~earlier].any()
    assert for_mask.numpy()[earlier].any() and not for_mask.numpy()[~earlier].any()
    assert all(not variable.trainable for variable in [layer.frozen_weight("kernel")])


def _climb(backbone, errors, rungs, epochs=1, slack=0.0):
    """Goes through the compacting of a first task with these validation errors after a goal of 10 %.

    Returns:
        Which part of the weights is free in each epoch, and in the end.
    """
    config = CPGConfig(cpg_ladder=",".join(map(str, rungs)), cpg_rung=epochs, cpg_slack=slack)
    method = CPG(config)
    model = method.begin_phase(method.build(backbone, 3), 0)
    (climb,) = method.callbacks(model)
    climb.set_model(model)
    for error in (0.3, 0.1, 0.2):
        climb.on_test_end({"error": error})
    assert float(ladder_of(model).goal) == pytest.approx(0.1)
    model, free, bias = method.begin_phase(model, 1), [], model.get_layer("dense").bias
    for epoch, error in enumerate(errors):
        climb.on_epoch_begin(epoch)
        bias.assign(np.full(10, float(epoch)))
        free.append(_free(model))
        climb.on_test_end({"error": error})
    model = method.begin_phase(model, 2)
    return [*free, _free(model)], float(model.get_layer("dense").bias[0])


def _free(model):
    owner = np.asarray(owned_weights(model)["dense/kernel"].owner)
    return float((owner == 0).mean())


def test_it_climbs_while_the_goal_is_met_and_goes_back_to_the_best_epoch(backbone):
    rungs = (0.25, 0.5, 0.75)
    # Missed at the third: back to the second, as it was in its epoch.
    assert _climb(backbone, [0.1, 0.1, 0.11, 0.3], rungs) == ([0.25, 0.5, 0.75, 0.5, 0.5], 1.0)
    # The first rung stays although it misses the goal, with its better epoch.
    assert _climb(backbone, [0.3, 0.2, 0.5], (0.25,)) == ([0.25, 0.25, 0.25, 0.25], 1.0)
    assert _climb(backbone, [0.3, 0.2, 0.5], rungs[:2]) == ([0.25, 0.5, 0.25, 0.25], 0.0)
    # All rungs, and the last one's best epoch.
    assert _climb(backbone, [0.0, 0.1, 0.05, 0.02, 0.09], rungs) == ([0.25, 0.5, 0.75, 0.75, 0.75, 0.75], 3.0)
    # Two epochs for each, of which the second comes to the goal.
    assert _climb(backbone, [0.2, 0.2, 0.2, 0.1, 0.3], rungs, epochs=2) == ([0.25, 0.25, 0.5, 0.5, 0.75, 0.5], 3.0)
    assert _climb(backbone, [0.1, 0.12], rungs[:2], slack=2.5) == ([0.25, 0.5, 0.5], 1.0)


def test_pruning_takes_the_smallest_of_the_tasks_own_weights(backbone, three):
    memory = three[0][0]
    method = CPG(CPGConfig(cpg_ladder="0.5"), memory)
    model = method.begin_phase(method.begin_phase(method.build(backbone, 3), 0), 1)
    rng, weights = np.random.default_rng(0), owned_weights(model)
    for weight in weights.values():
        weight.kernel.assign(rng.standard_normal(weight.kernel.shape))
    method.begin_phase(model, 2)
    for path, weight in weights.items():
        size, owner = np.abs(np.asarray(weight.kernel)), np.asarray(weight.owner)
        assert np.array_equal(owner == 1, memory.shared[owner_of(path)] == 1)
        assert size[owner == 2].min() >= size[owner == 0].max()


def test_phases_share_out_the_epochs(three):
    first, later = CPG(), CPG(None, three[0][0])
    assert [later.phases(epochs) for epochs in (4, 10, 30)] == [(1, 1, 1, 1), (5, 2, 2, 1), (15, 8, 4, 3)]
    assert [first.phases(epochs) for epochs in (4, 10, 30)] == [(2, 1, 1), (7, 2, 1), (23, 4, 3)]
    with pytest.raises(ValueError, match="at least 4 epochs.*epochs=3"):
        first.phases(3)


@pytest.mark.slow
def test_old_tasks_answer_bit_for_bit_the_same(backbone, tmp_path):
    memory = check_old_tasks_stay(CPG, backbone, tmp_path / "memory")
    assert all((memory.shared["dense/kernel_owner"] == task).any() for task in (1, 2, 3))


def test_what_changed_earlier_tasks_is_refused(backbone, three):
    method = CPG(None, three[0][0])
    model = method.begin_phase(method.build(backbone, 3), 0)
    for phase in (1, 2, 3):
        model = method.begin_phase(model, phase)
    variable = named_variables(model)["dense/kernel"]
    variable.assign(variable * 0.99)
    with pytest.raises(ValueError, match="changed 'dense/kernel', which belongs to earlier tasks"):
        method.remember(model, backbone, "two", [])


def test_tasks_without_room_are_refused_before_the_first(backbone):
    method = CPG(CPGConfig(cpg_ladder="0.1,0.5"))
    with pytest.raises(ValueError, match="is free for task .*a higher first number of cpg_ladder"):
        method.check_room(backbone, 9)
    CPG().check_room(backbone, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpg_goal": 0.0}, r"`cpg_goal` must be in \(0, 1\)"),
        ({"cpg_slack": -1.0}, "`cpg_slack` must be 0 or more"),
        ({"cpg_rung": 0}, "at least 1"),
        *(
            ({"cpg_ladder": text}, "rising numbers in .0, 1.")
            for text in ("", "0.5,x", "0.9,0.5", "0.5,1", "-1", "nan")
        ),
    ],
)
def test_wrong_settings_name_the_right_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        CPGConfig(**settings)
