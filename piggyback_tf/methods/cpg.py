"""Compacting, picking and growing, without the growing (Hung, Tu, Wu, Chen, Chan and Chen, NeurIPS 2019; arXiv
1910.06562).

One network holds all tasks, as with PackNet, and each of its weights belongs to one task or is free. A task does not
compute with all weights of the tasks before it, but with those that it picks. With P the weights of earlier tasks, M a
mask over them and E what the task has of the free ones, its kernels are (section 3.2)

    W' = M P + E

M is a mask of Piggyback, learned as that is, and no weight in P ever changes: answers of earlier tasks stay bit for
bit. E starts at 0. A task is learned in these steps:

1. Goal: the base is fine-tuned, and its lowest validation error is the goal. In the paper people set it.
2. Picking: M, E, batch norm and the head are trained.
3. Compacting: the smallest weights of E are set free, by a ladder of parts of what the task found free. After each rung
   the rest is retrained. While a rung comes to the goal, the next one is tried; otherwise the network goes back to the
   best epoch of the rung before. The first rung stays whether it comes to the goal or not: what a task does not leave
   free, no later task has.
4. The network of the last rung that stayed is retrained, with new optimisers. The best epoch is one of these.

The goal costs `cpg_goal` of the epochs, and is in the time of the task. The first task has nothing to pick: its E
starts as the base, and training that is fine-tuning, so that steps 1 and 2 are one. The paper starts with the data that
the base was trained on; to have that, make it the first task of a sequence.

Biases, batch norm and all else that is no kernel belong to the task. They start as those of the task before, and so as
the base's for the first. All tasks share the kernels, and one byte for each weight that names its owner; a task has one
bit for each weight that tasks before it own. In the paper goals and pruning are chosen by hand for each set, and the
network grows where the goal is missed. Here it keeps its size. E of a later task, which starts at 0, has the rate of
adapters, and what is fine-tuned that of weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, is_batch_norm, named_layers, named_variables
from piggyback_tf.backbones.paths import NESTED
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.masking import MaskedLayer
from piggyback_tf.masking.layers import MASKED_LAYERS, mask_variable_name
from piggyback_tf.masking.threshold import binarise
from piggyback_tf.methods.base import METHODS, trained_norm
from piggyback_tf.methods.parts.memory import Memory
from piggyback_tf.methods.parts.owned_weights import (
    OwnedNetwork,
    OwnedWeight,
    OwningLayer,
    add_owner,
    owned_kernels,
    owned_weights,
    owner_of,
)
from piggyback_tf.methods.parts.separate_gradients import PassingLayer
from piggyback_tf.problems import HEAD_NAME, is_head, read_spec
from piggyback_tf.settings.masks import MaskConfig
from piggyback_tf.settings.methods.cpg import CPGConfig
from piggyback_tf.surgery import all_arrays, assign_arrays, copy_layers, copy_of_base, own_arrays

LADDER_NAME = "ladder"
MASKS = MaskConfig()
STAGES = ("goal", "pick", "compact", "settle")
# Epochs to divide: each stage needs one.
_FEWEST = len(STAGES)


class PickedKernels(OwningLayer, MaskedLayer):
    """Computes with picked weights of earlier tasks, which are frozen, and with weights of its own."""

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        if name == "bias":  # It belongs to the task, and what it starts as is no base's.
            return keras.Layer.add_weight(self, *args, name=name, **kwargs)
        return super().add_weight(*args, name=name, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        for weight in self.MASKED_WEIGHTS:
            shape = self.frozen_weight(weight).shape
            setattr(self, f"_{own_of(weight)}", self.add_learned_weight(own_of(weight), shape))
            setattr(self, f"_{owner_of(weight)}", add_owner(self, weight, shape))
        for mask_real in self.mask_variables.values():
            mask_real.trainable = self.task > 1  # The first task has nothing to pick.

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns `M P + E`: of each weight the one or the other."""
        owner = getattr(self, f"_{owner_of(weight)}", None)
        if owner is None:  # Keras' `build` may look at the kernel before its owner is there.
            return kernel
        own = tf.cast(tf.convert_to_tensor(getattr(self, f"_{own_of(weight)}").value), kernel.dtype)
        return tf.where(tf.convert_to_tensor(owner.value) == self.task, own, super().derive(weight, kernel))

    def owned_weights(self) -> dict[str, OwnedWeight]:
        return {
            weight: OwnedWeight(self.task, getattr(self, f"_{own_of(weight)}"), getattr(self, f"_{owner_of(weight)}"))
            for weight in self.MASKED_WEIGHTS
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "task": self.task}


PICKED_LAYERS: dict[type[keras.Layer], type[PickedKernels]] = {
    kind: type(f"Picked{kind.__name__}", (PickedKernels, masked), {"__doc__": PickedKernels.__doc__})
    for kind, masked in MASKED_LAYERS.items()
}


class Ladder(PassingLayer):
    """Holds how far the pruning of a task is, and a copy of what was learned at the last rung that stayed.

    All of it is in weights, so that a training that goes on knows it.

    Args:
        shapes: Shape and dtype of what is copied, by canonical path.
        **kwargs: As for `keras.layers.Layer`.

    Attributes:
        stage: The place in `STAGES`.
        goal: The validation error that a pruned network is asked for.
        rung: The rung that is tried.
        highest: The highest rung that is still worth trying.
        epochs: Epochs at this rung.
        error: The lowest validation error that this rung came to the goal with; infinite before.
        error_of_copy: The same of what was copied.
    """

    def __init__(self, shapes: Mapping[str, tuple[Sequence[int], str]], **kwargs: Any):
        super().__init__(**kwargs)
        self._shapes = dict(shapes)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.stage, self.rung, self.highest, self.epochs = (
            self._add(name, (), 0.0) for name in ("stage", "rung", "highest", "epochs")
        )
        self.goal, self.error, self.error_of_copy = (
            self._add(name, (), np.inf) for name in ("goal", "error", "error_of_copy")
        )
        for path, (shape, dtype) in self._shapes.items():
            setattr(self, _copy_of(path), self._add(_copy_of(path), shape, 0, dtype))

    def _add(self, name: str, shape: Sequence[int], value: float, dtype: str = "float32") -> keras.Variable:
        return self.add_weight(
            shape=tuple(shape),
            initializer=keras.initializers.Constant(value),
            dtype=dtype,
            autocast=False,
            trainable=False,
            name=name,
        )

    def read(self, name: str) -> float:
        """Returns the value of one of the numbers."""
        return float(keras.ops.convert_to_numpy(getattr(self, name)))

    @property
    def stage_name(self) -> str:
        """The stage that the training is in."""
        return STAGES[int(self.read("stage"))]

    def keep(self, model: keras.Model) -> None:
        """Copies what a model has learned."""
        variables = named_variables(model)
        for path in self._shapes:
            getattr(self, _copy_of(path)).assign(variables[path].value)
        self.error_of_copy.assign(self.error.value)

    def put_back(self, model: keras.Model) -> None:
        """Gives a model what was copied."""
        variables = named_variables(model)
        for path in self._shapes:
            variables[path].assign(getattr(self, _copy_of(path)).value)
        self.error.assign(self.error_of_copy.value)

    def prune(self, model: keras.Model, rung: int, fraction: float) -> None:
        """Comes to a rung.

        Args:
            model: The model.
            rung: The rung.
            fraction: Which part of what the task found free is free then.
        """
        for weight in owned_weights(model).values():
            weight.prune(fraction)
        self.rung.assign(rung)
        self.epochs.assign(0.0)
        self.error.assign(np.inf)


class Climb(keras.callbacks.Callback):
    """Measures the goal, and prunes while networks come to it.

    Args:
        rungs: The parts of weights that are set free, rising.
        epochs: Epochs at each rung.
        slack: By how many points of error a network may miss the goal.
    """

    def __init__(self, rungs: Sequence[float], epochs: int, slack: float):
        super().__init__()
        self._rungs, self._epochs, self._slack = rungs, epochs, slack / 100.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        ladder = ladder_of(self.model)
        rung = int(ladder.read("rung"))
        if ladder.stage_name != "compact" or ladder.read("epochs") < self._epochs:
            return
        if np.isinf(ladder.read("error")) and rung:
            ladder.put_back(self.model)
            ladder.rung.assign(rung - 1)
            ladder.highest.assign(rung - 1)
        elif rung < ladder.read("highest"):
            ladder.prune(self.model, rung + 1, self._rungs[rung + 1])

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        # Before the state of the epoch is saved, which is at the end of the epoch.
        ladder, error = ladder_of(self.model), float((logs or {})["error"])
        stage = ladder.stage_name
        if stage == "goal" and error < ladder.read("goal"):
            ladder.goal.assign(error)
        if stage != "compact":
            return
        ladder.epochs.assign_add(1.0)
        comes_to_goal = ladder.read("rung") == 0 or error <= ladder.read("goal") + self._slack
        if comes_to_goal and error < ladder.read("error"):
            ladder.error.assign(error)
            ladder.keep(self.model)


@METHODS.register("cpg")
class CPG(OwnedNetwork):
    """Picks weights of earlier tasks by a mask, trains free ones, and sets free what the goal does not need."""

    Config = CPGConfig
    config: CPGConfig
    less = "a higher first number of cpg_ladder"

    def fraction_of(self, task: int) -> float:
        del task
        return self.config.rungs[0]

    def build(self, backbone: Backbone, head: HeadSpec | int, seed: int = 0) -> keras.Model:
        return _with_ladder(super().build(backbone, head, seed))

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        self.check_network(backbone)
        if self.memory.tasks:
            self.take_free(self.memory.shared)  # It says so if nothing is free.
            return copy_of_base(backbone.model, trained_norm(self.config))
        model = self._picked(backbone.model)
        arrays = all_arrays(backbone.model)
        for path, weight in owned_weights(model).items():
            weight.kernel.assign(arrays[path])
            arrays[path] = np.zeros_like(arrays[path])
        assign_arrays(model, {**all_arrays(model), **arrays})
        return model

    def phases(self, epochs: int) -> tuple[int, ...]:
        if epochs < _FEWEST:
            raise ValueError(
                f"CPG needs at least {_FEWEST} epochs: to find its goal, to pick, to prune and to retrain. Received: "
                f"epochs={epochs}."
            )
        goal = min(max(1, round(epochs * self.config.cpg_goal)), epochs - _FEWEST + 1)
        own = epochs - goal
        settle = max(1, round(own / 5))
        pick = min(max(1, round(own / 2)), own - settle - 1)
        lengths = (goal, pick, own - settle - pick, settle)
        return lengths if self.memory.tasks else (goal + pick, *lengths[2:])

    def begin_phase(self, model: keras.Model, phase: int) -> keras.Model:
        stage = ([name for name in STAGES if self.memory.tasks or name != "pick"])[phase]
        if stage == "pick":
            model = self._network_to_pick(model)
        ladder = ladder_of(model)
        ladder.stage.assign(STAGES.index(stage))
        if stage == "compact":
            ladder.highest.assign(len(self.config.rungs) - 1)
            ladder.prune(model, 0, self.config.rungs[0])
            ladder.keep(model)
        elif stage == "settle":
            ladder.put_back(model)
        return model

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        del model
        return [Climb(self.config.rungs, self.config.cpg_rung, self.config.cpg_slack)]

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        if isinstance(layer, PickedKernels):
            masks = {variable.name for variable in layer.mask_variables.values()}
            name = path.rpartition("/")[2]
            if name in masks:
                return "mask"
            # Weights that start at 0 need other rates than those of a network that is fine-tuned.
            return "weights" if name == "bias" or self.task == 1 else "adapter"
        return super().variable_group(path, layer)

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del backbone, images
        own = {path: array for path, array in own_arrays(model).items() if not path.startswith(f"{LADDER_NAME}/")}
        shared: dict[str, np.ndarray] = {}
        for path in owned_weights(model):
            owner, mine = own.pop(owner_of(path)), own.pop(own_of(path))
            earlier, picked = own.pop(path), binarise(own.pop(_mask_of(path)), MASKS.threshold)
            before = self.memory.shared.get(path)
            if before is not None and not np.array_equal(before, earlier):
                raise ValueError(f"The training of task {self.task} changed {path!r}, which belongs to earlier tasks.")
            shared[path] = np.where(owner == self.task, mine, earlier)
            shared[owner_of(path)] = owner
            own[picks_of(path)] = np.packbits(np.asarray(picked)[(owner > 0) & (owner < self.task)])
        return self.memory.with_task(task, own, shared=shared, head=read_spec(model))

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        own, number = dict(self.memory.of(task)), self.memory.tasks.index(task) + 1
        arrays = {}
        for path in owned_kernels(self.memory.shared):
            kernel, owner = self.memory.shared[path], self.memory.shared[owner_of(path)]
            used, earlier = owner == number, (owner > 0) & (owner < number)
            used[earlier] = np.unpackbits(own.pop(picks_of(path)), count=int(earlier.sum()))
            arrays[path] = np.where(used, kernel, 0)
        # The picks are no arrays of the network.
        plain = type(self)(self.config, self.memory.with_changed({task: own}))
        return plain.recalled(backbone, task, arrays)

    def _picked(self, model: keras.Model) -> keras.Model:
        """Returns the same network with layers that pick, whose weights have no values yet."""
        norm, head = trained_norm(self.config), [layer for layer in model.layers if layer.name == HEAD_NAME]

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            if type(layer) in PICKED_LAYERS and layer not in head:
                return PICKED_LAYERS[type(layer)], {"task": self.task, "trainable": True}
            return norm.settings_of(layer) if is_batch_norm(layer) else (type(layer), {"trainable": True})

        return copy_layers(model, settings_of)[0]

    def _network_to_pick(self, model: keras.Model) -> keras.Model:
        """Returns the network that a later task learns, with a new head, in place of one that was fine-tuned."""
        picked = _with_ladder(self._picked(keras.Model(model.input, model.get_layer(HEAD_NAME).output)))
        picks = {picks_of(path) for path in owned_kernels(self.memory.shared)}
        ladder_of(picked).goal.assign(ladder_of(model).goal.value)
        before = self.memory.of(self.memory.tasks[-1])
        kept = {path: array for path, array in before.items() if not is_head(path) and path not in picks}
        assign_arrays(picked, {**all_arrays(picked), **kept, **self.take_free(self.memory.shared)})
        return picked


def _with_ladder(model: keras.Model) -> keras.Model:
    """Returns a model with a `Ladder` behind its logits, which copies all but what earlier tasks own."""
    frozen = {
        f"{path}/{weight}"
        for path, layer in named_layers(model)
        if isinstance(layer, PickedKernels)
        for weight in layer.MASKED_WEIGHTS
    }
    shapes = {
        path: (tuple(variable.shape), variable.dtype)
        for path, variable in named_variables(model).items()
        if frozen and path not in frozen
    }
    return keras.Model(model.input, Ladder(shapes, name=LADDER_NAME)(model.output), name=model.name)


def ladder_of(model: keras.Model) -> Ladder:
    """Returns the ladder of a model of CPG."""
    return model.get_layer(LADDER_NAME)


def own_of(weight: str) -> str:
    """Returns the name, or the path, of what a task has of its own for a kernel."""
    return f"{weight}_own"


def picks_of(path: str) -> str:
    """Returns under which name a task keeps which weights of earlier tasks it picks from a kernel."""
    return f"{path}_picks"


def _mask_of(path: str) -> str:
    layer, _, weight = path.rpartition("/")
    return f"{layer}/{mask_variable_name(weight)}"


def _copy_of(path: str) -> str:
    """Returns the name under which a ladder has its copy."""
    return f"copy{NESTED}{path.replace('/', NESTED)}"
