"""What a network costs."""

import keras
import tensorflow as tf


def multiply_adds(model: keras.Model) -> int:
    """Returns how many multiplications with an addition an image takes: half of its floating point operations.

    Args:
        model: From images `[B, S, S, 3]`.
    """
    function = tf.function(lambda images: model(images, training=False))
    # Keras runs convolutions in groups as functions of their own, into which the profiler does not look. In this mode
    # they become part of the outer one.
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        function = function.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]], tf.float32))
    finally:
        tf.config.run_functions_eagerly(before)
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    ).with_empty_output()
    profile = tf.compat.v1.profiler.profile(function.graph, options=options.build())
    return int(profile.total_float_ops) // 2
