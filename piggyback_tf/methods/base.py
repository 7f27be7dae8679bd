"""What a method is: how a task is learned on top of a backbone."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from piggyback_tf.backbones import (
    Backbone,
    is_batch_norm,
    named_layers,
    named_variables,
)
from piggyback_tf.backbones.endpoints import Endpoint
from piggyback_tf.data import TaskData
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.masking import MaskedLayer, MaskStart
from piggyback_tf.methods.parts.added_loss import AddedLoss, ExtendedModel
from piggyback_tf.methods.parts.memory import Arrays, Memory
from piggyback_tf.problems import HeadStart, add_head, is_head, network_for, read_spec
from piggyback_tf.registry import Registry
from piggyback_tf.settings.methods import CONFIGS, MethodConfig, NormConfig
from piggyback_tf.surgery import TrainedNorm, assign_arrays, bake_kernels, copy_of_base, own_arrays
from piggyback_tf.targets import TARGETS


class MethodRegistry(Registry[type["Method"]]):
    """Methods by name, each with the settings that are registered under the same name."""

    def register(self, name: str) -> Callable[[type["Method"]], type["Method"]]:
        """Returns a decorator that files a method under `name`.

        Raises:
            ValueError: If `name` is taken, or other settings than the method's `Config` are registered under it.
        """
        file = super().register(name)

        def decorator(method: type["Method"]) -> type["Method"]:
            if name not in CONFIGS or CONFIGS[name] is not method.Config:
                raise ValueError(
                    f"The `Config` of method {name!r}, {method.Config.__name__}, must be registered under the same "
                    f"name: decorate it with CONFIGS.register({name!r}), in piggyback_tf/settings/methods."
                )
            return file(method)

        return decorator


METHODS = MethodRegistry("method")
# Of `start_source`: the best of the tasks learned before; followed by `:`, the best of some packs.
AUTO = "auto"


class Method(abc.ABC):
    """One way of learning tasks. A new method is a file with a subclass decorated by `METHODS.register(NAME)`,
    and one with its settings, `piggyback_tf/settings/methods/NAME.py`.

    A method turns a backbone into a Keras model to be trained, and says of each trainable variable which group it is
    in, and so which optimiser it gets. All else (data, schedule, resume, evaluation) is the same for all methods.

    What it needs besides it says by hooks, which do nothing for most. They are called in this order:

    1. `check_room`, before the first task of a sequence;
    2. `training_data`: which images are learned from;
    3. `start_source` and `starting_from`: whether the task starts from the pack of another;
    4. `build`, which asks for `feature_model` and `added_loss`: what a step adds to the loss of the labels, such as
       what other targets ask for; with the latter it makes an `extended_model`, which may have a step of its own;
    5. `phases`, `begin_training`, and for each phase `begin_phase`, `groups` and `callbacks`;
    6. `remember` and `recall`, of a method that makes no packs.

    A method never changes the backbone it is given. What it adds to it for a task is a task pack, if `makes_pack`;
    otherwise a `Memory`, which `remember` extends by the trained task and from which `recall` makes the network of any
    learned task. A method that learns on what it remembers of the tasks before (`sequential`) gets that by its
    constructor: a `Method` object belongs to one task and has no state that a later call changes.

    Args:
        config: The method's settings, an instance of its `Config`.
        memory: What was kept of the tasks learned before; empty if None.
        heads: Of a method that learns all tasks `at_once`, the number of classes of each; else None.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    config: MethodConfig
    makes_pack: ClassVar[bool] = True
    # Whether networks that `recall` makes have Keras' own layers alone, so that they open without this package.
    plain_networks: ClassVar[bool] = True
    # Whether what is learned depends on the tasks before, and so on their order.
    sequential: bool = False
    # Whether no later task changes the answers of an earlier one, not by a bit.
    keeps_old_tasks: ClassVar[bool] = True
    # Whether the memory holds a network in place of the base, which is then no longer needed.
    replaces_base: ClassVar[bool] = False
    # Whether a training can make the features the same for all images. They are then looked at after each epoch, beside
    # those of the base, as which the network starts.
    watches_features: bool = False
    # What `build` makes of a model with an `added_loss`.
    extended_model: ClassVar[type[ExtendedModel]] = ExtendedModel
    # How the head starts where the config leaves it to the method, one of `HEAD_INITS`.
    own_head_init: ClassVar[str] = "zeros"

    def __init__(
        self,
        config: MethodConfig | None = None,
        memory: Memory | None = None,
        heads: Mapping[str, int] | None = None,
    ):
        self.config = config or self.Config()
        self.memory = memory or Memory()
        self.heads = dict(heads or {})

    @property
    def name(self) -> str:
        """What users call it: its name in `METHODS`, or that of its class if it is not registered."""
        return next((name for name in METHODS if METHODS[name] is type(self)), type(self).__name__)

    @abc.abstractmethod
    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        """Returns the model from images `[B, S, S, 3]` to features `[B, F]` whose trainable variables are learned.

        Args:
            backbone: The network to learn on; not changed.
            seed: Seed of whatever starts at random.
        """

    def build(self, backbone: Backbone, head: HeadSpec | int, seed: int = 0) -> keras.Model:
        """Returns the task's model, from images to the logits of its head.

        Args:
            backbone: The network to learn on; not changed.
            head: Which head the task has; a number of classes stands for a dense one.
            seed: Seed of the initial values of everything that is new.

        Raises:
            ValueError: If the method has no such heads, or the network nothing to build one on.
        """
        spec = HeadSpec.of(head)
        if not spec.is_dense and not any(TARGETS[name].own_size for name in self.Config.problems):
            raise ValueError(f"{type(self).__name__} learns the classes of images, with a dense head on the features.")
        network, endpoints = network_for(backbone, spec)
        features = self.feature_model(network, seed)
        model = add_head(features, spec, self.head_start(seed), self.head_endpoints(network, endpoints))
        if self.replaces_base:
            _check_whole(model, features, spec)
        term = self.added_loss(model, backbone)
        if term is None:
            return model
        return self.extended_model(inputs=model.input, outputs=model.output, name=model.name, added_loss=term)

    def head_endpoints(self, network: Backbone, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Returns what a head for pixels builds on in `feature_model`: the endpoints of the network, for most.

        Args:
            network: The backbone for the images of the head.
            endpoints: Its endpoints, the finest first; none for a dense head.
        """
        del network
        return endpoints

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        """Returns what a training step adds to the loss of the labels; None, nothing, for most.

        It is a price for weights, or what other targets ask for: it gets the images as they are augmented, and what
        the model answered to them, and may compare that with anything it knows of them. It may also ask the model
        about other images.

        Args:
            model: The task's model, from images to logits.
            backbone: The network that it was built on; not changed.
        """
        del model, backbone
        return None

    def training_data(self, tasks: Mapping[str, TaskData]) -> TaskData:
        """Returns what a training learns from: the images of the task that is learned, for most.

        Here other images come in, such as those of other tasks, with the classes that the model has.

        Args:
            tasks: The data of the tasks that are learned in this training, in order: one, or all, of a method that
                learns them `at_once`.
        """
        (data,) = tasks.values()
        return data

    def head_start(self, seed: int) -> HeadStart:
        """Returns how the head of a task starts."""
        init = self.own_head_init if self.config.head_init == "auto" else self.config.head_init
        return HeadStart(self.config.head_dropout, init, seed)

    @property
    def start_source(self) -> str:
        """Which pack the task starts from, `PACK`, `auto` or `auto:PACKS`; empty, none, for most."""
        return ""

    def starting_from(self, start: MaskStart) -> "Method":
        """Returns the same method, with what its task starts from; of one with a `start_source`.

        Args:
            start: What a pack holds, or nothing, with a record of where it comes from.

        Raises:
            ValueError: If the method cannot start from it.
        """
        raise ValueError(f"{type(self).__name__} starts from no pack. Received: {dict(start.origin)}.")

    @property
    def provenance(self) -> dict[str, Any]:
        """What is recorded of where a task comes from, as JSON values by name; nothing, for most."""
        return {}

    def check_room(self, backbone: Backbone, tasks: int) -> None:
        """Refuses a sequence with more tasks than a network has room for, before its first training.

        Args:
            backbone: The network to learn on.
            tasks: How many tasks are to be learned in turn.

        Raises:
            ValueError: If they are too many.
        """
        del backbone, tasks

    def phases(self, epochs: int) -> tuple[int, ...]:
        """Returns how the epochs of a training are divided into phases; one phase, for most.

        Each phase has optimisers and schedules of its own. The best epoch is one of the last phase.

        Args:
            epochs: Epochs of the whole training.

        Raises:
            ValueError: If there are too few.
        """
        return (epochs,)

    def begin_training(self, model: keras.Model) -> None:
        """Changes a model before its training; nothing, for most.

        A training that goes on calls this, too, and puts the values back afterwards.

        Args:
            model: What `build` returned.
        """
        del model

    def begin_phase(self, model: keras.Model, phase: int) -> keras.Model:
        """Returns the network that a phase trains: for most the same, perhaps with other parts of it trainable.

        It may be a new one, which takes over what it keeps of the values of the network before, and has no
        `added_loss` unless it is an `ExtendedModel` itself. A training that goes on calls this for all phases up to its
        own, and puts the values back afterwards: which variables there are must not depend on values.

        Args:
            model: What `build` returned, or this for the phase before.
            phase: Number of the phase, from 0.
        """
        del phase
        return model

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        """Returns what the method does between the steps of a training; nothing, for most."""
        del model
        return []

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        """Returns the memory with a trained task: here, every variable that is not the base's belongs to it alone.

        Args:
            model: What `build` returned, trained.
            backbone: The network it was built on.
            task: The task's name.
            images: Batches of training images `[B, S, S, 3]`, prepared as for evaluation, and labels `[B]`.
        """
        del backbone, images
        return self.memory.with_task(task, own_arrays(model), head=read_spec(model))

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        """Returns the network of a learned task, from images to the logits of its head.

        Where Keras' own layers compute the same as those that were trained, they take their place.

        Args:
            backbone: The network the task was learned on; not changed.
            task: The task's name.

        Raises:
            ValueError: If the task was not learned.
        """
        earlier = type(self)(self.config, self.memory.before(task))
        model = earlier.build(backbone, self.memory.head(task))
        assign_arrays(model, self.memory.of(task))
        return bake_kernels(model)

    def recalled(
        self,
        backbone: Backbone,
        task: str,
        arrays: Arrays,
        copied: Callable[[keras.Model], keras.Model] = copy_of_base,
    ) -> keras.Model:
        """Returns the network of a learned task, for a `recall` that needs no `build`.

        Args:
            backbone: The network the task was learned on; not changed.
            task: The task's name.
            arrays: Values of the network's variables by canonical path; what belongs to the task alone comes on top.
            copied: Returns a copy of the network for the task's images, whose layers become a part of the result.

        Raises:
            ValueError: If the task was not learned.
        """
        own, spec = self.memory.of(task), self.memory.head(task)
        network, endpoints = network_for(backbone, spec)
        model = add_head(copied(network.model), spec, None, self.head_endpoints(network, endpoints))
        assign_arrays(model, {**arrays, **own})
        return model

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        """Returns the group, one of `VARIABLE_GROUPS`, of a trainable variable.

        Args:
            path: Canonical path of the variable.
            layer: The layer that owns it.
        """
        if is_head(path):
            return "head"
        if isinstance(layer, MaskedLayer):
            # Numbers that scale and shift kernels, as batch norm does features.
            affine = {variable.name for variable in layer.affine_variables.values()}
            return "norm" if path.rpartition("/")[2] in affine else "mask"
        return "norm" if is_batch_norm(layer) else "weights"

    def groups(self, model: keras.Model) -> dict[str, list[keras.Variable]]:
        """Returns the model's trainable variables by group; groups without variables are left out.

        Raises:
            ValueError: If one is in a group that `trains` does not name.
        """
        layers = dict(named_layers(model))
        trainable = {id(variable) for variable in model.trainable_variables}
        groups: dict[str, list[keras.Variable]] = {}
        for path, variable in named_variables(model).items():
            if id(variable) in trainable:
                layer = next(layers[prefix] for prefix in _prefixes(path) if prefix in layers)
                groups.setdefault(self.variable_group(path, layer), []).append(variable)
        if unnamed := [group for group in groups if group not in self.Config.trains]:
            raise ValueError(
                f"{type(self).__name__} trains variables of group {unnamed[0]!r}, and says that it trains "
                f"{', '.join(self.Config.trains)}. In a model of your own, give the head the name 'head'. A method of "
                "your own names the group in `trains`, or its settings would not be recorded."
            )
        return groups


def _check_whole(model: keras.Model, features: keras.Model, spec: HeadSpec) -> None:
    """Refuses a head without a part of the network, of a method whose tasks share the weights of all of it.

    Raises:
        ValueError: With the first weight that the head does without.
    """
    kept = named_variables(model)
    if left_out := [path for path in named_variables(features) if path not in kept]:
        raise ValueError(
            f"The head {spec.kind!r} does without {left_out[0]!r} and what follows it, and this method trains weights "
            "that later tasks need whole. Use a head that takes all of the network (for vgg16 and vgg19 --head=fcn8), "
            "another backbone, or another method, such as piggyback."
        )


def trained_norm(config: NormConfig) -> TrainedNorm:
    """Returns how batch norm is trained, where it is."""
    return TrainedNorm(config.norm_statistics, config.norm_momentum)


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
