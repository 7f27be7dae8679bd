"""Keras layers that compute with kernels made of their weights and of something else, such as a mask.

Keras' own `call` stays as it is: the kernel attribute it reads is a property here, which returns the derived kernel.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones.layer_settings import changed_kernel
from piggyback_tf.foreign_text import some

PACKAGE = "piggyback_tf"

# The exact classes whose kernels can be derived, with the names of these; a subclass may compute with its kernel in
# ways of its own.
KERNELS: dict[type[keras.Layer], tuple[str, ...]] = {
    keras.layers.Dense: ("kernel",),
    keras.layers.Conv2D: ("kernel",),
    keras.layers.DepthwiseConv2D: ("kernel",),
    keras.layers.Conv2DTranspose: ("kernel",),
    keras.layers.SeparableConv2D: ("depthwise_kernel", "pointwise_kernel"),
}


def derived_kernel(weight: str) -> property:
    """Returns a property that reads as the derived kernel and is set with the variable that it is derived from."""

    def get(layer: "DerivedKernels") -> tf.Tensor:
        return layer.derive(weight, tf.convert_to_tensor(getattr(layer, f"_{weight}").value))

    def set_(layer: "DerivedKernels", variable: keras.Variable) -> None:
        setattr(layer, f"_{weight}", variable)

    return property(get, set_, doc=f"The `{weight}` that the layer computes with.")


# What it adds to is a Keras layer, which only a type checker is told of: the class itself comes before it.
_Layer: Any = keras.Layer if TYPE_CHECKING else object


class DerivedKernels(_Layer):
    """What layers with derived kernels share; comes before the Keras layer in the bases of a class."""

    # The names of the kernels; set by `derived_layers`.
    kernel_names: ClassVar[tuple[str, ...]]

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the kernel that the layer computes with; `build` of Keras may ask before all variables are there.

        Args:
            weight: Name of the kernel, such as `"kernel"`.
            kernel: Value of the layer's own variable of this name.
        """
        raise NotImplementedError

    def learned_parts(self) -> dict[str, np.ndarray]:
        """Returns what a task pack holds of the layer beside masks, float32, by role and weight; nothing, for most.

        Roles and shapes are those of `packs/parts.py`: `"down/kernel"` is A of a kernel to which `A B` is added.
        """
        return {}

    @property
    def part_variables(self) -> list[keras.Variable]:
        """The variables of which `learned_parts` are made."""
        return []

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # By its dtype policy or its config a layer is quantised, or gets LoRA, from the start.
        check_kernel(self)
        super().build(input_shape)

    def quantized_call(self, *args: Any, **kwargs: Any) -> Any:
        # What Keras calls in the place of `call`, also if the policy was changed since.
        check_kernel(self)
        return super().quantized_call(*args, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        # Keras' Dense and convolutions save `self.kernel`, which is the derived one here, and nothing else.
        for variable in self._own_variables():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        expected, found = {v.name for v in self._own_variables()}, set(store.keys())
        if expected != found:
            raise ValueError(
                f"Layer {self.name!r} expects the variables {sorted(expected)}; the file holds {sorted(found)}."
            )
        for variable in self._own_variables():
            variable.assign(store[variable.name])

    def _own_variables(self) -> list[keras.Variable]:
        return self._trainable_variables + self._non_trainable_variables

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"Layer {self.name!r} ({type(self).__name__}) computes its kernel from several variables; LoRA would add "
            "to one of them."
        )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"Layer {self.name!r} ({type(self).__name__}) computes its kernel from several variables and cannot be "
            "quantised. Bake its kernel into a Keras layer first."
        )


class FrozenKernels(DerivedKernels):
    """Derived kernels over weights that are not trainable, kernel and bias; what is learned is added to them."""

    def add_weight(self, *args: Any, trainable: bool = True, **kwargs: Any) -> keras.Variable:
        # Everything the Keras layer creates belongs to the frozen network.
        return super().add_weight(*args, trainable=False, **kwargs)

    def add_learned_weight(self, name: str, shape: Iterable[int]) -> keras.Variable:
        """Adds a trainable weight that starts at zero, float32 whatever the dtype policy.

        Args:
            name: Its name within the layer.
            shape: Its shape.
        """
        # Thresholds at 5e-3 and steps of 1e-4 do not survive the rounding of half precision.
        return super().add_weight(
            shape=tuple(shape), initializer="zeros", dtype="float32", autocast=False, trainable=True, name=name
        )


class OwnBias(FrozenKernels):
    """Computes with a frozen kernel and a trained bias, where there is one."""

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        if name == "bias":
            # Not made frozen and thawed later: TensorFlow's tapes do not watch what was not trainable when it was made.
            return keras.Layer.add_weight(self, *args, name=name, **kwargs)
        return super().add_weight(*args, name=name, **kwargs)

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        return kernel


def derived_layers(
    mixin: type[DerivedKernels], prefix: str, kinds: Iterable[type[keras.Layer]] = tuple(KERNELS)
) -> dict[type[keras.Layer], type[DerivedKernels]]:
    """Returns a class with derived kernels for each of some kinds of Keras layers, registered with Keras.

    Args:
        mixin: What derives the kernels.
        prefix: What the names of the classes start with: `"Owned"` gives `OwnedConv2D`.
        kinds: Keys of `KERNELS`.
    """

    def make(kind: type[keras.Layer]) -> type[DerivedKernels]:
        members: dict[str, Any] = {weight: derived_kernel(weight) for weight in KERNELS[kind]}
        members |= {
            "kernel_names": KERNELS[kind],
            "__module__": mixin.__module__,
            "__doc__": f"`keras.layers.{kind.__name__}`. {mixin.__doc__}",
        }
        return keras.saving.register_keras_serializable(package=PACKAGE)(
            type(f"{prefix}{kind.__name__}", (mixin, kind), members)
        )

    return {kind: make(kind) for kind in kinds}


def foreign_kernels(layers: dict[str, keras.Layer], kinds: Iterable[type[keras.Layer]]) -> str:
    """Returns the paths and kinds of the layers that have kernels and are of none of some kinds, or `""`.

    Args:
        layers: Layers by canonical path.
        kinds: Exact classes.
    """
    kinds = set(kinds)
    foreign = [
        f"{path} ({type(layer).__name__})"
        for path, layer in layers.items()
        if type(layer) not in kinds and any(len(weight.shape) > 1 for weight in layer.weights)
    ]
    return some(foreign, 10)


def check_kernel(layer: keras.Layer) -> None:
    """Checks that a layer computes with its kernels as they are, so that a kernel can be put in their place.

    A quantised layer computes with the variable behind `kernel`, past whatever is made of it, and with scales that
    belong to the whole kernel; what LoRA learned is added to it.

    Raises:
        ValueError: If it does not; says what to do.
    """
    if changed := changed_kernel(layer):
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) {changed}: Keras computes with its stored kernel and more, "
            "past any mask or other change of the kernel. Use the network as it was in floating point, without "
            "`quantize` or `enable_lora`; an export is quantised afterwards, by --quantize. Or leave the layer out, "
            "where patterns choose layers."
        )


def generator(seed: int, path: str) -> np.random.Generator:
    """Returns random numbers that depend on a seed and on the path of the weight that they are for."""
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
