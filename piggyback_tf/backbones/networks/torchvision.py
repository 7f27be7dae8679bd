"""Networks as torchvision has them, which are those of the Piggyback paper. Their weights come from files of tensors.

What differs from the networks of `keras.applications`, layers having the same names here:

- images are scaled by mean and standard deviation, those of the weights (VGG and ResNet of Keras: BGR, minus the mean);
- the epsilon of batch norm is 1e-5 (Keras: 1.001e-5);
- ResNet: no convolution has a bias, a block's stride is that of its 3x3 convolution (Keras: of its first), and a border
  of one pixel on each side goes before it;
- VGG: `fc1` sees the feature map channel by channel in a file, and place by place here;
- `vgg16_bn` has batch norm behind each convolution, which has a bias all the same.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from piggyback_tf.backbones.registry import register_backbone
from piggyback_tf.backbones.scaling import IMAGENET, PixelStatistics
from piggyback_tf.backbones.tensor_files import TensorLayout

if TYPE_CHECKING:
    import keras

_EPSILON = 1e-5
_VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_RESNET_BLOCKS = (3, 4, 6, 3)
_DENSENET_LAYERS = (6, 12, 24, 16)


def build_torch_vgg(
    image_size: int,
    statistics: PixelStatistics = IMAGENET,
    *,
    name: str,
    batch_norm: bool,
    widths: Sequence[int] = _VGG_WIDTHS,
    features: int = 4096,
) -> "keras.Model":
    """Returns VGG-16 with fc1 and fc2, each followed by dropout of 0.5, as the Piggyback paper masks it.

    Args:
        image_size: Height and width of the images.
        statistics: Mean and standard deviation of pixels.
        name: Name of the model.
        batch_norm: Whether there is batch norm behind each convolution.
        widths: Filters of the convolutions of each of the five blocks.
        features: Units of fc1 and fc2.
    """
    import keras

    layers, (images, x) = keras.layers, _images(image_size, statistics)
    for block, (convolutions, width) in enumerate(zip(_VGG_CONVOLUTIONS, widths, strict=True), start=1):
        for number in range(1, convolutions + 1):
            activation = None if batch_norm else "relu"
            x = layers.Conv2D(width, 3, padding="same", activation=activation, name=f"block{block}_conv{number}")(x)
            if batch_norm:
                x = layers.BatchNormalization(epsilon=_EPSILON, name=f"block{block}_bn{number}")(x)
                x = layers.Activation("relu", name=f"block{block}_relu{number}")(x)
        x = layers.MaxPooling2D(2, strides=2, name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for layer in ("fc1", "fc2"):
        x = layers.Dense(features, activation="relu", name=layer)(x)
        x = layers.Dropout(0.5, name=f"{layer}_dropout")(x)
    return keras.Model(images, x, name=name)


def build_torch_resnet(
    image_size: int,
    statistics: PixelStatistics = IMAGENET,
    *,
    name: str,
    blocks: Sequence[int] = _RESNET_BLOCKS,
    width: int = 64,
) -> "keras.Model":
    """Returns a ResNet of bottleneck blocks, ending in average pooling.

    Args:
        image_size: Height and width of the images.
        statistics: Mean and standard deviation of pixels.
        name: Name of the model.
        blocks: How many blocks each of the four stages has.
        width: Filters of the first convolution.
    """
    import keras

    layers, (images, x) = keras.layers, _images(image_size, statistics)

    def conv(x, filters, kernel_size, strides, name):
        if kernel_size > 1:
            x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        x = layers.Conv2D(filters, kernel_size, strides, use_bias=False, name=f"{name}_conv")(x)
        return layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)

    def block(x, filters, strides, project, name):
        shortcut = conv(x, 4 * filters, 1, strides, f"{name}_0") if project else x
        x = layers.Activation("relu", name=f"{name}_1_relu")(conv(x, filters, 1, 1, f"{name}_1"))
        x = layers.Activation("relu", name=f"{name}_2_relu")(conv(x, filters, 3, strides, f"{name}_2"))
        x = layers.Add(name=f"{name}_add")([shortcut, conv(x, 4 * filters, 1, 1, f"{name}_3")])
        return layers.Activation("relu", name=f"{name}_out")(x)

    x = layers.Activation("relu", name="conv1_relu")(conv(x, width, 7, 2, "conv1"))
    # Zeros stand for the border: what is pooled is not negative.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, count in enumerate(blocks, start=2):
        for number in range(1, count + 1):
            strides = 2 if number == 1 and stage > 2 else 1
            x = block(x, width * 2 ** (stage - 2), strides, number == 1, f"conv{stage}_block{number}")
    return keras.Model(images, layers.GlobalAveragePooling2D(name="avg_pool")(x), name=name)


def build_torch_densenet(
    image_size: int,
    statistics: PixelStatistics = IMAGENET,
    *,
    name: str,
    blocks: Sequence[int] = _DENSENET_LAYERS,
    growth: int = 32,
) -> "keras.Model":
    """Returns a DenseNet, ending in average pooling.

    Args:
        image_size: Height and width of the images.
        statistics: Mean and standard deviation of pixels.
        name: Name of the model.
        blocks: How many layers each of the four dense blocks has.
        growth: Channels that each of these layers adds; the first convolution has twice as many.
    """
    import keras

    layers, (images, x) = keras.layers, _images(image_size, statistics)

    def conv(x, filters, kernel_size, strides, name):
        if kernel_size > 1:
            x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        return layers.Conv2D(filters, kernel_size, strides, use_bias=False, name=f"{name}_conv")(x)

    def norm(x, name):
        x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}bn")(x)
        return layers.Activation("relu", name=f"{name}relu")(x)

    x = norm(conv(x, 2 * growth, 7, 2, "conv1"), "conv1_")
    # Zeros stand for the border: what is pooled is not negative.
    x = layers.MaxPooling2D(3, strides=2, name="pool1")(layers.ZeroPadding2D(1, name="pool1_pad")(x))
    for stage, count in enumerate(blocks, start=2):
        for number in range(1, count + 1):
            block = f"conv{stage}_block{number}"
            added = conv(norm(x, f"{block}_0_"), 4 * growth, 1, 1, f"{block}_1")
            added = conv(norm(added, f"{block}_1_"), growth, 3, 1, f"{block}_2")
            x = layers.Concatenate(name=f"{block}_concat")([x, added])
        if stage < len(blocks) + 1:
            x = conv(norm(x, f"pool{stage}_"), x.shape[-1] // 2, 1, 1, f"pool{stage}")
            x = layers.AveragePooling2D(2, strides=2, name=f"pool{stage}_pool")(x)
    x = norm(x, "")
    return keras.Model(images, layers.GlobalAveragePooling2D(name="avg_pool")(x), name=name)


def vgg_layout(architecture: str, *, batch_norm: bool, channels: int = _VGG_WIDTHS[-1]) -> TensorLayout:
    """Returns how files name the tensors of VGG-16; the fully connected layers as timm does, or as torchvision."""
    names: dict[str, tuple[str, ...]] = {}
    place = 0
    for block, convolutions in enumerate(_VGG_CONVOLUTIONS, start=1):
        for number in range(1, convolutions + 1):
            names[f"block{block}_conv{number}"] = (f"features.{place}",)
            if batch_norm:
                names[f"block{block}_bn{number}"] = (f"features.{place + 1}",)
            place += 3 if batch_norm else 2
        place += 1
    names |= {"fc1": ("pre_logits.fc1", "classifier.0"), "fc2": ("pre_logits.fc2", "classifier.3")}
    return TensorLayout(architecture, names, ("head.fc.", "classifier.6."), {"fc1": channels})


def resnet_layout(architecture: str, blocks: Sequence[int] = _RESNET_BLOCKS) -> TensorLayout:
    """Returns how files name the tensors of a ResNet of bottleneck blocks."""
    names = {"conv1_conv": ("conv1",), "conv1_bn": ("bn1",)}
    for stage, count in enumerate(blocks, start=1):
        for number in range(count):
            ours, theirs = f"conv{stage + 1}_block{number + 1}", f"layer{stage}.{number}"
            if number == 0:
                names[f"{ours}_0_conv"] = (f"{theirs}.downsample.0",)
                names[f"{ours}_0_bn"] = (f"{theirs}.downsample.1",)
            for place, kind in itertools.product((1, 2, 3), ("conv", "bn")):
                names[f"{ours}_{place}_{kind}"] = (f"{theirs}.{kind}{place}",)
    return TensorLayout(architecture, names, ("fc.",))


def densenet_layout(architecture: str, blocks: Sequence[int] = _DENSENET_LAYERS) -> TensorLayout:
    """Returns how files name the tensors of a DenseNet; torchvision's first files have one more dot."""
    names: dict[str, tuple[str, ...]] = {
        "conv1_conv": ("features.conv0",),
        "conv1_bn": ("features.norm0",),
        "bn": ("features.norm5",),
    }
    for stage, count in enumerate(blocks, start=1):
        for number in range(1, count + 1):
            ours, theirs = f"conv{stage + 1}_block{number}", f"features.denseblock{stage}.denselayer{number}"
            for layer, kind, place in (("0_bn", "norm", 1), ("1_conv", "conv", 1), ("1_bn", "norm", 2)):
                names[f"{ours}_{layer}"] = (f"{theirs}.{kind}{place}", f"{theirs}.{kind}.{place}")
            names[f"{ours}_2_conv"] = (f"{theirs}.conv2", f"{theirs}.conv.2")
        if stage < len(blocks):
            names[f"pool{stage + 1}_bn"] = (f"features.transition{stage}.norm",)
            names[f"pool{stage + 1}_conv"] = (f"features.transition{stage}.conv",)
    return TensorLayout(architecture, names, ("classifier.",))


def _images(image_size: int, statistics: PixelStatistics):
    import keras

    from piggyback_tf.backbones.preprocessing import normalize_images

    images = keras.Input((image_size, image_size, 3), dtype="float32", name="images")
    return images, normalize_images(images, statistics)


_VGG_SIZE = 224
for _name, _batch_norm in (("vgg16_torch", False), ("vgg16_bn", True)):
    _architecture = _name.removesuffix("_torch")
    register_backbone(
        _name,
        family="torch_vgg_bn" if _batch_norm else "torch_vgg",
        image_size=_VGG_SIZE,
        min_size=_VGG_SIZE,
        max_size=_VGG_SIZE,
        preprocessing=IMAGENET.description,
        size_hint="Its fully connected layers fix the size; 'vgg16_notop' takes others.",
        weights=(f"hf://timm/{_architecture}.tv_in1k", "random"),
        layout=vgg_layout(_architecture, batch_norm=_batch_norm),
    )(functools.partial(build_torch_vgg, name=_name, batch_norm=_batch_norm))

for _name, _build, _layout in (
    ("resnet50_torch", build_torch_resnet, resnet_layout("resnet50")),
    ("densenet121_torch", build_torch_densenet, densenet_layout("densenet121")),
):
    register_backbone(
        _name,
        family=_build.__name__.removeprefix("build_"),
        image_size=224,
        min_size=32,
        preprocessing=IMAGENET.description,
        weights=(f"hf://timm/{_layout.architecture}.tv_in1k", "random"),
        layout=_layout,
    )(functools.partial(_build, name=_name))
