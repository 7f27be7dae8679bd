"""Canonical layer names and variable paths: the keys of masks, batch norm and hashes.

Keras numbers unnamed layers by what was built before in the process: the second InceptionV3 of a
program has other names than the first. Here the numbers count within one model, so that a network
built twice, or on two machines, has the same paths.
"""

import re
from collections.abc import Iterator
from typing import Any

import keras

# Stands for the "/" of a canonical path in the name of a layer that was taken out of a model within the network: Keras
# allows no "/" in names, TensorFlow few other signs, and nobody names a layer so.
NESTED = ".-."


def is_container(layer: keras.Layer) -> bool:
    """Whether a layer is a functional or sequential model, whose own layers carry the weights."""
    return isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and hasattr(layer, "operations"))


def canonical_names(model: keras.Model) -> dict[int, str]:
    """Returns the canonical name of each layer directly in `model`.

    A name is taken to be given by Keras if it is the layer's class name in snake case, with or
    without a number behind it. Such names are numbered anew in the order of `model.layers`; names
    given by a person stay as they are.

    Args:
        model: A functional or sequential model.

    Returns:
        A dict from `id(layer)` to the name; the model itself is not changed.
    """
    given = {layer.name for layer in model.layers if not _is_automatic(layer)}
    names: dict[int, str] = {}
    counts: dict[str, int] = {}
    for layer in model.layers:
        name = layer.name.replace(NESTED, "/")
        if _is_automatic(layer):
            prefix = _snake_case(type(layer).__name__)
            name = ""
            while not name or name in given:
                count = counts.get(prefix, 0)
                counts[prefix] = count + 1
                name = f"{prefix}_{count}" if count else prefix
        names[id(layer)] = name
    return names


def rename_layers(model: keras.Model) -> None:
    """Gives every layer of `model`, nested ones too, its canonical name, in place."""
    names = canonical_names(model)
    for layer in model.layers:
        layer.name = names[id(layer)].replace("/", NESTED)
        if is_container(layer):
            rename_layers(layer)


def named_layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Yields `(canonical path, layer)` for every layer that is not itself a model, in order.

    A nested model contributes its layers under its own name: `"stem/conv"`. A layer that occurs twice, in and outside
    of a nested model, is yielded once, with its first path.
    """
    seen = set()
    for path, layer in _all_layers(model, prefix):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield path, layer


def _all_layers(model: keras.Model, prefix: str) -> Iterator[tuple[str, keras.Layer]]:
    names = canonical_names(model)
    for layer in model.layers:
        path = prefix + names[id(layer)]
        if is_container(layer):
            yield from _all_layers(layer, path + "/")
        else:
            yield path, layer


def graph_of(model: keras.Model) -> Any:
    """Returns the graph of a functional or sequential model that is built: Keras' `Function` of it."""
    # Keras has no call for this.
    return model._functional if isinstance(model, keras.Sequential) else model


def calls_of(model: keras.Model) -> list[Any]:
    """Returns the calls of operations that a functional or sequential model consists of, each after those it reads.

    They are Keras' nodes: `operation`, `arguments`, `input_tensors`, `output_tensors`.
    """
    # Keras has no call for this. A layer's own list of calls has those of other models over the same layer, too.
    graph = graph_of(model)
    return [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]]


def is_batch_norm(layer: keras.Layer) -> bool:
    """Whether a layer is batch norm, whose weights a task can have of its own."""
    return isinstance(layer, keras.layers.BatchNormalization)


def batch_norm_paths(model: keras.Model) -> set[str]:
    """Returns the canonical path of every batch norm layer."""
    return {path for path, layer in named_layers(model) if is_batch_norm(layer)}


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns every weight of `model` by its canonical path, such as `"conv1/kernel"`.

    A layer that occurs twice in the model is listed once, under its first path.

    Args:
        model: A built functional or sequential model.

    Returns:
        A dict in the order of the layers; seeds of random layers are no weights and are left out.

    Raises:
        ValueError: If two weights have the same path.
    """
    variables, seen = {}, set()
    for path, layer in named_layers(model):
        for name, variable in layer_weights(layer).items():
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            key = f"{path}/{name}"
            if key in variables:
                raise ValueError(f"Two weights of model {model.name!r} have the path {key!r}. Name the layers apart.")
            variables[key] = variable
    return variables


def layer_weights(layer: keras.Layer) -> dict[str, keras.Variable]:
    """Returns the weights of one layer by their name within it, such as `"kernel"` or `"query/kernel"`.

    Variables that the layer's author did not name, which Keras numbers through the process, are numbered within the
    layer: `"variable"`, `"variable_1"`.

    Raises:
        ValueError: If two weights of the layer have the same name.
    """
    weights: dict[str, keras.Variable] = {}
    unnamed = 0
    for variable in layer.weights:
        # `layer.path` and `variable.path` were fixed together when the layer was built, so that the difference is the
        # name within the layer, whatever the layer is called now.
        start = f"{layer.path}/"
        name = variable.path.removeprefix(start) if variable.path.startswith(start) else variable.name
        if re.fullmatch(r"variable(_\d+)?", name):
            name = f"variable_{unnamed}" if unnamed else "variable"
            unnamed += 1
        if name in weights:
            raise ValueError(f"Layer {layer.name!r} has two weights named {name!r}.")
        weights[name] = variable
    return weights


def copy_weights(source: keras.Model | keras.Layer, target: keras.Model | keras.Layer) -> None:
    """Gives a network or a layer the values of another one of the same structure.

    By their names, and not by `set_weights`: in which order Keras lists the weights of a quantised layer depends on
    whether it was built so.
    """
    of = named_variables if is_container(source) else layer_weights
    values = of(source)
    for name, variable in of(target).items():
        variable.assign(values[name])
    if is_container(target):
        finalize_layers(target)
    else:
        finalize_layer(target)


def finalize_layers(model: keras.Model) -> None:
    """Lets every layer of `model` compute with the weights that it has now. To be called after writing weights.

    Keras' Normalization keeps tensors made of its mean and variance, which only `adapt` and loading from a file renew.
    """
    for _, layer in named_layers(model):
        finalize_layer(layer)


def finalize_layer(layer: keras.Layer) -> None:
    """Lets one layer compute with the weights that it has now; see `finalize_layers`."""
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def _is_automatic(layer: keras.Layer) -> bool:
    return re.fullmatch(re.escape(_snake_case(type(layer).__name__)) + r"(_\d+)?", layer.name) is not None


def _snake_case(name: str) -> str:
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
