"""Layers as a device computes them when their filters are no constants.

XNNPACK, which makes LiteRT fast on CPUs, takes no convolution whose filter is not a constant of the file, but it does
take matrix products of two tensors. So a convolution is a matrix product here: a kernel of one place as it is, a larger
one after the places that it reads were put side by side. A depthwise convolution has no such form that is faster than
LiteRT's own kernel, and stays what it is.

Every filter is kept in the order in which it is multiplied, so that nothing is transposed in a call.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.surgery import KERNELS

Pair = tuple[int, int]

# From this width on, every row of an image is multiplied by itself, which saves two copies of the image.
_WIDE = 28
# Of fewer channels than this, the places that a kernel reads are put side by side by a convolution, and else gathered:
# a gather copies one place at a time. A convolution that copies takes as long as one with `places * channels` filters.
_FEW_CHANNELS, _MOST_COPIED = 16, 160


class Filter:
    """A masked kernel in the order of a device.

    Args:
        path: Its canonical path.
        variable: The variable that stands for it in a `DeviceLayer`.
        axes: The order of the kernel's dimensions, after it was reshaped to `split`.
        split: Its shape, perhaps with a dimension split in two.
        outputs: For each dimension of the device's shape whether its places are output channels.
    """

    def __init__(
        self,
        path: str,
        variable: keras.Variable,
        split: tuple[int, ...],
        axes: tuple[int, ...],
        outputs: tuple[bool, ...],
    ):
        self.path, self.variable = path, variable
        self._split, self._axes, self._outputs = split, axes, outputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape on a device."""
        return tuple(self.variable.shape)

    def arrange(self, kernel: np.ndarray) -> np.ndarray:
        """Returns a kernel, or its mask, in the order of a device."""
        return np.ascontiguousarray(kernel.reshape(self._split).transpose(self._axes)).reshape(self.shape)

    def channel_shape(self) -> list[int]:
        """Returns the shape that lets numbers, one for each output channel, multiply it."""
        return [size if output else 1 for size, output in zip(self.shape, self._outputs, strict=True)]


class Replacement(keras.layers.Layer):
    """A layer in the place of another one, called with whatever arguments that one was called with.

    By itself it returns its input: the layer was made a part of the one before it.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        del training, mask
        return self.compute(inputs)

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns what the layer computes."""
        return inputs

    def compute_output_spec(self, inputs: keras.KerasTensor, **kwargs: Any) -> keras.KerasTensor:
        del kwargs
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class DeviceLayer(Replacement):
    """A layer whose filters a task decides, with what follows it at once.

    Args:
        source: The layer that it stands for, of a kind in `KERNELS`; not changed.
        path: Its canonical path.
        norm: The path of the batch norm that is a part of the filters and of `offset`; None if there is none.
        after: The layer that is applied at the end; None if none.

    Attributes:
        filters: Its filters in the order of the masked weights.
        offset: What is added to the result, `[C]`: bias and batch norm; None if nothing.
    """

    def __init__(self, source: keras.Layer, path: str, norm: str | None, after: keras.Layer | None):
        super().__init__(name=source.name, dtype="float32", trainable=False)
        self._source, self.norm, self._after = source, norm, after
        names = KERNELS[type(source)]
        self.filters = [self._add_filter(f"{path}/{name}", getattr(source, name).shape) for name in names]
        self.bias_path = f"{path}/bias" if source.use_bias else None
        channels = int(np.prod(self.filters[-1].channel_shape()))
        self.offset = self._add(f"{path}/offset", (channels,)) if norm or self.bias_path else None
        self.built = True

    def compute_output_spec(self, inputs: keras.KerasTensor, **kwargs: Any) -> keras.KerasTensor:
        del kwargs
        # What it computes depends on the size of the image, which is not known here within nested models.
        return keras.KerasTensor(self._source.compute_output_shape(inputs.shape), "float32")

    def _finish(self, result: tf.Tensor) -> tf.Tensor:
        """Returns a result with what follows."""
        if self.offset is not None:
            result = result + self.offset
        activation = getattr(self._source, "activation", None)
        if activation is not None and activation is not keras.activations.linear:
            result = activation(result)
        return result if self._after is None else self._after(result)

    def _add(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        return self.add_weight(name=name.replace("/", "."), shape=shape, initializer="zeros")

    def _add_filter(self, path: str, kernel: tuple[int, ...]) -> Filter:
        raise NotImplementedError


class DeviceDense(DeviceLayer):
    """Dense. Filter: `[1, inputs, units]`."""

    def _add_filter(self, path: str, kernel: tuple[int, ...]) -> Filter:
        return Filter(path, self._add(path, (1, *kernel)), kernel, (0, 1), (False, False, True))

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        shape = inputs.shape
        # Of rank 2 it would become an operator that XNNPACK takes with constants only.
        result = self._finish(tf.matmul(tf.reshape(inputs, [1, -1, shape[-1]]), self.filters[0].variable.value))
        return tf.reshape(result, [*shape[:-1], result.shape[-1]])


class DeviceConv2D(DeviceLayer):
    """Conv2D of all kinds. Filter: `[groups, places * inputs / groups, filters / groups]`."""

    def _add_filter(self, path: str, kernel: tuple[int, ...]) -> Filter:
        groups = self._source.groups
        *places, inputs, outputs = kernel
        shape = (groups, int(np.prod(places)) * inputs, outputs // groups)
        split = (*places, inputs, groups, outputs // groups)
        return Filter(path, self._add(path, shape), split, (3, 0, 1, 2, 4), (True, False, True))

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        layer = self._source
        height, width = layer.compute_output_shape(inputs.shape)[1:3]
        single = layer.kernel_size == (1, 1) and layer.groups == 1
        if single and tuple(layer.strides) != (1, 1):
            inputs = inputs[:, :: layer.strides[0], :: layer.strides[1]]
        if single and width >= _WIDE:
            return self._finish(tf.matmul(inputs, self.filters[0].variable.value[None]))
        if single:
            rows = tf.reshape(inputs, [1, height * width, inputs.shape[-1]])
        else:
            rows = _side_by_side(inputs, layer, (height, width), _conv_taps, sum(self.filters[0].shape[2:]))
        return tf.reshape(self._finish(self._multiply(rows)), [1, height, width, -1])

    def _multiply(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the product of `[1, rows, places * inputs]` and the filter."""
        filter_, groups = self.filters[0], self._source.groups
        if groups == 1:
            return tf.matmul(rows, filter_.variable.value)
        count, places = rows.shape[1], int(np.prod(self._source.kernel_size))
        parts = tf.transpose(tf.reshape(rows, [count, places, groups, -1]), [2, 0, 1, 3])
        parts = tf.matmul(tf.reshape(parts, [groups, count, -1]), filter_.variable.value)
        return tf.reshape(tf.transpose(parts, [1, 0, 2]), [1, count, -1])


class DeviceConv2DTranspose(DeviceLayer):
    """Conv2DTranspose. Filter: `[1, places * inputs, filters]`."""

    def _add_filter(self, path: str, kernel: tuple[int, ...]) -> Filter:
        *places, outputs, inputs = kernel
        shape = (1, int(np.prod(places)) * inputs, outputs)
        return Filter(path, self._add(path, shape), kernel, (0, 1, 3, 2), (False, False, True))

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        height, width = self._source.compute_output_shape(inputs.shape)[1:3]
        rows = _gather(inputs, self._source, (height, width), _transpose_taps)
        return tf.reshape(self._finish(tf.matmul(rows, self.filters[0].variable.value)), [1, height, width, -1])


class DeviceDepthwiseConv2D(DeviceLayer):
    """DepthwiseConv2D. Filter: `[height, width, inputs, multiplier]`, as Keras has it."""

    def _add_filter(self, path: str, kernel: tuple[int, ...]) -> Filter:
        return Filter(path, self._add(path, kernel), kernel, (0, 1, 2, 3), (False, False, True, True))

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        return self._finish(_depthwise(inputs, self.filters[0], self._source))


class DeviceSeparableConv2D(DeviceLayer):
    """SeparableConv2D: a depthwise filter as of `DeviceDepthwiseConv2D`, and one of shape `[1, inputs, filters]`."""

    def _add_filter(self, path: str, kernel: tuple[int, ...]) -> Filter:
        if path.endswith("/depthwise_kernel"):
            return Filter(path, self._add(path, kernel), kernel, (0, 1, 2, 3), (False, False, False, False))
        shape = (1, *kernel[2:])
        return Filter(path, self._add(path, shape), shape, (0, 1, 2), (False, False, True))

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        between = _depthwise(inputs, self.filters[0], self._source)
        height, width = between.shape[1:3]
        rows = tf.reshape(between, [1, height * width, between.shape[-1]])
        return tf.reshape(self._finish(tf.matmul(rows, self.filters[1].variable.value)), [1, height, width, -1])


class DeviceNorm(Replacement):
    """Batch norm that a task decides and that no filter can hold: `x * factor + offset`.

    Args:
        source: The layer that it stands for; not changed.
        path: Its canonical path.
    """

    def __init__(self, source: keras.layers.BatchNormalization, path: str):
        super().__init__(name=source.name, dtype="float32", trainable=False)
        channels = source.moving_mean.shape
        self.norm, self._axis = path, source.axis
        self.factor = self.add_weight(name="factor", shape=channels, initializer="ones")
        self.offset = self.add_weight(name="offset", shape=channels, initializer="zeros")
        self.built = True

    def compute(self, inputs: tf.Tensor) -> tf.Tensor:
        shape = [1] * len(inputs.shape)
        shape[self._axis] = -1
        return inputs * tf.reshape(self.factor.value, shape) + tf.reshape(self.offset.value, shape)


DEVICE_LAYERS: dict[type[keras.Layer], type[DeviceLayer]] = {
    keras.layers.Dense: DeviceDense,
    keras.layers.Conv2D: DeviceConv2D,
    keras.layers.DepthwiseConv2D: DeviceDepthwiseConv2D,
    keras.layers.Conv2DTranspose: DeviceConv2DTranspose,
    keras.layers.SeparableConv2D: DeviceSeparableConv2D,
}


def check_device_layer(layer: keras.Layer, path: str) -> None:
    """Checks that there is a device layer for a layer.

    Raises:
        ValueError: If not, with the reason.
    """
    reason = None
    if type(layer) not in DEVICE_LAYERS:
        reason = f"is a {type(layer).__name__}; there are masks for {', '.join(k.__name__ for k in DEVICE_LAYERS)}"
    elif getattr(layer, "data_format", "channels_last") != "channels_last":
        reason = "has its channels first, which LiteRT does not compute with"
    elif layer.compute_dtype != "float32":
        reason = f"computes in {layer.compute_dtype}; only float32 is exported"
    elif getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        reason = "has LoRA weights or is quantised; merge them into its kernel first"
    if reason:
        raise ValueError(f"Layer {path!r} cannot be exported with masks as inputs: it {reason}.")


def _depthwise(inputs: tf.Tensor, filter_: Filter, layer: Any) -> tf.Tensor:
    # By Keras, which knows what TensorFlow does not compute on a CPU, such as strides that differ.
    return keras.ops.depthwise_conv(
        inputs,
        filter_.variable.value,
        strides=tuple(layer.strides),
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )


def _side_by_side(inputs: tf.Tensor, layer: Any, output: tuple[int, int], taps: Any, filters: int) -> tf.Tensor:
    """Returns what a kernel reads for each place of the output: `[1, output places, kernel places * channels]`."""
    channels = inputs.shape[-1]
    numbers = int(np.prod(layer.kernel_size)) * channels
    # A dilated convolution would be split into many.
    if channels < _FEW_CHANNELS and numbers <= min(2 * filters, _MOST_COPIED) and tuple(layer.dilation_rate) == (1, 1):
        copies = np.eye(numbers, dtype=np.float32).reshape(*layer.kernel_size, channels, numbers)
        result = tf.nn.conv2d(inputs, copies, layer.strides, layer.padding.upper())
        return tf.reshape(result, [1, output[0] * output[1], numbers])
    return _gather(inputs, layer, output, taps)


def _gather(inputs: tf.Tensor, layer: Any, output: tuple[int, int], taps: Any) -> tf.Tensor:
    """Does what `_side_by_side` does, by a gather."""
    _, height, width, channels = inputs.shape
    kernel, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    places = taps((height, width), output, kernel, strides, dilation, layer.padding)
    rows = tf.reshape(inputs, [height * width, channels])
    if (places == height * width).any():
        rows = tf.pad(rows, [[0, 1], [0, 0]])
    return tf.reshape(tf.gather(rows, places.reshape(-1)), [1, len(places), places.shape[1] * channels])


def _conv_taps(size: Pair, output: Pair, kernel: Pair, strides: Pair, dilation: Pair, padding: str) -> np.ndarray:
    """Returns which places of the input each place of a convolution's output is made of.

    Args:
        size: Height and width of the input.
        output: Height and width of the output.
        kernel: Height and width of the kernel.
        strides: Strides along both.
        dilation: Dilations along both.
        padding: `"valid"` or `"same"`.

    Returns:
        int32 `[output height * width, kernel height * width]`: the number `y * width + x` of the place of the input;
        `height * width` for one outside, where the input is taken to be 0.
    """
    axes = []
    for length, out, taps, stride, step in zip(size, output, kernel, strides, dilation, strict=True):
        before = _before(length, out, taps, stride, step, padding)
        place = np.arange(out)[:, None] * stride + np.arange(taps) * step - before
        axes.append(np.where((place >= 0) & (place < length), place, -1))
    return _combine(axes[0], axes[1], size)


def _transpose_taps(size: Pair, output: Pair, kernel: Pair, strides: Pair, dilation: Pair, padding: str) -> np.ndarray:
    """Returns the same of a transposed convolution, which reads `size` and writes `output`; see `_conv_taps`."""
    axes = []
    for length, out, taps, stride, step in zip(size, output, kernel, strides, dilation, strict=True):
        # The convolution whose gradient it is goes from the output to the input.
        before = _before(out, length, taps, stride, step, padding)
        place = np.arange(out)[:, None] + before - np.arange(taps) * step
        inside = (place >= 0) & (place % stride == 0) & (place < length * stride)
        axes.append(np.where(inside, place // stride, -1))
    return _combine(axes[0], axes[1], size)


def _before(length: int, output: int, taps: int, stride: int, step: int, padding: str) -> int:
    """Returns how many zeros a convolution puts before its input along one dimension."""
    if padding == "valid":
        return 0
    return max((output - 1) * stride + (taps - 1) * step + 1 - length, 0) // 2


def _combine(rows: np.ndarray, columns: np.ndarray, size: Pair) -> np.ndarray:
    """Returns the places for all outputs and taps, from those along each dimension, -1 being outside."""
    height, width = size
    y, x = rows[:, None, :, None], columns[None, :, None, :]
    places = np.where((y >= 0) & (x >= 0), y * width + x, height * width)
    return places.reshape(len(rows) * len(columns), -1).astype(np.int32)
