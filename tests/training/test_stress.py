"""A network on which masks die if too much of them flips at once: deep, without shortcuts, and its features magnified.

The recipe of the first versions (Adam at 2.5e-4, at most a thousandth of a layer's mask in a step) ended at 1.03 of the
loss of guessing with each of three seeds, as the paper's does here.
"""

import numpy as np
import pytest

from piggyback_tf.methods import METHODS
from piggyback_tf.training import InputConfig, TrainConfig, train_task
from tests.training.fragile import CLASSES, make_problem

PAPER = {"warmup_steps": 0, "mask_lr": 1e-4, "mask_epsilon": 1e-8, "mask_trust": 0.0, "schedule": "step"}


@pytest.fixture(scope="module", name="problem")
def _problem():
    return make_problem()


def _loss_at_the_end(problem, method, train=None, **settings):
    """Returns the training loss of the last epoch as a part of that of guessing."""
    kind = METHODS[method]
    config = TrainConfig(epochs=10, chance_epochs=0, **(train or {}))
    trained = train_task(kind(kind.Config(**settings)), *problem, config, InputConfig())
    return trained.history["cross_entropy"][-1] / np.log(CLASSES)


def test_masks_learn(problem):
    assert _loss_at_the_end(problem, "classifier_only") < 0.7
    assert _loss_at_the_end(problem, "piggyback") < 0.9


@pytest.mark.slow
def test_the_papers_recipe_dies(problem):
    assert _loss_at_the_end(problem, "piggyback", PAPER | {"head_lr": 1e-4}, head_init="glorot") > 0.98
