"""The trust region of the masks: which weights flip in a step, and how many."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.training import TrainConfig, TrustRegionAdam, WarmupSchedule, make_optimizer
from piggyback_tf.training.trust_region import WatchedLossScale, WatchedOptimizers, _compiled
from tests.methods.toy import toy_backbone

THRESHOLD = 5e-3


def _variable(values):
    return keras.Variable(np.asarray(values, "float32"), name="mask_real")


def _normal(size, seed, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype("float32")


def _step(before, gradient, kernel, loss=1.0, rate=1e-3, **settings):
    """Takes one step from values just above the threshold; returns which weights flipped and what each promised."""
    settings = {"trust": 0.1, "max_flips": 1.0, "threshold": THRESHOLD} | settings
    mask, optimizer = _variable(before), TrustRegionAdam(rate, [_variable(kernel)], **settings)
    optimizer.build([mask])
    optimizer.watch_loss(tf.constant(loss))
    optimizer.apply([gradient], [mask])
    return (mask.numpy() >= THRESHOLD) != (before >= np.float32(THRESHOLD)), np.abs(gradient)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_steps_without_flips_are_adams(kind):
    one, two = _variable(np.full(1000, 1e-2)), _variable(np.full(1000, 1e-2))
    limited = TrustRegionAdam(
        1e-4, [_variable(_normal(1000, 1))], trust=0.1, max_flips=1e-3, threshold=THRESHOLD, kind=kind
    )
    limited.build([one])
    adam = keras.optimizers.Adam(1e-4)
    for seed in range(20):
        gradient = _normal(1000, seed)
        limited.apply([gradient], [one])
        adam.apply([gradient], [two])
    assert np.ptp(one.numpy()) > 1e-3
    np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("side", [1, -1], ids=["dropped", "back"])
def test_a_herd_flips_for_no_more_than_a_part_of_the_loss(side):
    gradient, kernel = np.abs(_normal(5000, 1, 1e-3)), _normal(5000, 2)
    before = np.full(5000, THRESHOLD + side * 5e-4, "float32")
    flipped, promise = _step(before, side * gradient, kernel, loss=2.0)
    assert promise.sum() > 10 * 0.2, "all of them would promise many times what they may"
    assert promise[flipped].sum() == pytest.approx(0.2, rel=0.05)
    # Those that flip change the weights least for what they promise.
    score = promise / kernel**2
    small = promise <= 0.02
    assert score[flipped].min() >= 0.9 * score[small & ~flipped].max()


def test_a_second_training_compiles_nothing_again():
    size = 4321  # Of no other test here.
    arguments = np.full(size, 5.5e-3, "float32"), _normal(size, 1, 1e-3), _normal(size, 2)
    flipped, _ = _step(*arguments)
    before = _compiled.cache_info()
    again, _ = _step(*arguments)
    after = _compiled.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 2)
    np.testing.assert_array_equal(again, flipped)
    # What is another computation is not shared: where nothing flips, all move, over this threshold too.
    others, _ = _step(*arguments, threshold=1.0)
    assert others.sum() > flipped.sum() + 1000
    assert _compiled.cache_info().misses == after.misses + 2


def test_twice_the_loss_lets_twice_as_much_flip():
    gradient, kernel, before = np.abs(_normal(5000, 1, 1e-3)), _normal(5000, 2), np.full(5000, 5.5e-3, "float32")
    promised = [promise[flipped].sum() for flipped, promise in (_step(before, gradient, kernel, x) for x in (1.0, 2.0))]
    assert promised[1] == pytest.approx(2 * promised[0], rel=0.2)


def test_no_more_weights_flip_than_the_budget_has():
    gradient, kernel, before = np.abs(_normal(5000, 1)), _normal(5000, 2), np.full(5000, 5.5e-3, "float32")
    # Beside such a loss the promises are nothing, and only the number holds.
    flipped, _ = _step(before, gradient, kernel, loss=1e9, max_flips=0.02)
    assert 80 <= flipped.sum() <= 100
    half = WarmupSchedule(0.02, "step", total_steps=2, step_length=1, step_decay=0.5)
    assert float(half(0)) == pytest.approx(0.02)
    flipped, _ = _step(before, gradient, kernel, loss=1e9, max_flips=half)
    assert 80 <= flipped.sum() <= 100


def test_the_limits_are_those_of_all_layers_together():
    kernels = [_variable(_normal(size, size)) for size in (1000, 9000)]
    masks = [_variable(np.full(size, 5.5e-3)) for size in (1000, 9000)]
    optimizer = TrustRegionAdam(1e-3, kernels, trust=0.1, max_flips=0.01, threshold=THRESHOLD)
    optimizer.build(masks)
    optimizer.watch_loss(tf.constant(1e9))
    # The first layer promises a thousand times as much for the same change of weights.
    optimizer.apply([np.full(1000, 1e-2, "float32"), np.full(9000, 1e-5, "float32")], masks)
    first, second = ((mask.numpy() < THRESHOLD).sum() for mask in masks)
    assert 80 <= first + second <= 100
    assert first > 50


def test_a_weight_that_promises_too_much_alone_does_not_flip():
    gradient, kernel = np.full(100, 1e-4, "float32"), np.full(100, 0.1, "float32")
    gradient[7] = 0.05
    flipped, _ = _step(np.full(100, 5.5e-3, "float32"), gradient, kernel)
    assert not flipped[7]
    assert flipped.sum() == 99


def test_weights_that_may_not_flip_stay_where_they_are_and_the_others_move():
    before = np.concatenate([np.full(500, 5.5e-3), np.full(500, 9e-3)]).astype("float32")
    kernel = _variable(_normal(1000, 2))
    mask = _variable(before)
    optimizer = TrustRegionAdam(1e-3, [kernel], trust=0.1, max_flips=0.0, threshold=THRESHOLD)
    optimizer.build([mask])
    optimizer.watch_loss(tf.constant(1.0))
    optimizer.apply([np.ones(1000, "float32")], [mask])
    assert np.array_equal(mask.numpy()[:500], before[:500])
    np.testing.assert_allclose(mask.numpy()[500:], 8e-3, rtol=1e-4)


def test_nothing_flips_where_there_is_no_loss():
    flipped, _ = _step(np.full(100, 5.5e-3, "float32"), _normal(100, 1), _normal(100, 2), loss=0.0)
    assert not flipped.any()


def test_large_layers_are_judged_by_a_sample():
    gradient, kernel = np.abs(_normal(200_000, 1, 1e-3)), _normal(200_000, 2)
    flipped, promise = _step(np.full(200_000, 5.5e-3, "float32"), gradient, kernel, loss=20.0)
    assert 1.0 < promise[flipped].sum() < 2.4
    flipped, _ = _step(np.full(200_000, 5.5e-3, "float32"), gradient, kernel, loss=1e9, max_flips=0.01)
    assert 1500 < flipped.sum() < 2400


@pytest.mark.parametrize("scaling", ["average", "individual"])
def test_promises_are_the_same_with_scaled_gradients(scaling):
    upstream, kernel = np.abs(_normal(5000, 1, 1e-3)), np.abs(_normal(5000, 2)) + 0.1
    before = np.full(5000, 5.5e-3, "float32")
    plain, _ = _step(before, upstream * kernel, kernel)
    gradient = upstream if scaling == "individual" else upstream * kernel / kernel.mean()
    scaled, _ = _step(before, gradient, kernel, gradient_scaling=scaling)
    assert plain.any()
    assert (plain != scaled).mean() < 0.01


def test_ternary_masks_flip_within_the_limits_too():
    before = np.concatenate([np.full(500, 5.5e-3), np.full(500, -4.5e-3)]).astype("float32")
    mask = _variable(before)
    optimizer = TrustRegionAdam(
        1e-3, [_variable(_normal(1000, 2))], trust=0.1, max_flips=0.05, threshold=THRESHOLD, kind="ternary"
    )
    optimizer.build([mask])
    optimizer.watch_loss(tf.constant(1e6))
    optimizer.apply([np.full(1000, 1e-3, "float32")], [mask])
    dropped, turned = (mask.numpy()[:500] < THRESHOLD).sum(), (mask.numpy()[500:] <= -THRESHOLD).sum()
    assert dropped > 5 and turned > 5
    assert 40 <= dropped + turned <= 50


def test_the_loss_is_an_average_of_the_steps():
    mask = _variable(np.full(10, 1e-2))
    optimizer = TrustRegionAdam(1e-3, [_variable(np.ones(10))], trust=0.1, max_flips=0.1, threshold=THRESHOLD)
    optimizer.build([mask])
    seen = []
    for loss in (4.0, 2.0, 2.0):
        optimizer.watch_loss(tf.constant(loss))
        optimizer.apply([np.ones(10, "float32")], [mask])
        seen.append(float(optimizer.average_loss))
    assert seen == pytest.approx([4.0, 3.6, 3.28])


def test_where_the_loss_rises_less_and_less_flips_until_it_falls_again():
    mask, kernel = _variable(np.full(60_000, 5.5e-3)), _variable(_normal(60_000, 2))
    optimizer = TrustRegionAdam(1e-3, [kernel], trust=0.1, max_flips=1.0, threshold=THRESHOLD)
    optimizer.build([mask])
    gradient, promised, dropped = np.abs(_normal(60_000, 1, 1e-3)), [], np.zeros(60_000, bool)
    for loss in [*np.linspace(2, 3, 20), *np.linspace(3, 1, 220)]:
        optimizer.watch_loss(tf.constant(loss, tf.float32))
        optimizer.apply([gradient], [mask])
        now = mask.numpy() < THRESHOLD
        promised.append(gradient[now & ~dropped].sum())
        dropped = now
    assert promised[0] == pytest.approx(0.2, rel=0.2)
    assert promised[19] < 0.02, "what makes the loss rise goes on no more"
    assert float(optimizer.confidence) == 1.0
    assert promised[-1] > 0.02


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_training_tells_the_optimiser_the_loss(policy):
    method, config = Piggyback(PiggybackConfig()), TrainConfig(epochs=1)
    keras.config.set_dtype_policy(policy)
    try:
        model = method.build(toy_backbone(), 3)
        optimizer = make_optimizer(method, model, config, 10)
        assert isinstance(optimizer, WatchedLossScale if policy == "mixed_float16" else WatchedOptimizers)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).uniform(0, 255, (8, *model.input_shape[1:])).astype("float32")
    model.train_on_batch(images, np.arange(8) % 3)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    (masks,) = (part for part in inner.optimizers if isinstance(part, TrustRegionAdam))
    # A head of zeros guesses.
    assert float(masks.average_loss) == pytest.approx(np.log(3), rel=1e-3)


def test_amsgrad_is_refused():
    with pytest.raises(ValueError, match="AMSGrad"):
        TrustRegionAdam(1e-3, [], trust=0.1, max_flips=0.1, threshold=THRESHOLD, amsgrad=True)


def test_a_step_of_ones_own_without_the_loss_is_refused():
    model = Piggyback().build(toy_backbone(), 3)
    optimizer = make_optimizer(Piggyback(), model, TrainConfig(), 10)
    optimizer.build(model.trainable_variables)
    gradients = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    with pytest.raises(ValueError, match=r"take the gradients of optimizer\.scale_loss\(loss\)"):
        optimizer.apply(gradients, model.trainable_variables)
    optimizer.scale_loss(tf.constant(1.0))
    optimizer.apply(gradients, model.trainable_variables)


def test_gradients_are_rounded_before_the_devices_add_them_up(monkeypatch):
    sent, gradient = {}, np.float32(1.0 + 2.0**-10)
    add_up = keras.optimizers.SGD._all_reduce_sum_gradients

    def noted(optimizer, grads_and_vars):
        sent[optimizer.name] = {grad.dtype.name for grad, _ in grads_and_vars}
        return add_up(optimizer, grads_and_vars)

    monkeypatch.setattr(keras.optimizers.SGD, "_all_reduce_sum_gradients", noted)
    inner = {name: keras.optimizers.SGD(1.0, name=name) for name in ("mask", "head")}
    variables = [keras.Variable(np.float32([0.0]), name=name) for name in inner]
    optimizer = WatchedOptimizers(lambda variable: inner[variable.name], {"mask": "bfloat16"})
    optimizer.build(variables)
    optimizer.apply_gradients(zip([tf.constant([gradient])] * 2, variables, strict=True))
    assert sent == {"mask": {"bfloat16"}, "head": {"float32"}}
    assert [float(variable[0]) for variable in variables] == [-1.0, -float(gradient)]
