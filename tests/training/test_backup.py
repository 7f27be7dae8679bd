"""The saved state of a training: what goes where, and which epoch is the best."""

import keras
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from piggyback_tf.file_names import STATE_FILE
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.surgery import BaseVariable
from piggyback_tf.training import TrainConfig, TrainingError, make_optimizer
from piggyback_tf.training.backup import BackupAndRestore, training_variables
from tests.methods.toy import toy_backbone

LOGS = {"loss": 1.0, "val_error": 0.5, "val_loss": 1.0}


def _model(backwards=False, classes=3):
    """Returns a compiled model of masks, batch norm and a head with dropout."""
    method = Piggyback(PiggybackConfig(norm="task", head_dropout=0.5))
    model = method.build(toy_backbone(), classes)
    model.compile(optimizer=make_optimizer(method, model, TrainConfig(), steps_per_epoch=5))
    variables = model.trainable_variables
    model.optimizer.build(variables[::-1] if backwards else variables)
    return model


def _backup(folder, model):
    backup = BackupAndRestore(folder)
    backup.set_model(model)
    return backup


def _saved(folder):
    """Returns a model of which every variable has other values, and which is saved."""
    model, generator = _model(), np.random.default_rng(0)
    for variable in training_variables(model).values():
        value = generator.uniform(1, 100, variable.shape)
        variable.assign(value.astype(keras.backend.standardize_dtype(variable.dtype)))
    backup = _backup(folder, model)
    backup.on_epoch_begin(0)
    backup.on_epoch_end(0, LOGS)
    return model


def _assert_equal(one, two):
    one, two = training_variables(one), training_variables(two)
    assert one.keys() == two.keys()
    for name, variable in one.items():
        assert np.array_equal(variable, two[name]), name


def test_everything_has_a_name_that_nothing_else_in_the_process_changes():
    names = training_variables(_model()).keys()
    keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.optimizers.Adam()
    assert training_variables(_model()).keys() == names
    assert {
        "model/dense/mask_real",
        "model/second_norm/gamma",
        "model/head/kernel",
        "random/head_dropout/seed",
        "optimizer/iteration",
        "optimizer/mask/iteration",
        "optimizer/mask/dense/mask_real/momentum",
        "optimizer/norm/second_norm/gamma/velocity",
        "optimizer/head/head/bias/momentum",
        # What the trust region knows of the loss goes on where it was.
        "optimizer/mask/average_loss",
        "optimizer/mask/long_average_loss",
        "optimizer/mask/confidence",
    } <= names
    # The frozen weights, which the masks' optimiser reads, are no state.
    assert not [name for name in names if name.startswith("optimizer/") and name.endswith(("/kernel", "/bias"))]


def test_half_precision_keeps_its_scale_too():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        names = training_variables(_model()).keys()
    finally:
        keras.config.set_dtype_policy("float32")
    assert {"optimizer/loss_scale/dynamic_scale", "optimizer/mask/dense/mask_real/momentum"} <= names


def test_values_find_their_variables_in_whatever_order_these_are(tmp_path):
    saved, other = _saved(tmp_path), _model(backwards=True)
    order = [name for name in training_variables(saved) if name.startswith("optimizer/")]
    assert order != [name for name in training_variables(other) if name.startswith("optimizer/")]
    _backup(tmp_path, other).restore()
    _assert_equal(saved, other)


def test_a_state_of_the_first_version_with_numbers_goes_on(tmp_path):
    saved = _saved(tmp_path)
    own = [variable for variable in saved.weights if not isinstance(variable, BaseVariable)]
    random = [v for v in saved.variables if not any(v is weight for weight in saved.weights)]
    kinds = {"now/model": own, "now/random": random, "now/optimizer": saved.optimizer.variables, "best": own}
    tensors = {
        f"{kind}/{place}": np.asarray(v.numpy()) for kind, members in kinds.items() for place, v in enumerate(members)
    }
    with safe_open(tmp_path / STATE_FILE, "np") as state:
        metadata = state.metadata()
    save_file(tensors, tmp_path / STATE_FILE, metadata)
    other = _model()
    backup = _backup(tmp_path, other)
    backup.restore()
    _assert_equal(saved, other)
    other.get_layer("head").bias.assign([0.0, 0.0, 0.0])
    backup.restore_best()
    _assert_equal(saved, other)


def test_a_state_with_other_shapes_is_one_of_another_model(tmp_path):
    _saved(tmp_path)
    with pytest.raises(TrainingError, match="belongs to another model"):
        _backup(tmp_path, _model(classes=4)).restore()


def test_a_weight_outside_of_the_layers_is_refused():
    model = _model()
    model.add_weight(shape=(), name="loose")
    with pytest.raises(ValueError, match="a weight in none of its layers, '.*loose'"):
        training_variables(model)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, float("nan")), (0.5, 9.0), (0.5, float("inf"))], 1),
        ([(0.5, 9.0), (0.5, float("nan"))], 0),
        ([(0.5, 9.0), (0.4, float("nan")), (0.4, 9.0), (0.4, 9.0)], 2),
        ([(float("nan"), 1.0), (0.9, 2.0)], 1),
    ],
)
def test_a_loss_that_is_no_number_is_the_highest(scores, best, tmp_path):
    model = _model()
    head = model.get_layer("head").bias
    for epoch, (error, loss) in enumerate(scores):
        backup = _backup(tmp_path, model)
        backup.restore()  # The file keeps what no number is.
        head.assign([epoch, 0.0, 0.0])
        backup.on_epoch_begin(epoch)
        backup.on_epoch_end(epoch, {"val_error": error, "val_loss": loss})
    assert backup.completed.best_epoch == best
    backup.restore_best()
    assert head.numpy()[0] == best
