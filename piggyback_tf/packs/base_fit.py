"""Does a task, or an export, belong to a base? All that a file says of its arrays is compared before it is believed."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from piggyback_tf.backbones.structure_record import Structure, check_same_computation
from piggyback_tf.foreign_text import short_hash, shown
from piggyback_tf.packs.container import PackError
from piggyback_tf.packs.parts import VECTOR, shape_error, split_name

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone


class MisfitError(PackError):
    """A good pack or export, and another base than its own."""


@dataclasses.dataclass(frozen=True)
class BaseSpec:
    """What a task has to agree with: the base's hash, what it computes, and the shapes of its weights.

    Attributes:
        name: The backbone's name.
        weights: Where its weights came from.
        hash: Its hash.
        image_size: Side of its images in pixels.
        features: How many features it gives.
        shapes: The shape of every weight by canonical path.
        norm_paths: The paths that belong to batch norm.
        structure: What it computes with its weights; None if that was not recorded, as in exports of before.
        maskable: The paths of the weights that can have a mask; None if that is not known.
    """

    name: str
    weights: str
    hash: str
    image_size: int
    features: int
    shapes: Mapping[str, tuple[int, ...]]
    norm_paths: frozenset[str]
    structure: Structure | None = None
    maskable: frozenset[str] | None = None

    @classmethod
    def of(cls, backbone: "Backbone") -> "BaseSpec":
        """Returns the description of a backbone."""
        from piggyback_tf.backbones import batch_norm_paths, named_variables
        from piggyback_tf.masking import maskable_weights

        shapes = {path: tuple(variable.shape) for path, variable in named_variables(backbone.model).items()}
        norm_layers = batch_norm_paths(backbone.model)
        return cls(
            name=backbone.name,
            weights=backbone.weights,
            hash=backbone.hash,
            image_size=backbone.image_size,
            features=backbone.feature_dim,
            shapes=shapes,
            norm_paths=frozenset(path for path in shapes if path.rpartition("/")[0] in norm_layers),
            structure=backbone.structure,
            maskable=frozenset(maskable_weights(backbone.model)),
        )


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a task says of itself and its arrays.

    Attributes:
        task: The task's name.
        base_name: The name of its base.
        base_weights: Where the weights of its base came from.
        base_hash: The hash of its base.
        image_size: Side of its images in pixels; None of a task that brings its own.
        features: How many features its head takes; None of a head on other tensors, which is compared when it is used.
        masks: The shape of every mask by path.
        norm: The shape of every variable of batch norm by path.
        parts: The shape of every other array that changes the base, by name.
        structure: What its base computes; None if the task does not say.
    """

    task: str
    base_name: str
    base_weights: str
    base_hash: str
    image_size: int | None
    features: int | None
    masks: Mapping[str, tuple[int, ...]]
    norm: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, tuple[int, ...]]
    structure: Structure | None = None

    @classmethod
    def of(
        cls,
        fields: Mapping[str, Any],
        features: int | None,
        masks: Mapping[str, tuple[int, ...]],
        norm: Mapping[str, tuple[int, ...]],
        parts: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> "Claims":
        """Returns the claims of a task with these fields of a `TaskPack`, among others."""
        said = {name: fields[name] for name in ("task", "base_name", "base_weights", "base_hash", "image_size")}
        if (fields.get("head_spec") or {}).get("image_shape"):
            said["image_size"] = None
        return cls(
            **said, features=features, masks=masks, norm=norm, parts=parts, structure=Structure.from_json(fields)
        )


def check_fits(claims: Claims, base: BaseSpec) -> None:
    """Checks that a task can be used on a base.

    Raises:
        MisfitError: With the first thing that does not fit.
    """
    task = f"Task {shown(claims.task)}"
    named = f"{shown(claims.base_name)} with weights {shown(claims.base_weights)} and "
    check_same_weights(f"{task} was trained on", claims.base_hash, base, named=named)
    check_same_computation(task, claims.structure, base.structure, MisfitError)
    if claims.image_size not in (None, base.image_size):
        raise MisfitError(
            f"{task} takes images of {claims.image_size} pixels, and this base was loaded for images of "
            f"{base.image_size}. Tasks of classes that share a base take images of one size, with which each is "
            f"trained (--image_size). In Python, image_size={claims.image_size} of load_backbone loads a base for it."
        )
    for path, shape in (*claims.masks.items(), *claims.norm.items()):
        if path not in base.shapes:
            raise MisfitError(f"{task} has a mask or batch norm for {shown(path)}, which {base.name!r} lacks.")
        if tuple(base.shapes[path]) != tuple(shape):
            raise MisfitError(
                f"{task} has a mask or batch norm of shape {list(shape)} for {path!r}, which has shape "
                f"{list(base.shapes[path])} in {base.name!r}."
            )
    for path in claims.masks:
        if base.maskable is not None and path not in base.maskable:
            raise MisfitError(
                f"{task} has a mask for {shown(path)}, which {base.name!r} would not compute with: that layer is of a "
                "kind that cannot be masked, is quantised, or has LoRA enabled."
            )
    for path in claims.norm:
        if path in claims.masks or path not in base.norm_paths:
            raise MisfitError(f"{task} brings batch norm for {path!r}, which is none in {base.name!r}.")
    for name, shape in claims.parts.items():
        _check_part(task, name, shape, base)
    if claims.features not in (None, base.features):
        raise MisfitError(
            f"The head of {task[0].lower() + task[1:]} takes {claims.features} features, and {base.name!r} gives "
            f"{base.features}."
        )


def _check_part(task: str, name: str, shape: tuple[int, ...], base: BaseSpec) -> None:
    """Raises a `MisfitError` unless an array of a task changes a weight of a base that can be changed so."""
    role, path = split_name(name)
    if path not in base.shapes:
        raise MisfitError(f"{task} changes {shown(path)}, which {base.name!r} lacks.")
    if wrong := shape_error(name, tuple(shape), tuple(base.shapes[path])):
        raise MisfitError(f"{task} has {wrong} in {base.name!r}.")
    if path in base.norm_paths:
        raise MisfitError(f"{task} changes {path!r}, a variable of batch norm in {base.name!r}, as if it were none.")
    if role != VECTOR and base.maskable is not None and path not in base.maskable:
        raise MisfitError(
            f"{task} changes the kernel {shown(path)}, and {base.name!r} would not compute with that: the layer is of "
            "a kind whose kernel cannot be changed, is quantised, or has LoRA enabled."
        )


def check_head_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], whose: str
) -> None:
    """Checks that a head has the variables that it has on a base.

    Args:
        found: The shapes of its variables by name.
        expected: The shapes that there should be.
        whose: The head, to begin a sentence with.

    Raises:
        MisfitError: With the first thing that is not so.
    """
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name), expected.get(name)
        if here != there:
            raise MisfitError(
                f"{whose} has {'no' if here is None else list(here)} {shown(name)}, and on this base "
                f"{'there is none' if there is None else f'its shape is {list(there)}'}."
            )


def check_same_weights(
    made_of: str, base_hash: str, base: "BaseSpec | Backbone", error: type[Exception] = MisfitError, *, named: str = ""
) -> None:
    """Checks that what was made of a base is used on one with the same weights.

    Whether the same is computed with them is asked next, by `check_same_computation`.

    Args:
        made_of: What was made of a base, to begin a sentence with: `"Task 'birds' was trained on"`.
        base_hash: The hash of that base.
        base: The base here.
        error: The kind of error to raise.
        named: What else is known of that base, to stand before its hash.

    Raises:
        MisfitError: If it is another base; or `error`.
    """
    if base_hash != base.hash:
        raise error(
            f"{made_of} another base: {named}hash {short_hash(base_hash)}..., and this is {base.name!r} with weights "
            f"{base.weights!r} and hash {short_hash(base.hash)}...."
        )
