"""Which places of the input each place of a convolution's output is made of; nothing here needs TensorFlow."""

import numpy as np

Pair = tuple[int, int]


def conv_taps(size: Pair, output: Pair, kernel: Pair, strides: Pair, dilation: Pair, padding: str) -> np.ndarray:
    """Returns the taps of a convolution.

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
    return _combine(*axes, size)


def transpose_taps(size: Pair, output: Pair, kernel: Pair, strides: Pair, dilation: Pair, padding: str) -> np.ndarray:
    """Returns the taps of a transposed convolution, which reads `size` and writes `output`; see `conv_taps`."""
    axes = []
    for length, out, taps, stride, step in zip(size, output, kernel, strides, dilation, strict=True):
        # The convolution whose gradient it is goes from the output to the input.
        before = _before(out, length, taps, stride, step, padding)
        place = np.arange(out)[:, None] + before - np.arange(taps) * step
        inside = (place >= 0) & (place % stride == 0) & (place < length * stride)
        axes.append(np.where(inside, place // stride, -1))
    return _combine(*axes, size)


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
