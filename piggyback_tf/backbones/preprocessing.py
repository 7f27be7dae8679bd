"""Scaling of images as the first layer of a backbone, so that every backbone takes RGB in [0, 255]."""

import keras

from piggyback_tf.registry import unknown_name_message

# How each mode is written in task packs and tables.
DESCRIPTIONS = {
    "tf": "tf: x / 127.5 - 1",
    "torch": "torch: (x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)",
    "caffe": "caffe: RGB to BGR, minus (103.939, 116.779, 123.68)",
}


@keras.saving.register_keras_serializable(package="piggyback_tf")
class ImagePreprocessing(keras.layers.Layer):
    """Scales RGB images in [0, 255] as `keras.applications` does.

    Computes in float32 whatever the dtype policy and only then casts to the compute dtype: 255 / 127.5 - 1 and its
    neighbours would otherwise lose bits in half precision.

    Args:
        mode: `"tf"`, x / 127.5 - 1; `"torch"`, x / 255, then mean and standard deviation of ImageNet; `"caffe"`, RGB
            to BGR, then minus the mean of ImageNet.
        **kwargs: As for every Keras layer.

    Input shape:
        `[..., 3]`, any numeric dtype, channels last.

    Output shape:
        As the input, in the layer's compute dtype.

    Raises:
        ValueError: If there is no such mode.
    """

    def __init__(self, mode: str, **kwargs):
        if mode not in DESCRIPTIONS:
            raise ValueError(unknown_name_message("preprocessing mode", mode, list(DESCRIPTIONS)))
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.mode = mode

    def call(self, images):
        x = keras.ops.cast(images, "float32")
        if self.mode == "tf":
            x = x / 127.5 - 1.0
        elif self.mode == "torch":
            x = (x / 255.0 - keras.ops.array([0.485, 0.456, 0.406], "float32")) / keras.ops.array(
                [0.229, 0.224, 0.225], "float32"
            )
        else:
            x = keras.ops.flip(x, axis=-1) - keras.ops.array([103.939, 116.779, 123.68], "float32")
        return keras.ops.cast(x, self.compute_dtype)

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}
