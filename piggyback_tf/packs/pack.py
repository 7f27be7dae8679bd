"""TaskPack: everything that one task adds to a frozen base, in one small file.

Reading and writing packs needs numpy and safetensors, not TensorFlow; only `TaskPack.from_model` looks at a model.
"""

import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf import remote
from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.packs import bits, container, format1, format2_to_6
from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.base_fit import BaseSpec, Claims, MisfitError
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.container import PackError, PackFileError
from piggyback_tf.packs.description import DICTS, check_fields
from piggyback_tf.targets import USUAL
from piggyback_tf.version import __version__

if TYPE_CHECKING:
    import keras

    from piggyback_tf.backbones import Backbone


@dataclasses.dataclass(eq=False, kw_only=True)
class TaskPack:
    """A learned task: masks, batch norm and head for one base, and what is known about them.

    Attributes:
        task: The task's name.
        class_names: The classes in the order of the head's outputs.
        base_name: The backbone, for example `"vgg16"`.
        base_hash: The backbone's hash; the masks mean nothing on another base.
        base_structure: SHA-256 of what the backbone computes with its weights, see `Structure`; None in older packs.
        base_answers: What the backbone makes of two images, if `base_structure` does not say all; see `Structure`.
        base_weights: Where the backbone's weights came from, for example `"imagenet"`.
        method: The method that trained the task.
        threshold: The threshold that made the masks; None without masks.
        arrays: Masks, batch norm and head, and what else the task changes; `mask_kind`, `masks`, `norm`, `head` and
            `parts` are theirs.
        problem: What is to be found in an image, the name of a `Problem`, such as `"class"`; see `TARGETS`.
        head_spec: Which head the task has; None stands for a Dense layer for its classes.
        preprocessing: What the backbone does to RGB values of 0 to 255, for the record: it is part of the backbone.
        image_size: Side of the square images that the base was built for, in pixels; see `image_shape`.
        eval_augment: The augmentation string that prepares an image for evaluation.
        settings: The settings of the training.
        errors: Split name to the errors measured there, in percent, and the number of images.
        versions: Package name to version at training; under `"pixels"` that of how image files were decoded.
        dtype: `"float32"`, or `"float16"` if all but the masks is to be stored so; see `astype`.
        created: Date and time in ISO 8601; no part of `content_digest`.
        format_version: Version of the file that the pack came from, or of the one that it would be saved in.

    Raises:
        PackError: If the parts do not fit together.
    """

    task: str
    class_names: list[str]
    base_name: str
    base_hash: str
    base_weights: str
    method: str
    threshold: float | None
    arrays: TaskArrays
    preprocessing: str
    image_size: int
    eval_augment: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    problem: str = USUAL
    head_spec: HeadSpec | None = None
    base_structure: str | None = None
    base_answers: list[float | None] | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    format_version: int | None = None

    def __post_init__(self) -> None:
        self.class_names = list(self.class_names) if isinstance(self.class_names, list | tuple) else self.class_names
        for field in DICTS:
            # What a file would make of it (tuples become lists, keys strings), so that a pack equals its file.
            try:
                setattr(self, field, json.loads(container.canonical_json(getattr(self, field))))
            except (TypeError, ValueError) as error:
                raise PackError(f"The pack's {field} cannot be written as JSON: {error}.") from error
        if self.head_spec is None and isinstance(self.class_names, list):
            self.head_spec = HeadSpec(DENSE, len(self.class_names))
        if self.format_version is None:
            self.format_version = self.saved_version
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
        problem: str = USUAL,
        settings: dict[str, Any] | None = None,
        errors: dict[str, dict[str, Any]] | None = None,
        created: str | None = None,
    ) -> "TaskPack":
        """Takes a trained task out of a model.

        Args:
            model: A task model: the layers of `backbone.model`, masked or not, and a head: a Dense layer named
                `"head"`, or what `problems.add_head` makes.
            task: The task's name.
            class_names: The classes in the order of the head's outputs.
            backbone: The base that the model was made from.
            method: The name of the method that trained it.
            eval_augment: The augmentation string that prepares an image for evaluation.
            problem: What is to be found in an image, the name of a `Problem`.
            settings: The settings of the training.
            errors: Measured errors by split.
            created: Date and time in ISO 8601; now if None.

        Returns:
            The pack.

        Raises:
            PackError: If a kernel of the base was changed: of the base's weights, a pack holds changed vectors alone.
                If the augmentation is none that prepares images for the base.
        """
        from piggyback_tf.packs.capture import capture, check_augment

        found = capture(model, backbone)
        if created is not None:
            found["created"] = created
        check_augment(eval_augment, found["head_spec"].image_shape or (backbone.image_size,) * 2)

        return cls(
            task=task,
            class_names=class_names,
            base_name=backbone.name,
            base_hash=backbone.hash,
            **backbone.structure.to_json(),
            base_weights=backbone.weights,
            method=method,
            problem=problem,
            preprocessing=backbone.preprocessing,
            image_size=backbone.image_size,
            eval_augment=eval_augment,
            settings=settings or {},
            errors=errors or {},
            versions=_package_versions(),
            **found,
        )

    @property
    def mask_kind(self) -> str:
        """`"binary"`, `"ternary"`, or `"none"` if the task has no masks."""
        return self.arrays.mask_kind

    @property
    def masks(self) -> Mapping[str, MaskBits]:
        """Packed masks by the weight's canonical path, in layer order."""
        return self.arrays.masks

    @property
    def norm(self) -> Mapping[str, np.ndarray]:
        """The variables, float32, of batch norm layers trained for the task, by canonical path."""
        return self.arrays.norm

    @property
    def head(self) -> Mapping[str, np.ndarray]:
        """The variables, float32, of the head by name; of a Dense layer `"kernel"`, `[F, C]`, and `"bias"`, `[C]`."""
        return self.arrays.head

    @property
    def parts(self) -> Mapping[str, np.ndarray]:
        """What else the task changes of its base, float32, by role and path, such as `"down/conv1/kernel"`."""
        return self.arrays.parts

    @property
    def saved_version(self) -> int:
        """The version of the file that it is saved in: the oldest that can hold it, of those that are written."""
        return format2_to_6.version_of(self.arrays)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the task's images in pixels: those that its head says, or the base's."""
        return self.head_spec.image_shape or (self.image_size, self.image_size)

    @property
    def head_text(self) -> str:
        """What the head is, for a person: `"kernel 1280x10, bias 10"`."""
        if self.head_spec.is_dense:
            features, classes = self.head["kernel"].shape
            return f"kernel {features}x{classes}, bias {classes}"
        numbers = sum(value.size for value in self.head.values())
        height, width = self.image_shape
        return f"{self.head_spec.kind} of {numbers:,} numbers for {len(self.class_names)} classes at {height}x{width}"

    @property
    def zeros(self) -> dict[str, float]:
        """The fraction of dropped weights by the weight's canonical path."""
        return {path: mask.zeros for path, mask in self.masks.items()}

    @property
    def zeros_total(self) -> float:
        """The fraction of dropped weights over all masks; 0 without masks."""
        return self.arrays.zeros_total

    @property
    def masked_weights(self) -> int:
        """The number of weights that have a mask."""
        return sum(mask.size for mask in self.masks.values())

    def mask(self, path: str) -> np.ndarray:
        """Returns the mask of a weight as an int8 array of the weight's shape.

        Raises:
            KeyError: If the pack has no mask for `path`.
        """
        if path not in self.masks:
            raise KeyError(f"Task {self.task!r} has no mask for {path!r}.")
        return bits.unpack_bits(self.masks[path].packed, self.masks[path].shape, self.mask_kind)

    def astype(self, dtype: str) -> "TaskPack":
        """Returns the pack with all but the masks rounded to a type, in which they are then stored.

        Args:
            dtype: `"float32"` or `"float16"`. In the pack's attributes all is float32 in any case.

        Raises:
            PackError: If there is no such type, or a number is too large for it.
        """
        return dataclasses.replace(self, arrays=self.arrays.astype(dtype), dtype=dtype)

    def content_digest(self) -> str:
        """Returns the SHA-256 of everything in the pack but its date, as hexadecimal digits.

        It does not depend on the codec of the masks, nor on the version of the file.
        """
        content = self._plain() | {
            "masks": [[path, list(mask.shape)] for path, mask in self.masks.items()],
            "norm": [[path, list(value.shape)] for path, value in self.norm.items()],
        }
        if self.parts:
            content["parts"] = [[name, list(value.shape)] for name, value in self.parts.items()]
        del content["format_version"]
        # What was digested before these were recorded has the same digest.
        content = {key: value for key, value in content.items() if key not in _UNSAID or value != _UNSAID[key]}
        return container.digest_of_content(content, self.arrays.named())

    def to_bytes(self, codec: str = "best") -> bytes:
        """Returns the pack as the bytes of its file; equal packs of one date give equal bytes.

        Args:
            codec: How to code the masks: `"best"` (for each layer what is smallest), `"static"` (entropy-coded with one
                rate of zeros for each layer) or `"bits"` (a bit for a weight, two if the mask is ternary).

        Raises:
            PackError: If the parts no longer fit together.
            ValueError: If there is no such codec.
        """
        self.check()
        return format2_to_6.write(self.arrays, self._plain(), self.content_digest(), codec)

    def save(self, path: str | os.PathLike, codec: str = "best") -> None:
        """Writes the pack to a file, whole or not at all.

        Args:
            path: The file, by convention `<task>.task.safetensors`; its folder must exist. Or a URL, such as
                `gs://bucket/birds.task.safetensors`, for which fsspec has a driver.
            codec: See `to_bytes`.

        Raises:
            PackError: If the parts no longer fit together.
            ValueError: If there is no such codec.
            OSError: If the file cannot be written.
        """
        remote.write_bytes(path, self.to_bytes(codec))

    @classmethod
    def load(cls, path: str | os.PathLike, base: BaseSpec | None = None) -> "TaskPack":
        """Reads a pack and checks all of it.

        Args:
            path: The file, or a URL for which fsspec has a driver.
            base: The base that the pack must fit, `BaseSpec.of(backbone)`: what the file says of itself is compared
                with it before memory is taken. Without one, a file may have masks for 150 million weights, and for more
                only if it has a byte for every 32.

        Raises:
            PackError: If the file is no pack, damaged, of a newer format, or of another base.
            OSError: If the file cannot be read.
        """
        if remote.is_url(path):
            return cls.from_bytes(remote.read_bytes(path, container.LARGEST_FILE), os.fspath(path), base)
        with Path(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return cls._read(container.PackReader(stream, size, os.fspath(path)), base)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "bytes", base: BaseSpec | None = None) -> "TaskPack":
        """Does what `load` does with the content of a file; `name` stands for the file in errors."""
        return cls._read(container.PackReader(io.BytesIO(data), len(data), name), base)

    @classmethod
    def _read(cls, reader: container.PackReader, base: BaseSpec | None) -> "TaskPack":
        try:
            if reader.version == 1:
                return cls(**format1.read(reader, _PLAIN_FIELDS, base))
            fields, checksum = format2_to_6.read(reader, _PLAIN_FIELDS, base)
            pack = cls(**fields)
            if pack.content_digest() != checksum:
                raise PackError("its checksum is not that of its content.")
            return pack
        except (PackFileError, MisfitError):
            raise
        except PackError as error:
            raise reader.error(f"is damaged or was not written by this package: {str(error).rstrip('.')}") from error

    @property
    def claims(self) -> Claims:
        """What has to agree with a base, for `check_fits`."""
        masks = {path: mask.shape for path, mask in self.masks.items()}
        norm = {path: value.shape for path, value in self.norm.items()}
        features = self.head["kernel"].shape[0] if self.head_spec.is_dense else None
        parts = {name: value.shape for name, value in self.parts.items()}
        return Claims.of(self._plain(), features, masks, norm, parts)

    def check(self) -> None:
        """Checks that the parts fit together.

        Raises:
            PackError: With the first thing that does not.
        """
        if self.head_spec is not None and not isinstance(self.head_spec, HeadSpec):
            raise PackError(f"head_spec must be a HeadSpec or None. Received: {self.head_spec!r}.")
        check_fields(self._plain())
        if (self.mask_kind == "none") != (not self.masks) or (self.threshold is None) != (not self.masks):
            raise PackError(
                "A pack with masks has a mask kind and a threshold, one without has none. Received: "
                f"{len(self.masks)} masks, mask_kind={self.mask_kind!r}, threshold={self.threshold!r}."
            )
        self.arrays.check(dataclasses.replace(self.head_spec, classes=len(self.class_names)), self.dtype)

    def _plain(self) -> dict[str, Any]:
        """Returns all but the arrays, as JSON values."""
        fields = {field: getattr(self, field) for field in _PLAIN_FIELDS}
        spec = self.head_spec
        return fields | {"head_spec": None if spec is None or spec.is_dense else spec.to_json()}


# Values that are no part of a digest: those of packs of before they were recorded.
_UNSAID = {"base_structure": None, "base_answers": None, "problem": USUAL, "head_spec": None}
# The fields that are JSON values as they are.
_PLAIN_FIELDS = ("mask_kind", *(field.name for field in dataclasses.fields(TaskPack) if field.name != "arrays"))


def _package_versions() -> dict[str, str]:
    # Not at the top: reading a pack needs no Pillow.
    from piggyback_tf.data.images import PIXELS_VERSION

    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy", "safetensors")}
    return {"piggyback_tf": __version__, "pixels": PIXELS_VERSION, **versions}
