"""The weights of a base that a task can change, and what conversion makes of them."""

import dataclasses
import math
from collections.abc import Collection, Mapping

import keras
import numpy as np

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.materialise import task_weight
from piggyback_tf.packs.parts import MIXED, SCALE, changed_weights, composed_kernel, part_name
from piggyback_tf.problems import HEAD_NAME, HeadNetwork, is_head

from ..shared.errors import ExportError
from ..shared.task_weights import TaskWeights
from .kinds import GraphKind, dense_kind

# Of a dense head.
HEAD_KERNEL, HEAD_BIAS = f"{HEAD_NAME}/kernel", f"{HEAD_NAME}/bias"
Weights = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that can be masked.

    Attributes:
        path: Its canonical path.
        shape: Its shape.
        outputs: The dimensions that number its output channels.
        bias: The path of its layer's bias; None if there is none.
    """

    path: str
    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    bias: str | None

    @property
    def channels(self) -> int:
        """How many output channels it has."""
        return math.prod(self.shape[axis] for axis in self.outputs)

    def channel_view(self, factors: np.ndarray) -> np.ndarray:
        """Returns numbers, one for each output channel, in a shape that multiplies the kernel."""
        return factors.reshape([side if axis in self.outputs else 1 for axis, side in enumerate(self.shape)])


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm layer, which in inference is `x * factor + offset`.

    Attributes:
        path: The layer's canonical path.
        epsilon: What is added to the variance.
        names: The names of its variables: `moving_mean`, `moving_variance`, perhaps `gamma` and `beta`.
    """

    path: str
    epsilon: float
    names: frozenset[str]

    def factor(self, weights: Weights) -> np.ndarray:
        """Returns the factor of each channel, float32."""
        variance = weights[f"{self.path}/moving_variance"].astype(np.float64)
        gamma = weights[f"{self.path}/gamma"] if "gamma" in self.names else 1.0
        return (gamma / np.sqrt(variance + self.epsilon)).astype(np.float32)

    def offset(self, weights: Weights) -> np.ndarray:
        """Returns the offset of each channel, float32."""
        mean = weights[f"{self.path}/moving_mean"].astype(np.float64)
        beta = weights[f"{self.path}/beta"] if "beta" in self.names else 0.0
        return (beta - mean * self.factor(weights)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The kernels, batch norm layers and weights of a base, and of a head if there is one in the graph.

    Attributes:
        kind: What the graph is for.
        kernels: Kernels by path.
        norms: Batch norm by the layer's path.
        weights: All weights by path, float32 or of their own dtype.
        used: The paths of those of the base that the graph computes with.
        vectors: The paths of the vectors of the base, not of batch norm, that tasks can replace in it.
        rescaled: The paths of the kernels whose quantised filters can have scales of a task's own without batch norm.
        places: At how many places of an image the head says something; 1 if it is of the image as a whole.
    """

    kind: GraphKind
    kernels: dict[str, Kernel]
    norms: dict[str, Norm]
    weights: dict[str, np.ndarray]
    used: frozenset[str]
    vectors: tuple[str, ...] = ()
    rescaled: frozenset[str] = frozenset()
    places: int = 1

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        kind: GraphKind | None = None,
        vectors: Collection[str] = (),
        rescaled: Collection[str] = (),
    ) -> "Network":
        """Returns what a graph computes with: all of a base for a dense head, else what leads to the head.

        Of `vectors` and `rescaled` those are taken that the graph computes with. The head's variables are zeros, with
        room for the classes of the kind; if that is None, there is no head.

        Raises:
            ValueError: If a kernel or a variable of batch norm is not float32, or a layer computes with more than its
                kernel; if the base cannot take the head.
        """
        kind = dense_kind(backbone, 0) if kind is None else kind
        found = TaskWeights.of(backbone)
        layers, norm_layers = dict(found.kernels), dict(found.norms)
        weights = {path: variable.numpy() for path, variable in named_variables(backbone.model).items()}
        used, places = frozenset(weights), 1
        if kind.head.is_dense:
            shapes = {"kernel": (backbone.feature_dim, kind.room), "bias": (kind.room,)} if kind.room else {}
        else:
            graph = HeadNetwork(backbone, kind.head)
            assert graph.head is not None and graph.head_shapes is not None, "heads that are not dense are networks"
            own, shapes = TaskWeights.in_model(graph.head, f"the head {kind.head.kind!r}"), graph.head_shapes
            used, places = frozenset(graph.used_paths), math.prod(graph.head.output_shape[1:-1])
            layers = {path: layer for path, layer in layers.items() if path in used} | own.kernels
            inner = {path.rpartition("/")[0] for path in used}
            norm_layers = {path: layer for path, layer in norm_layers.items() if path in inner} | own.norms
        weights |= {f"{HEAD_NAME}/{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
        kernels = {path: _kernel(path, layer, weights) for path, layer in layers.items()}
        norms = {}
        for path, layer in norm_layers.items():
            names = frozenset(key.rpartition("/")[2] for key in weights if key.rpartition("/")[0] == path)
            # Without these a layer of somebody's own computes something else, and is a part of the frozen network.
            if {"moving_mean", "moving_variance"} <= names:
                norms[path] = Norm(path, layer.epsilon, names)
        replaced = tuple(path for path in weights if path in used and path in vectors)
        return cls(kind, kernels, norms, weights, used, replaced, used & frozenset(rescaled), places)

    @property
    def head(self) -> dict[str, np.ndarray]:
        """The variables of the graph's head by the names that packs give them; none if it has no head."""
        return {path.removeprefix(f"{HEAD_NAME}/"): self.weights[path] for path in self.weights if is_head(path)}

    def marked(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Returns random weights for all that a task can change.

        A constant that conversion makes of them can be told from every other; no two are equal, so that none is shared
        with another layer, and none is so simple that conversion leaves an operator out.
        """
        rng = np.random.default_rng(seed)
        marks = {path: rng.standard_normal(kernel.shape) for path, kernel in self.kernels.items()}
        for norm in self.norms.values():
            for name in sorted(norm.names):
                path = f"{norm.path}/{name}"
                positive = name in ("gamma", "moving_variance")
                shape = self.weights[path].shape
                marks[path] = rng.uniform(0.5, 1.5, shape) if positive else rng.standard_normal(shape)
        for path, value in self.weights.items():
            if (is_head(path) or path in self.vectors) and path not in marks:
                marks[path] = rng.standard_normal(value.shape)
        return {path: value.astype(np.float32) for path, value in marks.items()}


def own_weights(network: Network, pack: TaskPack, *, masked: bool = True) -> dict[str, np.ndarray]:
    """Returns all weights of a task's network by path, float32.

    Args:
        network: The base.
        pack: The task.
        masked: Whether kernels are masked. Those that are more than masked and scaled are what they are in any case.
    """
    weights, roles = {**network.weights, **pack.norm}, changed_weights(pack.parts)
    for path in pack.arrays.changed:
        if masked or path not in pack.masks or MIXED & roles.get(path, frozenset()):
            weights[path] = task_weight(pack.arrays, path, network.weights[path])
        elif path in roles:
            weights[path] = composed_kernel(network.weights[path], pack.parts, path)
    for name, room in network.head.items():
        # Only what has a place for each class is smaller than its room.
        value, padded = pack.head[name], np.zeros_like(room)
        padded[tuple(map(slice, value.shape))] = value
        weights[f"{HEAD_NAME}/{name}"] = padded
    return weights


def channel_scales(network: Network, pack: TaskPack, path: str) -> np.ndarray | None:
    """Returns by what a task multiplies the output channels of a kernel, float32 `[channels]`; None if by nothing.

    Raises:
        ExportError: If it multiplies others.
    """
    scale = pack.parts.get(part_name(SCALE, path))
    if scale is None:
        return None
    kernel = network.kernels[path]
    if any(side > 1 and axis not in kernel.outputs for axis, side in enumerate(scale.shape)):
        raise ExportError(
            f"Task {pack.task!r} scales {path!r} by other channels than those of its output, and the filters of a "
            "device are changed by these; use --design=plain."
        )
    sides = [side if axis in kernel.outputs else 1 for axis, side in enumerate(kernel.shape)]
    return np.broadcast_to(scale, sides).reshape(-1)


def _kernel(path: str, layer: keras.Layer, weights: Weights) -> Kernel:
    """Returns the kernel of a layer."""
    owner, _, name = path.rpartition("/")
    last = len(weights[path].shape) - 1
    outputs: tuple[int, ...]
    if isinstance(layer, keras.layers.DepthwiseConv2D) or name == "depthwise_kernel":
        outputs = (last - 1, last)
    else:
        outputs = (last - 1,) if isinstance(layer, keras.layers.Conv2DTranspose) else (last,)
    # The bias of a separable convolution comes after its second kernel.
    bias = f"{owner}/bias" if f"{owner}/bias" in weights and name != "depthwise_kernel" else None
    return Kernel(path, tuple(weights[path].shape), outputs, bias)
