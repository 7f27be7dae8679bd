"""The classification head: features in, logits out."""

import keras

HEAD_NAME = "head"


def add_classification_head(
    features: keras.Model, num_classes: int, *, dropout: float = 0.0, seed: int = 0
) -> keras.Model:
    """Returns `features` with a Dense layer named `"head"` on top.

    Args:
        features: A functional or sequential model that ends in features `[B, F]`; its layers become the result's own.
        num_classes: Number of logits.
        dropout: Rate of a dropout layer before the head; 0 for none.
        seed: Seed of the head's initial kernel, so that it depends on nothing that ran before.

    Returns:
        A functional model from images to float32 logits `[B, num_classes]`, whatever the dtype policy.

    Raises:
        ValueError: If there are fewer than two classes, the features are not of rank 2, or the model has a layer of
            the head's name.
    """
    if num_classes < 2:
        raise ValueError(f"A classification head needs at least 2 classes. Received: num_classes={num_classes}.")
    outputs = features.output
    if len(outputs.shape) != 2:
        raise ValueError(f"A classification head needs features of shape [B, F]; the model ends in {outputs.shape}.")
    taken = {layer.name for layer in features.layers} & {HEAD_NAME, f"{HEAD_NAME}_dropout"}
    if taken:
        raise ValueError(
            f"The backbone has a layer named {sorted(taken)[0]!r}, which is what the head of a task is called. Give "
            "that layer another name."
        )
    if dropout:
        outputs = keras.layers.Dropout(dropout, seed=seed, name=f"{HEAD_NAME}_dropout")(outputs)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    logits = keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name=HEAD_NAME)(outputs)
    return keras.Model(features.input, logits, name=features.name)
