"""Networks for an answer at each pixel: flat, for images of any size, over the variables of another network."""

from typing import Any

import keras

from piggyback_tf.backbones.paths import calls_of, graph_of, is_container
from piggyback_tf.head_spec import padded_shape
from piggyback_tf.surgery.copying import LayerCopier
from piggyback_tf.surgery.sharing import share_variables

_PADDING = "padded_images"
# Behind a Flatten layer: what does the same at each place of a feature map as with one vector.
_BY_PLACE = (keras.layers.Dense, keras.layers.Dropout, keras.layers.Activation, keras.layers.ReLU)


def for_image_shape(model: keras.Model, image_shape: tuple[int, int], *, slide: bool = False) -> keras.Model:
    """Returns a network over the variables of another for images of a height and width; that one if it is such.

    It has no models within it, whose tensors nothing could be built on: their layers stand in it, under their whole
    paths. Images whose sides are no multiples of 32 get black pixels on the right and below.

    Args:
        model: A functional model from images `[B, H, W, 3]`; not changed.
        image_shape: `(height, width)` of the images.
        slide: Whether dense layers behind a Flatten layer become convolutions over the feature map in front of it
            (Long et al., CVPR 2015, section 3.1): the network ends in a feature map with what it would give for each
            place. The first sees as large a part of the map as the Flatten layer did, with zeros beyond its border.

    Raises:
        ValueError: If the network cannot take such images, because a layer in it has weights for each place of a
            feature map, or because they are too small; if it has nothing that can slide.
    """
    nested = any(is_container(layer) for layer in model.layers)
    fits = tuple(model.input_shape[1:3]) == tuple(image_shape) == padded_shape(image_shape)
    if fits and not nested and not slide:
        return model
    flatten = _sliding(model) if slide else None
    copier = LayerCopier(model, lambda layer: (type(layer), {"trainable": layer.trainable}))
    try:
        images = keras.Input((*image_shape, model.input_shape[-1]), dtype=model.input.dtype, name="images")
        features = _run(model, _padded(images, image_shape), copier, flatten)
        for own, layer in copier.copies:
            share_variables(own, layer)
    except ValueError as error:
        raise ValueError(
            f"Network {model.name!r} is built for images of {model.input_shape[1]}x{model.input_shape[2]} pixels and "
            f"cannot take those of {image_shape[0]}x{image_shape[1]}: {error}"
        ) from error
    return keras.Model(images, features, name=model.name)


def _padded(images: keras.KerasTensor, image_shape: tuple[int, int]) -> keras.KerasTensor:
    """Returns images of the next multiples of 32."""
    missing = [there - side for there, side in zip(padded_shape(image_shape), image_shape, strict=True)]
    if not any(missing):
        return images
    return keras.layers.ZeroPadding2D(((0, missing[0]), (0, missing[1])), dtype="float32", name=_PADDING)(images)


def _run(model: keras.Model, inputs: Any, copier: LayerCopier, flatten: keras.layers.Flatten | None) -> Any:
    """Calls copies of the layers of a model, and of those within it, on other tensors.

    Args:
        model: The model.
        inputs: What takes the place of its inputs.
        copier: Makes the copies.
        flatten: The layer in whose place parts of the feature map come.
    """

    def copied(operation: Any) -> Any:
        if is_container(operation):
            # In which mode it was called is not kept: that of the whole network decides, as Keras has it.
            return lambda inputs, **_: _run(operation, inputs, copier, flatten)
        if getattr(operation, "name", "") == _PADDING:
            return lambda images: images  # Of a network that this one was made for images of another size.
        if operation is flatten:
            return lambda features: _parts(features, operation)
        return copier.copy(operation, flat=True)

    return graph_of(model)._run_through_graph(inputs, operation_fn=copied)


def _sliding(model: keras.Model) -> keras.layers.Flatten:
    """Returns the Flatten layer of a network that can slide.

    Raises:
        ValueError: If it cannot.
    """
    operations = [call.operation for call in calls_of(model)]
    found = [place for place, each in enumerate(operations) if isinstance(each, keras.layers.Flatten)]
    sentence = (
        f"Network {model.name!r} has no fully connected layers that could be seen as convolutions, as vgg16 and vgg19 "
        "have: a Flatten layer behind a feature map, and then layers of "
        f"{', '.join(kind.__name__ for kind in _BY_PLACE)}."
    )
    if len(found) != 1 or not all(isinstance(each, _BY_PLACE) for each in operations[found[0] + 1 :]):
        raise ValueError(sentence)
    flatten = operations[found[0]]
    if len(flatten.input.shape) != 4 or flatten.data_format != "channels_last":
        raise ValueError(sentence)
    return flatten


def _parts(features: keras.KerasTensor, flatten: keras.layers.Flatten) -> keras.KerasTensor:
    """Returns around each place of a feature map what a Flatten layer saw of one: `[B, h, w, H * W * C]`.

    In the order of Flatten, so that the kernel of the dense layer behind it is that of a convolution `[H, W, C, F]`.
    Of Keras' own layers, so that a model with it opens everywhere.

    Args:
        features: `[B, h, w, C]`.
        flatten: The layer, behind a feature map `[B, H, W, C]`.
    """
    height, width = flatten.input.shape[1:3]
    top, left = (height - 1) // 2, (width - 1) // 2
    border = keras.layers.ZeroPadding2D(
        ((top, height - 1 - top), (left, width - 1 - left)), name=f"{flatten.name}_border"
    )
    features = border(features)
    parts = [
        keras.layers.Cropping2D(((y, height - 1 - y), (x, width - 1 - x)), name=f"{flatten.name}_{y}_{x}")(features)
        for y in range(height)
        for x in range(width)
    ]
    return keras.layers.Concatenate(axis=-1, name=flatten.name)(parts)
