"""How networks scale their images. Importing this file does not load TensorFlow."""

import dataclasses

# The modes of `preprocess_images`, as they are written in task packs and tables.
DESCRIPTIONS = {
    "tf": "tf: x / 127.5 - 1",
    "torch": "torch: (x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)",
    "caffe": "caffe: RGB to BGR, minus (103.939, 116.779, 123.68)",
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How a network scales its images.

    Attributes:
        mode: The mode of `preprocess_images` that goes before the network; None if the network scales images itself.
        description: The same for people, in one line. What is done never depends on it.
    """

    mode: str | None
    description: str

    @classmethod
    def before(cls, mode: str) -> "Scaling":
        """Returns the scaling by a mode of `preprocess_images`."""
        return cls(mode, DESCRIPTIONS[mode])

    @classmethod
    def inside(cls, formula: str) -> "Scaling":
        """Returns the scaling by the network itself."""
        return cls(None, f"inside the network: {formula}")
