"""A training that is broken off and started again ends where an uninterrupted one ends, bit for bit."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import Subset, load_data
from piggyback_tf.methods.classifier_only import ClassifierOnly
from piggyback_tf.methods.finetune import Finetune
from piggyback_tf.methods.parts.shared_network import TrainedNetworkConfig
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, train_task

CONFIG = TrainConfig(epochs=3, batch_size=32, chance_epochs=0, head_lr=1e-2, mask_lr=2e-3, mask_budget=1.0)
INPUTS = InputConfig(augment_train="resize(36,36)|random_crop(32)|rotate(10)")
CASES = {
    "piggyback with its own batch norm": (Piggyback, PiggybackConfig(norm="task", head_dropout=0.5)),
    "ternary masks from a uniform start": (Piggyback, PiggybackConfig(mask_kind="ternary", mask_init="uniform")),
    "masks with a price of dropping weights": (Piggyback, PiggybackConfig(sparsity_weight=1.0)),
    "fine-tuning with batch norm": (Finetune, TrainedNetworkConfig(norm="task", head_dropout=0.5)),
    "the head alone": (ClassifierOnly, None),
}


class BrokenOffError(Exception):
    pass


@pytest.fixture(scope="module", name="data")
def _data():
    data = load_data("digits")
    return dataclasses.replace(data, train=Subset(data.train, range(90)), validation=Subset(data.validation, range(40)))


# Masks: tests/methods/test_contract.py.


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_broken_off_and_started_again(case, data, tmp_path):
    kind, settings = CASES[case]

    class BreaksOff(kind):
        def callbacks(self, model):
            def stop(epoch, logs):
                if epoch == 1:
                    raise BrokenOffError

            return [keras.callbacks.LambdaCallback(on_epoch_begin=stop)]

    def train(method, **arguments):
        return train_task(method(settings), load_backbone("shapesnet"), data, CONFIG, INPUTS, **arguments)

    whole = train(kind)
    with pytest.raises(BrokenOffError):
        train(BreaksOff, state_dir=tmp_path)
    again = train(kind, state_dir=tmp_path)
    assert again.history == whole.history
    assert again.best_epoch == whole.best_epoch
    for one, two in zip(whole.model.weights, again.model.weights, strict=True):
        assert np.array_equal(one, two), one.path


def test_a_state_of_another_model_or_a_damaged_one_is_refused(data, tmp_path):
    backbone = load_backbone("shapesnet")
    # A folder that is not there, by its name alone.
    tmp_path /= "runs/one"
    train_task(ClassifierOnly(), backbone, data, CONFIG, INPUTS, state_dir=str(tmp_path))
    with pytest.raises(TrainingError, match="another model"):
        train_task(Piggyback(), backbone, data, CONFIG, INPUTS, state_dir=tmp_path)
    state = tmp_path / "training_state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="cannot be read"):
        train_task(ClassifierOnly(), backbone, data, CONFIG, INPUTS, state_dir=tmp_path)


@pytest.mark.slow
def test_tensorboard_has_loss_error_and_zeros_of_each_layer(data, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1)
    train_task(Piggyback(), load_backbone("shapesnet"), data, config, INPUTS, tensorboard_dir=tmp_path)
    tags = set()
    for file in tmp_path.iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert {"loss/train", "loss/validation", "error/train", "error/validation", "zeros/stem_conv/kernel"} <= tags
