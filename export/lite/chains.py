"""Which layer follows which one directly, so that two can be computed as one."""

from collections import Counter
from collections.abc import Iterator

import keras

from piggyback_tf.backbones.paths import is_container


def followers(model: keras.Model) -> dict[int, keras.Layer]:
    """Returns for a layer the one that alone reads its result, by the first one's `id`.

    Both are called once, in the same model or nested model, and no one else reads what the first one returns.

    Args:
        model: A functional or sequential model whose layers belong to no other model.
    """
    pairs, calls = [], Counter()
    for container in _containers(model):
        readers: dict[int, list[keras.Layer]] = {}
        # What a model returns has a reader outside.
        ends = {id(tensor._keras_history.operation) for tensor in container.outputs}
        for layer in container.operations:
            # Keras has no public list of who is called on what; the model has been made anew, so all nodes are its own.
            for node in layer._inbound_nodes:
                calls[id(layer)] += 1
                for parent in node.parent_nodes:
                    readers.setdefault(id(parent.operation), []).append(layer)
        by_id = {id(layer): layer for layer in container.operations}
        pairs += [(by_id[key], found[0]) for key, found in readers.items() if len(found) == 1 and key not in ends]
    return {id(first): second for first, second in pairs if calls[id(first)] == calls[id(second)] == 1}


def _containers(model: keras.Model) -> Iterator[keras.Function]:
    """Yields the graphs of a model and of all models in it, each as often as it occurs."""
    # The layers of a sequential model have their nodes in a functional one within it.
    yield model._functional if isinstance(model, keras.Sequential) else model
    for layer in model.layers:
        if is_container(layer):
            yield from _containers(layer)
