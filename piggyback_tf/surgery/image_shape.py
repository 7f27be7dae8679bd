"""A network for images of another size, over the same variables."""

import keras

from piggyback_tf.surgery.copying import copy_layers
from piggyback_tf.surgery.sharing import share_variables


def for_image_shape(model: keras.Model, image_shape: tuple[int, int]) -> keras.Model:
    """Returns a network over the variables of another for images of a height and width; that one if they are its own.

    Args:
        model: A functional model from images `[B, H, W, 3]`; not changed.
        image_shape: `(height, width)` of the images.

    Raises:
        ValueError: If the network cannot take such images, because a layer in it has weights for each place of a
            feature map, or because they are too small.
    """
    if tuple(model.input_shape[1:3]) == tuple(image_shape):
        return model
    try:
        copy, copies = copy_layers(
            model, lambda layer: (type(layer), {"trainable": layer.trainable}), image_shape=image_shape
        )
        for own, layer in copies:
            share_variables(own, layer)
    except ValueError as error:
        raise ValueError(
            f"Network {model.name!r} is built for images of {model.input_shape[1]}x{model.input_shape[2]} pixels and "
            f"cannot take those of {image_shape[0]}x{image_shape[1]}: {error}"
        ) from error
    return copy
