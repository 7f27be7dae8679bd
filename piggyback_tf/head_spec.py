"""Which head a task has, as packs keep it; needs neither TensorFlow nor Keras."""

import dataclasses
from collections.abc import Mapping
from typing import Any

DENSE = "dense"
# Networks see images for an answer at each pixel with sides of a multiple of this, which is how often most halve them.
MULTIPLE = 32


def padded_shape(image_shape: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width that a network for pixels sees: the next multiples of 32.

    What is missing is black, on the right and below, and of no class: answers are cropped to the image.

    Args:
        image_shape: `(height, width)` of the image.
    """
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in image_shape)
    return height, width


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """A head: all that its tensors and what it computes with them follow from, beside the network.

    Attributes:
        kind: Name of the head, a key of `HEADS`.
        classes: Number of classes.
        width: Channels of its feature maps; 0 where it has none of its own.
        image_shape: `(height, width)` of the images, of a head for pixels or boxes; None for others.
    """

    kind: str
    classes: int
    width: int = 0
    image_shape: tuple[int, int] | None = None

    @classmethod
    def of(cls, head: "HeadSpec | int") -> "HeadSpec":
        """Returns the spec of a head, or that of a dense one for a number of classes."""
        return cls(DENSE, head) if isinstance(head, int) else head

    @property
    def padded_shape(self) -> tuple[int, int]:
        """What the network sees in place of `image_shape`, of a head that has one; see `padded_shape`.

        Raises:
            ValueError: If it has none.
        """
        if self.image_shape is None:
            raise ValueError(f"A head of kind {self.kind!r} is none for images of a size of its own.")
        return padded_shape(self.image_shape)

    @property
    def is_dense(self) -> bool:
        """Whether it is one Dense layer on the features, of a kernel `[F, C]` and a bias `[C]`."""
        return self.kind == DENSE

    @property
    def family(self) -> "HeadSpec":
        """One spec for all heads that one trace of a network serves: a dense one serves any number of classes."""
        return dataclasses.replace(self, classes=0) if self.is_dense else self

    def to_json(self) -> dict[str, Any]:
        """Returns the values by name, without those that say nothing."""
        found = dataclasses.asdict(self)
        if self.image_shape is not None:
            found["image_shape"] = list(self.image_shape)
        return {name: value for name, value in found.items() if value not in (0, None)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "HeadSpec":
        """Returns what `to_json` was made of.

        Raises:
            ValueError: If it was made of no head.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        shape = values.get("image_shape")
        numbers = [values.get("classes"), values.get("width", 0), *(shape or ())]
        whole = all(type(number) is int and 0 <= number < 1 << 16 for number in numbers)
        if not (
            set(values) <= names and type(values.get("kind")) is str and whole and (shape is None or len(shape) == 2)
        ):
            raise ValueError(
                f"A head needs a kind, classes, and perhaps width and image_shape. Received: {dict(values)}."
            )
        return cls(values["kind"], values["classes"], values.get("width", 0), tuple(shape) if shape else None)
