"""The file of a task for models that take masks as inputs: exactly the arrays that the model takes, and what they mean.

Reading and writing it needs numpy and safetensors, not TensorFlow.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.packs.container import canonical_json

SUFFIX = ".inputs.safetensors"
METADATA_KEY = "piggyback_tf.task_inputs"
FORMAT = 1
# The bias of classes that a task does not have. Softmax makes exactly 0 of it, and it is a number in float16, too.
NO_CLASS = -3e4


@dataclasses.dataclass(frozen=True, eq=False)
class TaskInputs:
    """A task as a model takes it.

    Attributes:
        arrays: `mask` uint8, `norm` float32, `head` float32 `[F, C]`, `bias` float32 `[C]`, C being the classes that
            the model has room for; without `mask` or `norm` if the model takes none.
        description: The task's name, labels, base, how its images are prepared, the digest of the format, and the
            SHA-256 of the mask.
    """

    arrays: Mapping[str, np.ndarray]
    description: Mapping[str, Any]

    @property
    def labels(self) -> list[str]:
        """The names of the classes; so many of the model's outputs mean something."""
        return self.description["labels"]

    @classmethod
    def of(cls, pack: TaskPack, mask: np.ndarray, norm: np.ndarray, classes: int, layout: str) -> "TaskInputs":
        """Returns the inputs of a task.

        Args:
            pack: The task.
            mask: Its mask as the model takes it, uint8; empty if it takes none.
            norm: Its batch norm as the model takes it, float32; empty if it takes none.
            classes: How many classes the model has room for.
            layout: The digest of the model's `InputFormat`.
        """
        room = classes - len(pack.class_names)
        arrays = {
            "mask": mask,
            "norm": norm,
            "head": np.pad(pack.head["kernel"], [(0, 0), (0, room)]),
            "bias": np.pad(pack.head["bias"], (0, room), constant_values=NO_CLASS),
        }
        description = {
            "format": FORMAT,
            "task": pack.task,
            "labels": pack.class_names,
            "classes": len(pack.class_names),
            "base": {"name": pack.base_name, "weights": pack.base_weights, "hash": pack.base_hash},
            "image_size": pack.image_size,
            "eval_augment": pack.eval_augment,
            "preprocessing": pack.preprocessing,
            "layout": layout,
            "mask_sha256": hashlib.sha256(mask.tobytes()).hexdigest(),
            "content_digest": pack.content_digest(),
            "created": pack.created,
        }
        return cls({name: array for name, array in arrays.items() if array.size}, description)

    def to_bytes(self) -> bytes:
        """Returns the bytes of the file; equal inputs give equal bytes."""
        return save(dict(self.arrays), metadata={METADATA_KEY: canonical_json(self.description)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TaskInputs":
        """Reads a file.

        Raises:
            PackError: If it is no such file or damaged.
            OSError: If it cannot be read.
        """
        try:
            with safe_open(os.fspath(path), "numpy") as stream:
                description = json.loads((stream.metadata() or {})[METADATA_KEY])
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no dict)
            found = cls(arrays, description)
            if description["format"] != FORMAT:
                raise PackError(
                    f"{os.fspath(path)!r} is of format {description['format']}; this package reads {FORMAT}."
                )
            mask = arrays.get("mask", np.zeros(0, np.uint8))
            if hashlib.sha256(mask.tobytes()).hexdigest() != description["mask_sha256"]:
                raise PackError(f"{os.fspath(path)!r} is damaged: its mask is not the one that was written.")
            description["layout"], found.labels  # noqa: B018 (a file without them is none)
        except PackError:
            raise
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            raise PackError(f"{os.fspath(path)!r} is no file of a task's inputs, or is damaged: {error}.") from error
        return found
