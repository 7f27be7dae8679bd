"""PathNet on a pretrained network: each task evolves its own path through modules beside a frozen base (Fernando,
Banarse, Blundell, Zwols, Ha, Rusu, Pritzel and Wierstra, 2017; arXiv 1701.08734).

The paper has layers of modules, and a path through a few of them in each layer, whose outputs are summed. Here the base
stays, and beside each of its stages stand M modules, which read what the stage computes, `h`. With the modules B of a
path, the next stage reads

    h + sum of B(h) over the modules on the path

A module is a residual bottleneck with batch norm of its own: a 1x1 convolution to `1 / pathnet_reduction` of the
channels, a 3x3 one and a 1x1 one back, with batch norm and ReLU behind the first two; at the features it is of two
dense layers. The last kernel starts at 0, so that every path starts as the base. Stages end at the inputs of strided
layers behind the first kernel, and at the features.

Paths compete (section 2.2): a population starts at random. For a tournament two paths are drawn. Each is trained for
some steps; its fitness is the mean loss of these steps' batches, which the paper counts as errors. The genes of the
winner take the place of the other's, each moved with a probability of one in the number of genes by -2 to 2. Modules
that are not on the path of a step do not change in it, nor do their statistics, and SGD has no momentum, which would
move them. The tournaments take `pathnet_search` of the usual number of steps. The rest trains the fittest path alone,
which the paper does not, and the best epoch is one of these.

Then the modules of the path are frozen (section 2.3). Later tasks may use them and never change them, so that answers
of earlier tasks stay bit for bit. All other modules start anew, and so does the population. Modules of all paths are
shared, a task keeps its genes, and of each population its genes and fitness are kept with what learning needs.

Batch norm of modules that are trained takes the statistics of the batch; on several devices those of the whole one,
except that a last batch that is filled up counts some of its images twice.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.methods.parts.added_loss import AddedLoss, no_term
from piggyback_tf.methods.parts.memory import Memory, split_off_head
from piggyback_tf.methods.parts.stages import StageInsertion, check_stages
from piggyback_tf.methods.parts.tournaments import POPULATION_NAME, Population, SearchingModel, Tournaments
from piggyback_tf.problems import read_spec
from piggyback_tf.settings.methods.pathnet import PathNetConfig
from piggyback_tf.surgery import copy_layers, generator, own_arrays, share_variables

_STAGE = "stage"
_GENES = "genes"
_MOMENTUM = 0.9


class ModuleNorm(keras.layers.BatchNormalization):
    """Batch norm of a module, whose statistics follow the batches that it is on the path of.

    Args:
        population: Holds the gates.
        place: The place of the module's gate.
        **kwargs: As for `keras.layers.BatchNormalization`.
    """

    def __init__(self, population: Population, place: tuple[int, int], **kwargs: Any):
        # A function, since Keras takes a layer in an attribute for a part of this one.
        self._gate = lambda: tf.convert_to_tensor(population.gates.value)[place]
        super().__init__(**kwargs)

    @property
    def momentum(self) -> tf.Tensor:
        """The momentum of the statistics: 1, which leaves every bit of them, where the gate is closed."""
        return tf.where(self._gate() > 0, self._momentum, 1.0)

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        self._momentum = momentum


class PathSum(keras.layers.Layer):
    """Adds the modules on the path to what a stage computes.

    Input: `h` and what each module makes of it, tensors of one shape. Output: `h` and the sum of those on the path.

    Args:
        population: Holds the gates.
        stage: The stage.
        **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, population: Population, stage: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._gates = lambda: tf.convert_to_tensor(population.gates.value)[stage]

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        outputs, *modules = inputs
        for gate, module in zip(tf.unstack(self._gates()), modules, strict=True):
            outputs += tf.cast(gate, module.dtype) * module
        return outputs


class ModuleInsertion(StageInsertion):
    """Calls the layers of the base, and puts the modules of a path beside its stages.

    Args:
        config: The settings.
        seed: Seed of the kernels.
    """

    def __init__(self, config: PathNetConfig, seed: int):
        super().__init__()
        self._config = config
        self._seed = seed

    def module(self, tensor: keras.KerasTensor, stage: int, number: int, trainable: bool = False) -> keras.KerasTensor:
        """Returns what a module makes of a boundary.

        Args:
            tensor: `h`.
            stage: The stage, from 0.
            number: Of the module, from 0.
            trainable: Whether it is trained.
        """
        layers, name, channels = keras.layers, f"{module_name(stage, number)}_", tensor.shape[-1]
        narrow, is_map = max(1, channels // self._config.pathnet_reduction), len(tensor.shape) == 4

        def mixed(x: keras.KerasTensor, part: str, units: int, size: int, **settings: Any) -> keras.KerasTensor:
            settings = {"use_bias": False, "name": name + part, "trainable": trainable, **settings}
            if "kernel_initializer" not in settings:
                seed = int(generator(self._seed, name + part).integers(2**31))
                settings["kernel_initializer"] = keras.initializers.HeNormal(seed=seed)
            if is_map:
                return layers.Conv2D(units, size, padding="same", **settings)(x)
            return layers.Dense(units, **settings)(x)

        x = tensor
        for part, size in (("down", 1), ("middle", 3)) if is_map else (("down", 1),):
            x = mixed(x, part, narrow, size)
            x = layers.ReLU(name=f"{name}{part}_relu")(
                self.norm(stage, number, name=f"{name}{part}_norm", trainable=trainable)(x)
            )
        return mixed(x, "up", channels, 1, use_bias=True, kernel_initializer="zeros")

    def norm(self, stage: int, number: int, **settings: Any) -> keras.layers.BatchNormalization:
        """Returns batch norm for a module."""
        del stage, number
        return keras.layers.BatchNormalization(momentum=_MOMENTUM, **settings)


class AllModules(ModuleInsertion):
    """Puts all modules beside the stages, of which the gates of a population let some through.

    Args:
        config: The settings.
        seed: Seed of the kernels.
        population: Holds the gates.
        frozen: The modules that earlier tasks use, as `(stage, number)`.
    """

    def __init__(self, config: PathNetConfig, seed: int, population: Population, frozen: set[tuple[int, int]]):
        super().__init__(config, seed)
        self._population = population
        self._frozen = frozen

    def norm(self, stage: int, number: int, **settings: Any) -> keras.layers.BatchNormalization:
        # The statistics of a batch are those of all devices.
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        place = (stage, number)
        return ModuleNorm(self._population, place, momentum=_MOMENTUM, synchronized=several, **settings)

    def inserted(self, tensor: keras.KerasTensor, number: int) -> keras.KerasTensor:
        modules = [
            self.module(tensor, number, each, trainable=(number, each) not in self._frozen)
            for each in range(self._config.pathnet_modules)
        ]
        return PathSum(self._population, number, name=f"{_STAGE}_{number + 1}_path")([tensor, *modules])


class OnePath(ModuleInsertion):
    """Puts the modules of one path beside the stages, of Keras' own layers.

    Args:
        config: The settings.
        genes: The modules of the path, `[stages, active]`.
    """

    def __init__(self, config: PathNetConfig, genes: np.ndarray):
        super().__init__(config, seed=0)
        self._genes = genes

    def inserted(self, tensor: keras.KerasTensor, number: int) -> keras.KerasTensor:
        modules = [self.module(tensor, number, each) for each in np.unique(self._genes[number]).tolist()]
        return keras.layers.Add(name=f"{_STAGE}_{number + 1}_path")([tensor, *modules])


class CountedStages(StageInsertion):
    """Puts nothing in; its `boundaries` tell how many stages there are."""

    def inserted(self, tensor: keras.KerasTensor, number: int) -> keras.KerasTensor:
        del number
        return tensor


@METHODS.register("pathnet")
class PathNet(Method):
    """Evolves a path through modules beside the frozen base, and freezes the modules on it."""

    Config = PathNetConfig
    config: PathNetConfig
    makes_pack = False
    sequential = True
    extended_model = SearchingModel

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        check_stages(backbone.model, "PathNet", "modules")
        config, stages = self.config, CountedStages()
        counted, _ = copy_layers(backbone.model, _plain, stages)
        stages.finish(counted.output)
        population = Population(
            seed,
            config.pathnet_population,
            len(stages.boundaries),
            config.pathnet_modules,
            config.pathnet_active,
            config.pathnet_steps,
            name=POPULATION_NAME,
        )
        population.build(())
        frozen = {
            (stage, number)
            for task in self.memory.tasks
            for stage, row in enumerate(self.memory.of(task)[_GENES].tolist())
            for number in row
        }
        model = _with(backbone.model, AllModules(config, seed, population, frozen), population)
        variables = named_variables(model)
        for path, array in self.memory.shared.items():
            if path not in variables or tuple(variables[path].shape) != array.shape:
                raise ValueError(
                    f"What is remembered does not fit the settings: there is no {path!r} of shape {array.shape}. Keep "
                    "--pathnet_modules and --pathnet_reduction as for the first task."
                )
            variables[path].assign(array)
        return model

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        del model, backbone
        return no_term  # Its steps tell the population their loss.

    def phases(self, epochs: int) -> tuple[int, ...]:
        if epochs < 2:
            raise ValueError(
                f"PathNet needs at least 2 epochs, to find a path and to train it. Received: epochs={epochs}."
            )
        search = min(max(1, round(epochs * self.config.pathnet_search)), epochs - 1)
        return search, epochs - search

    def begin_phase(self, model: keras.Model, phase: int) -> keras.Model:
        population = population_of(model)
        population.searches.assign(float(phase == 0))
        if phase == 1:
            population.open(population.best())
        return model

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        return [Tournaments(population_of(model))]

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        return "adapter" if path.startswith(f"{_STAGE}_") else super().variable_group(path, layer)

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del backbone, images
        population, arrays = population_of(model), own_arrays(model)
        genes = population.read("genes")[population.best()].astype(np.uint8)
        used = {path: array for path, array in arrays.items() if path.startswith(_names(genes))}
        learning = {f"{task}/{name}": population.read(name) for name in ("genes", "fitness")}
        return self.memory.with_task(
            task,
            {**split_off_head(arrays)[0], _GENES: genes},
            shared={**self.memory.shared, **used},
            learning={**self.memory.learning, **learning},
            head=read_spec(model),
        )

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        own = dict(self.memory.of(task))
        genes = own.pop(_GENES)
        used = {path: array for path, array in self.memory.shared.items() if path.startswith(_names(genes))}
        # The genes are no array of the network.
        plain = type(self)(self.config, self.memory.with_changed({task: own}))
        return plain.recalled(backbone, task, used, lambda network: _with(network, OnePath(self.config, genes)))


def _plain(layer: keras.Layer) -> tuple[type[keras.Layer], dict[str, Any]]:
    return type(layer), {"trainable": False}


def _with(network: keras.Model, insertion: ModuleInsertion, population: Population | None = None) -> keras.Model:
    """Returns the network over its own variables, with what is put in, from images to features."""
    model, copies = copy_layers(network, _plain, insertion)
    for copy, layer in copies:
        share_variables(copy, layer)
    features = insertion.finish(model.output)
    return keras.Model(model.input, population(features) if population else features, name=model.name)


def population_of(model: keras.Model) -> Population:
    """Returns the population of a model of PathNet."""
    return model.get_layer(POPULATION_NAME)


def module_name(stage: int, number: int) -> str:
    """Returns what the names of a module's layers begin with; both are counted from 0."""
    return f"{_STAGE}_{stage + 1}_module_{number + 1}"


def _names(genes: np.ndarray) -> tuple[str, ...]:
    """Returns what the paths of the variables of a path begin with."""
    return tuple(f"{module_name(stage, number)}_" for stage, row in enumerate(genes.tolist()) for number in row)
