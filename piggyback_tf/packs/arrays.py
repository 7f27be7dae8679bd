"""The numbers of a task: what packs, banks, exports and Keras models share."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import bits, parts
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.container import PackError, check_path, check_shape
from piggyback_tf.settings.records import check_choice

DTYPES = ("float32", "float16")
_FLOAT32 = np.dtype("float32")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TaskArrays:
    """Masks, batch norm and head of a task, and what else it changes of its base.

    Attributes:
        mask_kind: `"binary"`, `"ternary"`, or `"none"` if the task has no masks.
        masks: Packed masks by the weight's canonical path, in layer order.
        norm: The variables, float32, of batch norm layers trained for the task, by canonical path.
        head: The variables, float32, of the head by name; of a Dense layer `"kernel"`, `[F, C]`, and `"bias"`, `[C]`.
        parts: What it changes of other weights, or of kernels in another way, float32, by role and path; see
            `piggyback_tf/packs/parts.py`.
    """

    mask_kind: str
    masks: Mapping[str, MaskBits]
    norm: Mapping[str, np.ndarray]
    head: Mapping[str, np.ndarray]
    parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def changed(self) -> dict[str, None]:
        """The canonical paths, in order, of all weights of the base that are otherwise for the task."""
        return dict.fromkeys((*self.masks, *self.norm, *parts.changed_weights(self.parts)))

    @property
    def zeros_total(self) -> float:
        """The fraction of dropped weights over all masks; 0 without masks."""
        weights = sum(mask.size for mask in self.masks.values())
        return sum(bits.count_zeros(m.packed, m.shape) for m in self.masks.values()) / weights if weights else 0.0

    def named(self) -> dict[str, np.ndarray]:
        """Returns all of them by names that differ: `mask/PATH`, as packed bits, `norm/PATH`, `head/NAME`, and the
        parts by theirs."""
        return (
            {f"mask/{path}": mask.packed for path, mask in self.masks.items()}
            | {f"norm/{path}": value for path, value in self.norm.items()}
            | {f"head/{name}": value for name, value in self.head.items()}
            | dict(self.parts)
        )

    def astype(self, dtype: str) -> "TaskArrays":
        """Returns them with all but the masks rounded to a type, one of `DTYPES`; they are float32 in any case.

        Raises:
            PackError: If there is no such type, or a number is too large for it.
        """
        check_choice("dtype", dtype, DTYPES, PackError)

        def rounded(name: str, value: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):
                result = value.astype(dtype).astype(np.float32)
            if not np.isfinite(result).all():
                raise PackError(f"{name!r} holds {np.abs(value).max()}, which is too large for {dtype}.")
            return result

        return dataclasses.replace(
            self,
            norm={path: rounded(path, value) for path, value in self.norm.items()},
            head={name: rounded(f"head/{name}", value) for name, value in self.head.items()},
            parts={name: rounded(name, value) for name, value in self.parts.items()},
        )

    def check(self, spec: HeadSpec, dtype: str) -> None:
        """Checks that the parts fit together.

        Args:
            spec: Which head the task has.
            dtype: One of `DTYPES`, in which all but the masks must lose nothing.

        Raises:
            PackError: With the first thing that does not fit.
        """
        for path in (*self.masks, *self.norm):
            check_path(path)
        if twice := sorted(self.masks.keys() & self.norm.keys()):
            raise PackError(f"{twice[0]!r} has a mask, and is a variable of batch norm.")
        parts.check_parts({name: value.shape for name, value in self.parts.items()})
        for path, roles in parts.changed_weights(self.parts).items():
            if path in self.norm or (parts.VECTOR in roles and path in self.masks):
                raise PackError(f"{path!r} is changed in two ways that exclude each other.")
            if parts.AFFINE in roles and path not in self.masks:
                raise PackError(f"{path!r} has what makes a mask affine, and no mask.")
        for path, mask in self.masks.items():
            try:
                check_shape(mask.shape)
                bits.check_bits(mask.packed, mask.shape, self.mask_kind)
            except ValueError as error:
                raise PackError(f"The mask of {path!r} is wrong: {error}") from error
        for name in self.head:
            check_path(name)
        if spec.is_dense:
            self._check_dense(spec.classes)
        elif not self.head:
            raise PackError(f"The head, {spec.kind!r}, must hold variables.")
        for name, value in [*((f"head/{k}", v) for k, v in self.head.items()), *self.norm.items(), *self.parts.items()]:
            if value.dtype != _FLOAT32 or not value.size:
                raise PackError(f"{name!r} must be float32 and not empty. Received: {value.dtype} {value.shape}.")
            if not np.isfinite(value).all():
                raise PackError(f"{name!r} holds NaN or infinite values.")
            with np.errstate(over="ignore"):
                if not np.array_equal(value.astype(dtype).astype(np.float32), value):
                    raise PackError(f"{name!r} holds numbers that are none of {dtype}; see TaskPack.astype.")

    def _check_dense(self, classes: int) -> None:
        """Raises a `PackError` unless the head is that of a Dense layer for so many classes."""
        if self.head.keys() != {"kernel", "bias"}:
            raise PackError(f"The head must hold 'kernel' and 'bias'. Received: {sorted(self.head)}.")
        kernel, bias = self.head["kernel"], self.head["bias"]
        if kernel.ndim != 2 or kernel.shape[1] != classes or bias.shape != (classes,):
            raise PackError(
                f"The head of a task with {classes} classes has a kernel [F, {classes}] and a bias [{classes}]. "
                f"Received: {list(kernel.shape)} and {list(bias.shape)}."
            )
