"""What a method is: how a task is learned on top of a backbone."""

import abc
import dataclasses
from typing import Any, ClassVar

import keras

from piggyback_tf.backbones import Backbone, is_batch_norm, named_layers, named_variables
from piggyback_tf.heads import HEAD_NAME, add_classification_head
from piggyback_tf.masking import MaskedLayer
from piggyback_tf.registry import Registry

METHODS: Registry[type["Method"]] = Registry("method")
VARIABLE_GROUPS = ("mask", "head", "norm", "weights")


def option(default: Any, help: str) -> Any:
    """A field of a config dataclass with its help text, from which the command-line flag is made."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Settings that every method has."""

    head_dropout: float = option(0.0, "Dropout rate between the features and the head.")


class Method(abc.ABC):
    """One way of learning a task. A new method is a file with a subclass decorated by `METHODS.register(NAME)`.

    A method turns a backbone into a Keras model to be trained, and says of each trainable variable which group it is
    in, and so which optimiser it gets. All else (data, schedule, resume, evaluation) is the same for all methods.

    A method never changes the backbone it is given. One that changes weights builds its model on a copy
    (`copy_of_base`) and says so by `keeps_base = False`; its result is a Keras model instead of a task pack. What a
    method has to carry from one task to the next, if it learns tasks one after another, goes through its own
    constructor: a `Method` object belongs to one task and has no state that a later call changes.

    Args:
        config: The method's settings, an instance of its `Config`.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    keeps_base: ClassVar[bool] = True

    def __init__(self, config: MethodConfig | None = None):
        self.config = config or self.Config()

    @abc.abstractmethod
    def features(self, backbone: Backbone, seed: int) -> keras.Model:
        """Returns the model from images `[B, S, S, 3]` to features `[B, F]` whose trainable variables are learned.

        Args:
            backbone: The network to learn on; not changed.
            seed: Seed of whatever starts at random.
        """

    def build(self, backbone: Backbone, num_classes: int, seed: int = 0) -> keras.Model:
        """Returns the task's model, from images to logits `[B, num_classes]`.

        Args:
            backbone: The network to learn on; not changed.
            num_classes: Number of classes of the task.
            seed: Seed of the initial values of everything that is new.
        """
        return add_classification_head(
            self.features(backbone, seed), num_classes, dropout=self.config.head_dropout, seed=seed
        )

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        """Returns what the method does between the steps of a training; nothing, for most."""
        del model
        return []

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        """Returns the group, one of `VARIABLE_GROUPS`, of a trainable variable.

        Args:
            path: Canonical path of the variable.
            layer: The layer that owns it.
        """
        if path.startswith(f"{HEAD_NAME}/"):
            return "head"
        if isinstance(layer, MaskedLayer):
            return "mask"
        return "norm" if is_batch_norm(layer) else "weights"

    def groups(self, model: keras.Model) -> dict[str, list[keras.Variable]]:
        """Returns the model's trainable variables by group; groups without variables are left out."""
        layers = dict(named_layers(model))
        trainable = {id(variable) for variable in model.trainable_variables}
        groups: dict[str, list[keras.Variable]] = {}
        for path, variable in named_variables(model).items():
            if id(variable) in trainable:
                layer = next(layers[prefix] for prefix in _prefixes(path) if prefix in layers)
                groups.setdefault(self.variable_group(path, layer), []).append(variable)
        return groups


def copy_of_base(model: keras.Model, *, train_norm: bool, norm_momentum: float) -> keras.Model:
    """Returns a trainable copy of a network with the same weights and nothing shared.

    Args:
        model: The network to copy; not changed.
        train_norm: Whether batch norm is trained; otherwise it stays in inference mode.
        norm_momentum: Momentum of the moving statistics if it is trained.
    """

    def copy_layer(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer):
            # An operation such as `a + b`. One that two graphs share would keep both of them alive.
            return type(layer).from_config(layer.get_config())
        settings = {**layer.get_config(), "trainable": True}
        if is_batch_norm(layer):
            settings["trainable"] = train_norm
            if train_norm:
                settings["momentum"] = norm_momentum
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=copy_layer, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
