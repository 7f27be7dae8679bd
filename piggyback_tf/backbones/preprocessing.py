"""Scaling of images as the first layer of a backbone, so that every backbone takes RGB in [0, 255].

Made of Keras' own layers: a model that is saved from a backbone loads wherever Keras is.
"""

from typing import Any

import keras

from piggyback_tf.backbones.scaling import IMAGENET, PixelStatistics
from piggyback_tf.registry import unknown_name_message

# x * scale + offset; ImageNet's mean and standard deviation for "torch", its mean in BGR for "caffe".
_RESCALING: dict[str, tuple[Any, Any]] = {
    "tf": (1 / 127.5, -1.0),
    "torch": IMAGENET.rescaling,
    "caffe": (1.0, [-103.939, -116.779, -123.68]),
}


def preprocess_images(images: keras.KerasTensor, mode: str) -> keras.KerasTensor:
    """Scales RGB images in [0, 255] as `keras.applications` does.

    Computes in float32 whatever the dtype policy, since 255 / 127.5 - 1 and its neighbours would lose bits in half
    precision; the next layer casts.

    Args:
        images: Symbolic images `[B, H, W, 3]`.
        mode: `"tf"`, x / 127.5 - 1; `"torch"`, x / 255, then mean and standard deviation of ImageNet; `"caffe"`, RGB
            to BGR, then minus the mean of ImageNet.

    Returns:
        The scaled images, float32, in the same shape.

    Raises:
        ValueError: If there is no such mode.
    """
    if mode not in _RESCALING:
        raise ValueError(unknown_name_message("preprocessing mode", mode, list(_RESCALING)))
    if mode == "caffe":
        images = keras.ops.flip(images, axis=-1)
    return _rescale(images, *_RESCALING[mode])


def normalize_images(images: keras.KerasTensor, statistics: PixelStatistics) -> keras.KerasTensor:
    """Scales RGB images in [0, 255] by a mean and a standard deviation, as mode `"torch"` does by ImageNet's.

    Args:
        images: Symbolic images `[B, H, W, 3]`.
        statistics: Mean and standard deviation.

    Returns:
        The scaled images, float32, in the same shape.
    """
    return _rescale(images, *statistics.rescaling)


def _rescale(images: keras.KerasTensor, scale: Any, offset: Any) -> keras.KerasTensor:
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(images)
