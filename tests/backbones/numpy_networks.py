"""The networks of torchvision once more, in NumPy, out of tensors with the names and in the order that PyTorch has.

Written after torchvision's and timm's descriptions of them, and not after the networks of the package: channels first,
borders of padding, no trick. Small ones have few channels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Tensors = dict[str, np.ndarray]


class Torch:
    """The operations of PyTorch that the networks consist of, on tensors by name, and those tensors.

    Args:
        seed: Tensors that are asked for are drawn by it, and kept. Filters in front of batch norm are of very different
            size, so that its epsilon counts, and its statistics are those of what goes through.
        spread: False of a network without batch norm, whose features would vanish.
    """

    def __init__(self, seed: int = 0, spread: bool = True):
        self.tensors: Tensors = {}
        self.spread = spread
        self._rng = np.random.default_rng(seed)

    def conv(self, x, name: str, filters: int, size: int, stride: int = 1, padding: int = 0, bias: bool = False):
        weight = self._draw(f"{name}.weight", (filters, x.shape[1], size, size), np.sqrt(2 / (x.shape[1] * size**2)))
        if self.spread:
            weight *= (10 ** self._rng.uniform(-2.5, 0, (filters, 1, 1, 1))).astype("float32")
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
        x = np.einsum("nihwyx,oiyx->nohw", windows, weight, optimize=True)
        return x + self._draw(f"{name}.bias", (filters,), 0.1).reshape(-1, 1, 1) if bias else x

    def norm(self, x, name: str):
        count = (x.shape[1],)
        gamma, beta = 1 + self._draw(f"{name}.weight", count, 0.2), self._draw(f"{name}.bias", count, 0.2)
        self.tensors[f"{name}.weight"] = gamma
        mean, variance = (kind(x, axis=(0, 2, 3)).astype("float32") for kind in (np.mean, np.var))
        self.tensors |= {f"{name}.running_mean": mean, f"{name}.running_var": variance}
        self.tensors[f"{name}.num_batches_tracked"] = np.array(7)
        shape = (-1, 1, 1)
        x = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
        return x * gamma.reshape(shape) + beta.reshape(shape)

    def linear(self, x, name: str, units: int, shape: tuple[int, ...] | None = None):
        weight = self._draw(f"{name}.weight", (units, x.shape[1]), np.sqrt(2 / x.shape[1]))
        if shape:
            self.tensors[f"{name}.weight"] = weight.reshape(shape)
        return x @ weight.T + self._draw(f"{name}.bias", (units,), 0.1)

    def _draw(self, name: str, shape: tuple[int, ...], size: float) -> np.ndarray:
        self.tensors[name] = self._rng.normal(0, size, shape).astype("float32")
        return self.tensors[name]


def relu(x):
    return np.maximum(x, 0)


def pool(x, size: int, stride: int, padding: int = 0, kind=np.max):
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x = np.pad(x, border, constant_values=-np.inf) if padding else x
    return kind(sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride], axis=(4, 5))


def scaled(images: np.ndarray, mean: Sequence[float], deviation: Sequence[float]) -> np.ndarray:
    """Returns images `[N, H, W, 3]` in [0, 255] as PyTorch's networks take them."""
    return ((images / 255.0 - np.asarray(mean)) / np.asarray(deviation)).transpose(0, 3, 1, 2)


def vgg(torch: Torch, x, widths: Sequence[int], features: int, batch_norm: bool, timm: bool):
    """VGG-16, its fully connected layers as torchvision's files have them, or as timm's."""
    place = 0
    for count, width in zip((2, 2, 3, 3, 3), widths, strict=True):
        for _ in range(count):
            x = torch.conv(x, f"features.{place}", width, 3, padding=1, bias=True)
            if batch_norm:
                x = torch.norm(x, f"features.{place + 1}")
            x, place = relu(x), place + 2 + batch_norm
        x, place = pool(x, 2, 2), place + 1
    names = ("pre_logits.fc1", "pre_logits.fc2") if timm else ("classifier.0", "classifier.3")
    shapes = ((features, *x.shape[1:]), (features, features, 1, 1)) if timm else (None, None)
    x = x.reshape(len(x), -1)
    for name, shape in zip(names, shapes, strict=True):
        x = relu(torch.linear(x, name, features, shape))
    torch.linear(x, "head.fc" if timm else "classifier.6", 5)
    return x


def resnet(torch: Torch, x, width: int, blocks: Sequence[int]):
    """ResNet of bottleneck blocks, in the variant with the stride in the 3x3 convolution."""
    x = relu(torch.norm(torch.conv(x, "conv1", width, 7, 2, 3), "bn1"))
    x = pool(x, 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            name, filters = f"layer{stage + 1}.{block}", width * 2**stage
            stride = 2 if stage and not block else 1
            y = relu(torch.norm(torch.conv(x, f"{name}.conv1", filters, 1), f"{name}.bn1"))
            y = relu(torch.norm(torch.conv(y, f"{name}.conv2", filters, 3, stride, 1), f"{name}.bn2"))
            y = torch.norm(torch.conv(y, f"{name}.conv3", 4 * filters, 1), f"{name}.bn3")
            if not block:
                x = torch.norm(torch.conv(x, f"{name}.downsample.0", 4 * filters, 1, stride), f"{name}.downsample.1")
            x = relu(x + y)
    x = x.mean(axis=(2, 3))
    torch.linear(x, "fc", 5)
    return x


def densenet(torch: Torch, x, growth: int, blocks: Sequence[int]):
    """DenseNet with bottlenecks, of which each transition keeps half of the channels."""
    x = relu(torch.norm(torch.conv(x, "features.conv0", 2 * growth, 7, 2, 3), "features.norm0"))
    x = pool(x, 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for layer in range(1, count + 1):
            name = f"features.denseblock{stage}.denselayer{layer}"
            y = torch.conv(relu(torch.norm(x, f"{name}.norm1")), f"{name}.conv1", 4 * growth, 1)
            y = torch.conv(relu(torch.norm(y, f"{name}.norm2")), f"{name}.conv2", growth, 3, padding=1)
            x = np.concatenate([x, y], axis=1)
        if stage < len(blocks):
            name = f"features.transition{stage}"
            x = torch.conv(relu(torch.norm(x, f"{name}.norm")), f"{name}.conv", x.shape[1] // 2, 1)
            x = pool(x, 2, 2, kind=np.mean)
    x = relu(torch.norm(x, "features.norm5")).mean(axis=(2, 3))
    torch.linear(x, "classifier", 5)
    return x


def wide_resnet(torch: Torch, x, blocks: int, factor: int):
    """The Wide ResNet whose blocks begin with batch norm, with stride 2 at the start of each group."""
    x = torch.conv(x, "conv1", 16, 3, padding=1)
    for group in (1, 2, 3):
        filters = 16 * factor * 2 ** (group - 1)
        for block in range(1, blocks + 1):
            name, stride = f"group{group}_block{block}", 2 if block == 1 else 1
            first = relu(torch.norm(x, f"{name}_bn1"))
            y = torch.conv(first, f"{name}_conv1", filters, 3, stride, 1)
            y = torch.conv(relu(torch.norm(y, f"{name}_bn2")), f"{name}_conv2", filters, 3, 1, 1)
            x = y + (torch.conv(first, f"{name}_shortcut", filters, 1, stride) if block == 1 else x)
    return relu(torch.norm(x, "bn")).mean(axis=(2, 3))
