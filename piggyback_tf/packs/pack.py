"""TaskPack: everything that one task adds to a frozen base, in one small file.

Reading and writing packs needs numpy and safetensors, not TensorFlow; only `TaskPack.from_model` looks at a model.
"""

import dataclasses
import datetime
import importlib.metadata
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf.files import write_atomically
from piggyback_tf.packs import codec, fileformat
from piggyback_tf.packs.fileformat import FORMAT_VERSION, MASK_KINDS, PackError, PackFileError
from piggyback_tf.version import __version__

if TYPE_CHECKING:
    import keras

    from piggyback_tf.backbones import Backbone

PACK_SUFFIX = ".task.safetensors"
_TEXTS = ("task", "base_name", "base_hash", "base_weights", "method", "mask_kind", "preprocessing")
_DICTS = ("settings", "errors", "versions")
_UINT8, _FLOAT32 = np.dtype("uint8"), np.dtype("float32")


@dataclasses.dataclass(frozen=True, eq=False)
class MaskBits:
    """The packed mask of one weight.

    Attributes:
        shape: The shape of the weight.
        packed: The bits, uint8 `[planes, bytes a plane]`; see `codec`.
    """

    shape: tuple[int, ...]
    packed: np.ndarray

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def zeros(self) -> float:
        """The fraction of the weights that the mask drops."""
        return codec.count_zeros(self.packed, self.shape) / self.size


@dataclasses.dataclass(eq=False, kw_only=True)
class TaskPack:
    """A learned task: masks, batch norm and head for one base, and what is known about them.

    Attributes:
        task: The task's name.
        class_names: The classes in the order of the head's outputs.
        base_name: The backbone, for example `"vgg16"`.
        base_hash: The backbone's hash; the masks mean nothing on another base.
        base_weights: Where the backbone's weights came from, for example `"imagenet"`.
        method: The method that trained the task.
        mask_kind: `"binary"`, `"ternary"`, or `"none"` if the task has no masks.
        threshold: The threshold that made the masks; None without masks.
        masks: Packed masks by the weight's canonical path, in layer order.
        norm: The variables, float32, of batch norm layers trained for the task, by canonical path.
        head: `"kernel"`, float32 `[F, C]`, and `"bias"`, float32 `[C]`; softmax of its logits gives probabilities.
        preprocessing: What the backbone does to RGB values of 0 to 255, for the record: it is part of the backbone.
        image_size: Side of the square input images in pixels.
        eval_augment: The augmentation string that prepares an image for evaluation.
        settings: The settings of the training.
        errors: Split name to the errors measured there, in percent, and the number of images.
        versions: Package name to version at training.
        created: Date and time in ISO 8601; no part of `content_digest`.
        format_version: Version of the file format.

    Raises:
        PackError: If the parts do not fit together.
    """

    task: str
    class_names: list[str]
    base_name: str
    base_hash: str
    base_weights: str
    method: str
    mask_kind: str
    threshold: float | None
    masks: dict[str, MaskBits]
    norm: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    preprocessing: str
    image_size: int
    eval_augment: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        self.class_names = list(self.class_names) if isinstance(self.class_names, list | tuple) else self.class_names
        for field in _DICTS:
            # What a file would make of it (tuples become lists, keys strings), so that a pack equals its file.
            try:
                setattr(self, field, json.loads(fileformat.canonical_json(getattr(self, field))))
            except (TypeError, ValueError) as error:
                raise PackError(f"The pack's {field} cannot be written as JSON: {error}.") from error
        self.check()

    @classmethod
    def from_model(
        cls,
        model: "keras.Model",
        *,
        task: str,
        class_names: list[str],
        backbone: "Backbone",
        method: str,
        eval_augment: str,
        settings: dict[str, Any] | None = None,
        errors: dict[str, dict[str, Any]] | None = None,
        created: str | None = None,
    ) -> "TaskPack":
        """Takes a trained task out of a model.

        Args:
            model: A task model: the layers of `backbone.model`, masked or not, and a Dense layer named `"head"`.
            task: The task's name.
            class_names: The classes in the order of the head's outputs.
            backbone: The base that the model was made from.
            method: The name of the method that trained it.
            eval_augment: The augmentation string that prepares an image for evaluation.
            settings: The settings of the training.
            errors: Measured errors by split.
            created: Date and time in ISO 8601; now if None.

        Returns:
            The pack.

        Raises:
            PackError: If a weight of the base other than batch norm was changed: a pack cannot hold that.
        """
        from piggyback_tf.packs.capture import capture

        return cls(
            task=task,
            class_names=class_names,
            base_name=backbone.name,
            base_hash=backbone.hash,
            base_weights=backbone.weights,
            method=method,
            preprocessing=backbone.preprocessing,
            image_size=backbone.image_size,
            eval_augment=eval_augment,
            settings=settings or {},
            errors=errors or {},
            versions=_package_versions(),
            **({} if created is None else {"created": created}),
            **capture(model, backbone.model),
        )

    @property
    def zeros(self) -> dict[str, float]:
        """The fraction of dropped weights by the weight's canonical path."""
        return {path: mask.zeros for path, mask in self.masks.items()}

    @property
    def zeros_total(self) -> float:
        """The fraction of dropped weights over all masks; 0 without masks."""
        weights = self.masked_weights
        return sum(codec.count_zeros(m.packed, m.shape) for m in self.masks.values()) / weights if weights else 0.0

    @property
    def masked_weights(self) -> int:
        """The number of weights that have a mask."""
        return sum(mask.size for mask in self.masks.values())

    @property
    def nbytes(self) -> int:
        """The size of the pack's file in bytes."""
        return len(self.to_bytes())

    def mask(self, path: str) -> np.ndarray:
        """Returns the mask of a weight as an int8 array of the weight's shape.

        Raises:
            KeyError: If the pack has no mask for `path`.
        """
        if path not in self.masks:
            raise KeyError(f"Task {self.task!r} has no mask for {path!r}.")
        return codec.decode(self.masks[path].packed, self.masks[path].shape, self.mask_kind)

    def content_digest(self) -> str:
        """Returns the SHA-256 of everything in the pack but its date, as hexadecimal digits."""
        return fileformat.digest(self._document(), self._tensors())

    def to_bytes(self) -> bytes:
        """Returns the pack as the bytes of its file; equal packs of one date give equal bytes.

        Raises:
            PackError: If the parts no longer fit together.
        """
        self.check()
        return fileformat.to_bytes(self._document(), self._tensors())

    def save(self, path: str | os.PathLike) -> None:
        """Writes the pack to a file, whole or not at all.

        Args:
            path: The file, by convention `<task>.task.safetensors`; its folder must exist.

        Raises:
            PackError: If the parts no longer fit together.
            OSError: If the file cannot be written.
        """
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TaskPack":
        """Reads a pack and checks all of it.

        Raises:
            PackError: If the file is no pack, damaged, or of a newer format.
            OSError: If the file cannot be read.
        """
        with Path(path).open("rb") as stream:
            return cls._read(fileformat.PackReader(stream, os.fstat(stream.fileno()).st_size, os.fspath(path)))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "bytes") -> "TaskPack":
        """Does what `load` does with the content of a file; `name` stands for the file in errors."""
        return cls._read(fileformat.PackReader(io.BytesIO(data), len(data), name))

    @classmethod
    def _read(cls, reader: fileformat.PackReader) -> "TaskPack":
        document = reader.document
        try:
            fileformat.check_document(document, _DOCUMENT_KEYS)
            masks, norm, zeros = fileformat.read_tables(document)
            planes = {path: codec.packed_shape(shape, document["mask_kind"]) for path, shape in masks.items()}
            features, classes = document["features"], len(document["class_names"])
            tensors = reader.tensors(
                {f"mask/{path}": (_UINT8, shape) for path, shape in planes.items()}
                | {f"norm/{path}": (_FLOAT32, shape) for path, shape in norm.items()}
                | {"head/kernel": (_FLOAT32, (features, classes)), "head/bias": (_FLOAT32, (classes,))}
            )
            pack = cls(
                masks={path: MaskBits(shape, tensors[f"mask/{path}"]) for path, shape in masks.items()},
                norm={path: tensors[f"norm/{path}"] for path in norm},
                head={"kernel": tensors["head/kernel"], "bias": tensors["head/bias"]},
                **{field: document[field] for field in _PLAIN_FIELDS},
            )
            if pack.zeros != zeros:
                raise PackError("its fractions of zeros are not those of its masks.")
            return pack
        except PackFileError:
            raise
        except PackError as error:
            raise reader.error(f"is damaged or was not written by this package: {str(error).rstrip('.')}") from error

    def check(self) -> None:
        """Checks that the parts fit together.

        Raises:
            PackError: With the first thing that does not.
        """
        _check_fields(self)
        if (self.mask_kind == "none") != (not self.masks) or (self.threshold is None) != (not self.masks):
            raise PackError(
                "A pack with masks has a mask kind and a threshold, one without has none. Received: "
                f"{len(self.masks)} masks, mask_kind={self.mask_kind!r}, threshold={self.threshold!r}."
            )
        for path, mask in self.masks.items():
            try:
                fileformat.check_shape(mask.shape)
                codec.check(mask.packed, mask.shape, self.mask_kind)
            except ValueError as error:
                raise PackError(f"The mask of {path!r} is wrong: {error}") from error
        classes = len(self.class_names)
        if self.head.keys() != {"kernel", "bias"}:
            raise PackError(f"The head must hold 'kernel' and 'bias'. Received: {sorted(self.head)}.")
        kernel, bias = self.head["kernel"], self.head["bias"]
        if kernel.ndim != 2 or kernel.shape[1] != classes or bias.shape != (classes,):
            raise PackError(
                f"The head of a task with {classes} classes has a kernel [F, {classes}] and a bias [{classes}]. "
                f"Received: {list(kernel.shape)} and {list(bias.shape)}."
            )
        for name, value in [(f"head/{k}", v) for k, v in self.head.items()] + list(self.norm.items()):
            if value.dtype != _FLOAT32 or not value.size:
                raise PackError(f"{name!r} must be float32 and not empty. Received: {value.dtype} {value.shape}.")
            if not np.isfinite(value).all():
                raise PackError(f"{name!r} holds NaN or infinite values.")

    def _document(self) -> dict[str, Any]:
        """Returns all but the arrays, as JSON values."""
        return {field: getattr(self, field) for field in _PLAIN_FIELDS} | {
            "codec": codec.CODEC,
            # Lists, as their order is that of the layers, and keys are sorted in the file.
            "masks": [{"path": p, "shape": list(m.shape), "zeros": m.zeros} for p, m in self.masks.items()],
            "norm": [{"path": p, "shape": list(v.shape)} for p, v in self.norm.items()],
            "features": int(self.head["kernel"].shape[0]),
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        return (
            {f"mask/{path}": mask.packed for path, mask in self.masks.items()}
            | {f"norm/{path}": value for path, value in self.norm.items()}
            | {f"head/{name}": value for name, value in self.head.items()}
        )


# The fields that are JSON values as they are.
_PLAIN_FIELDS = tuple(f.name for f in dataclasses.fields(TaskPack) if f.name not in ("masks", "norm", "head"))
_DOCUMENT_KEYS = {*_PLAIN_FIELDS, "codec", "masks", "norm", "features", "checksum"}


def check_task_name(name: str) -> str:
    """Returns the name of a task if it can be part of a file name.

    Raises:
        PackError: If it is empty, begins with a dot, or has slashes or line ends in it.
    """
    if not name or name.startswith(".") or any(character in name for character in "/\\\0\n\r"):
        raise PackError(
            f"A task's name is part of a file name: no slashes, no line ends, no dot in front. Received: {name!r}."
        )
    return name


def _check_fields(pack: TaskPack) -> None:
    for field in _TEXTS:
        value = getattr(pack, field)
        if not isinstance(value, str) or not value:
            raise PackError(f"{field} must be a text that is not empty. Received: {value!r}.")
    # An empty string stands for no augmentation.
    if not isinstance(pack.eval_augment, str):
        raise PackError(f"eval_augment must be an augmentation string. Received: {pack.eval_augment!r}.")
    check_task_name(pack.task)
    if pack.mask_kind not in MASK_KINDS:
        raise PackError(f"mask_kind must be one of {MASK_KINDS}. Received: {pack.mask_kind!r}.")
    names = pack.class_names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PackError("class_names must be a list of texts that is not empty.")
    if len(set(names)) != len(names):
        raise PackError("class_names must be different from one another.")
    if type(pack.image_size) is not int or pack.image_size < 1:
        raise PackError(f"image_size must be a positive integer. Received: {pack.image_size!r}.")
    threshold = pack.threshold
    if threshold is not None and (type(threshold) not in (int, float) or not math.isfinite(threshold)):
        raise PackError(f"threshold must be a finite number or None. Received: {threshold!r}.")
    for field in _DICTS:
        if not isinstance(getattr(pack, field), dict):
            raise PackError(f"{field} must be a dict. Received: {getattr(pack, field)!r}.")
    if not all(isinstance(errors, dict) for errors in pack.errors.values()):
        raise PackError("errors must map the name of a split to a dict of errors.")
    if pack.format_version != FORMAT_VERSION:
        raise PackError(f"format_version must be {FORMAT_VERSION}. Received: {pack.format_version!r}.")
    try:
        datetime.datetime.fromisoformat(pack.created)
    except (TypeError, ValueError) as error:
        raise PackError(f"created must be a date in ISO 8601. Received: {pack.created!r}.") from error


def _package_versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy", "safetensors")}
    return {"piggyback_tf": __version__, **versions}
