"""From images to the logits of any task with one kind of head, with tensors in the place of all variables."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.backbones.endpoints import endpoint_tensors
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems.heads.dense import head_logits
from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, network_for
from piggyback_tf.problems.heads.start import HeadStart
from piggyback_tf.surgery import features_with


class HeadNetwork:
    """A base and a kind of head as one function of images, the base's weights and the head's variables.

    Banks and exports trace it once for all tasks whose heads have one spec; that of dense heads serves any number of
    classes.

    Args:
        backbone: The base; its variables are not changed.
        spec: The head.

    Raises:
        ValueError: If the base cannot take images of the head's size, or has no feature maps for it.
    """

    def __init__(self, backbone: Backbone, spec: HeadSpec):
        network, endpoints = network_for(backbone, spec)
        self.spec = spec
        self.image_shape = spec.image_shape or (backbone.image_size, backbone.image_size)
        variables = named_variables(network.model)
        # Without models within it, a network may list its layers in another order.
        self._paths = list(named_variables(backbone.model))
        self._variables = [variables[path] for path in self._paths]
        self._network, self._head, self._parts, self._head_variables = network.model, None, None, {}
        if spec.is_dense:
            return
        tensors = endpoint_tensors(network.model, endpoints)
        self._network = keras.Model(network.model.input, tensors)
        inputs = [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in tensors]
        self._head = keras.Model(inputs, HEADS[spec.kind].build(spec, inputs, HeadStart()))
        if HEADS[spec.kind].parts:
            container = self._head.get_layer(HEAD_NAME)
            outputs = [container.get_layer(name).output for name in HEADS[spec.kind].parts]
            self._parts = keras.Model(container.inputs, outputs)
        self._head_variables = {
            path.removeprefix(f"{HEAD_NAME}/"): variable for path, variable in named_variables(self._head).items()
        }

    @property
    def head(self) -> keras.Model | None:
        """The head as a network of its own, whose variables' paths begin with `HEAD_NAME`; None of a dense head."""
        return self._head

    @property
    def used_paths(self) -> frozenset[str]:
        """The paths of the base's variables that answers depend on: not those of layers behind the last endpoint."""
        used = {id(variable) for variable in self._network.variables}
        return frozenset(
            path for path, variable in zip(self._paths, self._variables, strict=True) if id(variable) in used
        )

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shape of every variable of the head by its name; None of a dense head, whose shapes are the task's."""
        if self._head is None:
            return None
        return {name: tuple(variable.shape) for name, variable in self._head_variables.items()}

    def logits(self, weights: Sequence[tf.Tensor], head: Mapping[str, tf.Tensor], images: tf.Tensor) -> tf.Tensor:
        """Returns what a task answers: logits, float32 `[B, C]`, or `[B, H, W, C]` of a head for pixels.

        Args:
            weights: The value of every variable of the base, in the order of `named_variables`.
            head: The variables of the head by name.
            images: float32 `[B, H, W, 3]` in [0, 255].
        """
        found = features_with(self._network, zip(self._variables, weights, strict=True), images)
        if self._head is None:
            return head_logits(found, head["kernel"], head["bias"])
        return features_with(self._head, self._values(head), found)

    def outputs(
        self, weights: Sequence[tf.Tensor], head: Mapping[str, tf.Tensor], images: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns what devices are told, by name: `"logits"`, or what a head of several parts answers; see `Head`.

        Numbers of different kinds in one tensor would have one scale in integers.

        Args:
            weights: As of `logits`.
            head: As of `logits`.
            images: As of `logits`.
        """
        answers = HEADS[self.spec.kind].answers
        if answers is None:
            return {"logits": self.logits(weights, head, images)}
        return answers(self.parts(weights, head, images), self.spec)

    def parts(self, weights: Sequence[tf.Tensor], head: Mapping[str, tf.Tensor], images: tf.Tensor) -> list[tf.Tensor]:
        """Returns the outputs of the layers that make the logits of a head of several parts, one for each.

        Args:
            weights: As of `logits`.
            head: As of `logits`.
            images: As of `logits`.
        """
        assert self._parts is not None, "the head is of several parts"
        found = features_with(self._network, zip(self._variables, weights, strict=True), images)
        return features_with(self._parts, self._values(head), found)

    def _values(self, head: Mapping[str, tf.Tensor]) -> list[tuple[keras.Variable, tf.Tensor]]:
        return [(variable, head[name]) for name, variable in self._head_variables.items()]
