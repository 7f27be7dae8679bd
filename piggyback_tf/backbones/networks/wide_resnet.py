"""The Wide ResNet of the Visual Decathlon (Piggyback paper, table 8)."""

from typing import TYPE_CHECKING

from piggyback_tf.backbones.registry import register_backbone
from piggyback_tf.backbones.scaling import DESCRIPTIONS

if TYPE_CHECKING:
    import keras

_EPSILON = 1e-5
_GROUPS = 3


@register_backbone(
    "wrn28_4",
    family="wide_resnet",
    image_size=64,
    min_size=32,
    preprocessing=DESCRIPTIONS["torch"],
    weights=("random",),
)
def build_wide_resnet(image_size: int, *, depth: int = 28, factor: int = 4) -> "keras.Model":
    """Returns the network of Zagoruyko and Komodakis (BMVC 2016), of blocks that begin with batch norm and ReLU.

    A 3x3 convolution of 16 filters, three groups of blocks with 16, 32 and 64 times `factor` filters, batch norm, ReLU
    and average pooling. For images of 64 pixels, and not 32, the first block of each group has stride 2, that of the
    first group, too. Where a block changes the shape, its shortcut is a 1x1 convolution of what the first ReLU gives.
    No convolution has a bias, and there is no dropout.

    The network that Rebuffi et al. released for the challenge is another one: 26 layers, a first convolution of 32
    filters, batch norm and ReLU behind convolutions and additions, and shortcuts of average pooling with zeros for the
    new channels.

    Args:
        image_size: Height and width of the images.
        depth: Convolutions: 6 for the blocks of the same place in each group, and 4, the first and the shortcuts.
        factor: How many times wider it is than a ResNet.
    """
    import keras

    from piggyback_tf.backbones.preprocessing import preprocess_images

    layers, blocks = keras.layers, (depth - 4) // 6

    def conv(x, filters, strides, name):
        if strides > 1:
            x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        padding = "valid" if strides > 1 else "same"
        return layers.Conv2D(filters, 3, strides, padding=padding, use_bias=False, name=name)(x)

    def activated(x, name, number=""):
        x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}bn{number}")(x)
        return layers.ReLU(name=f"{name}relu{number}")(x)

    images = keras.Input((image_size, image_size, 3), dtype="float32", name="images")
    x = conv(preprocess_images(images, "torch"), 16, 1, "conv1")
    for group in range(1, _GROUPS + 1):
        filters = 16 * factor * 2 ** (group - 1)
        for block in range(1, blocks + 1):
            name, strides = f"group{group}_block{block}", 2 if block == 1 else 1
            first = activated(x, f"{name}_", 1)
            if block == 1:
                x = layers.Conv2D(filters, 1, strides, use_bias=False, name=f"{name}_shortcut")(first)
            y = activated(conv(first, filters, strides, f"{name}_conv1"), f"{name}_", 2)
            x = layers.Add(name=f"{name}_add")([conv(y, filters, 1, f"{name}_conv2"), x])
    x = layers.GlobalAveragePooling2D(name="avg_pool")(activated(x, ""))
    return keras.Model(images, x, name="wrn28_4")
