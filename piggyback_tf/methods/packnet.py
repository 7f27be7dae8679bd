"""PackNet: each task owns a part of one network's weights (Mallya and Lazebnik, CVPR 2018; arXiv 1711.05769).

One network holds all tasks, and each of its weights belongs to one task or is free. As in section 3 of the paper:

1. A new task trains the free weights, which start at 0, over those of the tasks before, which stay as they are.
2. In each layer the weights of the new task with the smallest magnitude are set to 0 and free again.
3. What is left to the new task is retrained, with new optimisers, and never changes any more.

A task computes with the weights of its own and of all tasks before it, so that nothing that is learned later changes
its answers. Biases and batch norm (with `norm_statistics="task"`, the paper's, its statistics too) are trained with the
first task and then stay. Weight decay would pull the weights of earlier tasks to 0, so there is none.

The first task starts at step 2: the base as it is, is pruned and retrained. The paper does this with the data that the
base was trained on; to have that, make it the first task of a sequence. Otherwise the pruned base is retrained on the
first new task, and no task answers as the base did.

All tasks share the weights, and one byte for each kernel weight that names its owner. The paper prunes at once; with
`packnet_schedule="gradual"` the sparsity rises along the cubic polynomial of Zhu and Gupta (2017, arXiv 1710.01878)
while the task is trained. The reference implementation trains for 20 epochs, prunes, and retrains for 10 at a tenth of
the learning rate; here the schedule of the training is run through before and after pruning.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, is_batch_norm
from piggyback_tf.methods.base import METHODS, trained_norm
from piggyback_tf.methods.parts.memory import Arrays, Memory, split_off_head
from piggyback_tf.methods.parts.owned_weights import (
    OwnedNetwork,
    OwnedWeight,
    OwningLayer,
    add_owner,
    owned_kernels,
    owned_weights,
    owner_of,
)
from piggyback_tf.problems import read_spec
from piggyback_tf.settings.methods.packnet import PackNetConfig
from piggyback_tf.surgery import (
    DerivedKernels,
    all_arrays,
    assign_arrays,
    copy_layers,
    derived_layers,
    own_arrays,
)


class OwnedKernels(OwningLayer, DerivedKernels):
    """Computes with the weights of tasks up to its own, of which it trains its own."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        for weight in self.kernel_names:
            setattr(self, f"_{owner_of(weight)}", add_owner(self, weight, getattr(self, f"_{weight}").shape))
        if self.bias is not None:
            self.bias.trainable = self.task == 1

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the weights that are not free, those of earlier tasks as constants."""
        owner = getattr(self, f"_{owner_of(weight)}", None)
        if owner is None:  # Keras' `build` may look at the kernel before its owner is there.
            return kernel
        owner = tf.convert_to_tensor(owner.value)
        earlier = tf.where(owner == 0, tf.zeros([], kernel.dtype), tf.stop_gradient(kernel))
        return tf.where(owner == self.task, kernel, earlier)

    def owned_weights(self) -> dict[str, OwnedWeight]:
        return {
            weight: OwnedWeight(self.task, getattr(self, f"_{weight}"), getattr(self, f"_{owner_of(weight)}"))
            for weight in self.kernel_names
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "task": self.task}


OWNED_LAYERS = derived_layers(OwnedKernels, "Owned")


@METHODS.register("packnet")
class PackNet(OwnedNetwork):
    """Trains the free weights of one network on a task, keeps the largest, and frees the others for the next task."""

    Config = PackNetConfig
    config: PackNetConfig
    less = "a larger packnet_prune"

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        self.check_network(backbone)
        first = self.task == 1

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            if type(layer) in OWNED_LAYERS:
                return OWNED_LAYERS[type(layer)], {"task": self.task, "trainable": True}
            if first and is_batch_norm(layer):
                return trained_norm(self.config).settings_of(layer)
            return type(layer), {"trainable": first}

        model, _ = copy_layers(backbone.model, settings_of)
        if first:
            weights = owned_weights(model).items()
            owners = {owner_of(path): np.zeros(weight.owner.shape, np.uint8) for path, weight in weights}
            assign_arrays(model, self.take_free({**all_arrays(backbone.model), **owners}))
        else:
            assign_arrays(model, self.take_free(self.memory.shared))
        return model

    def fraction_of(self, task: int) -> float:
        return self.config.packnet_prune_first if task == 1 else self.config.packnet_prune

    def phases(self, epochs: int) -> tuple[int, ...]:
        if epochs < 2:
            raise ValueError(
                f"PackNet needs at least 2 epochs, to train and to retrain a task. Received: epochs={epochs}."
            )
        if self._starts_pruned:
            return (epochs,)
        retrain = min(max(1, round(epochs * self.config.packnet_retrain)), epochs - 1)
        return (epochs - retrain, retrain)

    def begin_training(self, model: keras.Model) -> None:
        if self._starts_pruned:
            self._prune(model)

    def begin_phase(self, model: keras.Model, phase: int) -> keras.Model:
        if phase == 1:
            self._prune(model)
        return model

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        del model
        if self.config.packnet_schedule == "one_shot":
            return []
        return [GradualPruning(self.fraction_of(self.task), self.config.packnet_parts)]

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del backbone, images
        head, arrays = split_off_head(own_arrays(model))
        owners = {path: arrays[owner_of(path)] for path in owned_kernels(arrays)}
        for path, owner in owners.items():
            arrays[path][owner == 0] = 0
        self._check_kept(arrays, owners)
        return self.memory.with_task(task, head, shared=arrays, head=read_spec(model))

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        self.memory.of(task)  # It says so if the task was not learned.
        arrays, number = dict(self.memory.shared), self.memory.tasks.index(task) + 1
        for path in owned_kernels(arrays):
            owner = arrays.pop(owner_of(path))
            arrays[path] = np.where((owner > 0) & (owner <= number), arrays[path], 0)
        return self.recalled(backbone, task, arrays)

    @property
    def _starts_pruned(self) -> bool:
        """Whether there is nothing to train before pruning: the weights of the base are trained already."""
        return self.task == 1 and self.config.packnet_schedule == "one_shot"

    def _prune(self, model: keras.Model) -> None:
        for weight in owned_weights(model).values():
            weight.prune(self.fraction_of(self.task))

    def _check_kept(self, arrays: Arrays, owners: Arrays) -> None:
        """Refuses what was trained with something, such as weight decay, that changed weights of earlier tasks."""
        for path, before in self.memory.shared.items():
            if path in owners:
                earlier = (owners[path] > 0) & (owners[path] < self.task)
                same = np.array_equal(before[earlier], arrays[path][earlier])
            else:
                same = path.removesuffix(owner_of("")) in owners or np.array_equal(before, arrays[path])
            if not same:
                raise ValueError(
                    f"The training of task {self.task} changed {path!r}, which belongs to earlier tasks; train "
                    "without weight decay, and only what is trainable."
                )


class GradualPruning(keras.callbacks.Callback):
    """Sets weights free while a task is trained, until as many are as should be when the phase ends.

    Args:
        fraction: Which part of the free weights the task leaves free in the end.
        parts: In how many steps.
    """

    def __init__(self, fraction: float, parts: int):
        super().__init__()
        self._fraction = fraction
        self._parts = parts

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        steps = self.params["epochs"] * self.params["steps"]
        self._sparsity = polynomial_decay(self._fraction, steps, max(1, steps // self._parts))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Steps are counted from the start of a phase. In the second one, which is pruned already, this does nothing.
        prune, sparsity = self._sparsity(int(self.model.optimizer.iterations))
        if prune:
            for weight in owned_weights(self.model).values():
                weight.prune(float(sparsity))


def polynomial_decay(final: float, steps: int, every: int) -> Callable[[int], tuple[tf.Tensor, tf.Tensor]]:
    """Returns what says of a step whether to prune after it, and to which sparsity.

    Args:
        final: Sparsity after the last step; it starts at 0 and rises along a cubic polynomial.
        steps: Number of steps.
        every: Steps between two prunings.
    """
    name = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(name)
    try:
        # Imported where it is used, since it sets this variable, which child processes would inherit.
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
    return PolynomialDecay(0.0, final, begin_step=0, end_step=steps, frequency=every)
