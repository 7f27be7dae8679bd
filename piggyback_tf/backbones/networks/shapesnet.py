"""The small network that ships with the package, pretrained on drawn shapes (tools/pretrain_shapesnet.py)."""

from pathlib import Path
from typing import TYPE_CHECKING

from piggyback_tf.backbones.registry import register_backbone
from piggyback_tf.backbones.scaling import DESCRIPTIONS

if TYPE_CHECKING:
    import keras

WIDTHS = (24, 56, 96)


@register_backbone(
    "shapesnet",
    family="shapesnet",
    image_size=32,
    min_size=24,
    max_size=64,
    preprocessing=DESCRIPTIONS["tf"],
    weights=("shipped", "random"),
    size_hint="Larger images need a larger network, such as 'mobilenet_v2'.",
    shipped=str(Path(__file__).parent.parent / "shipped" / "shapesnet.weights.h5"),
)
def build_shapesnet(image_size: int) -> "keras.Model":
    """Returns a residual network of about 218 thousand weights and 10 million multiply-adds at 32 pixels.

    A strided 5x5 convolution, a residual block, and twice a strided 3x3 convolution with a residual block at half the
    resolution; batch norm after every convolution, then global average pooling.

    Args:
        image_size: Height and width of the images.
    """
    import keras

    from piggyback_tf.backbones.preprocessing import preprocess_images

    layers = keras.layers

    def conv(x, filters, kernel_size, strides, name):
        x = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
        return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)

    def residual(x, convolutions, name):
        shortcut = x
        for index in range(convolutions):
            if index:
                x = layers.ReLU(name=f"{name}_relu{index}")(x)
            x = conv(x, shortcut.shape[-1], 3, 1, f"{name}_{index + 1}")
        x = layers.Add(name=f"{name}_add")([shortcut, x])
        return layers.ReLU(name=f"{name}_out")(x)

    images = keras.Input((image_size, image_size, 3), dtype="float32", name="images")
    x = preprocess_images(images, "tf")
    x = layers.ReLU(name="stem_relu")(conv(x, WIDTHS[0], 5, 2, "stem"))
    x = residual(x, 2, "block1")
    x = layers.ReLU(name="down2_relu")(conv(x, WIDTHS[1], 3, 2, "down2"))
    x = residual(x, 2, "block2")
    x = layers.ReLU(name="down3_relu")(conv(x, WIDTHS[2], 3, 2, "down3"))
    x = residual(x, 1, "block3")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(images, x, name="shapesnet")
