"""Lets go of graphs that TensorFlow would keep as long as the process lives.

A call of a function with `tf.custom_gradient` in a graph enters its gradient into a registry of TensorFlow, which
nothing ever leaves. The gradient knows the graph. So each training would go on to take memory, about 100 MB for masks
on MobileNetV2, and a run of many tasks would end for want of it.
"""

import contextlib
from collections.abc import Iterator

from tensorflow.python.framework import ops

# As TensorFlow names those gradients.
_PREFIX = "CustomGradient-"


def _names() -> set[str]:
    return {name for name in ops.gradient_registry.list() if name.startswith(_PREFIX)}


@contextlib.contextmanager
def released_graphs() -> Iterator[None]:
    """Takes out of the registry what came in meanwhile, so that the graphs go with the models that they are of.

    Graphs that are there already go on to work. Gradients of them cannot be built any more: a model that goes on to
    train afterwards has to be compiled again.
    """
    before = _names()
    try:
        yield
    finally:
        for name in _names() - before:
            # TensorFlow has no way to do this; `tests/training/test_graphs.py` tells if it changes its own.
            del ops.gradient_registry._registry[name]
