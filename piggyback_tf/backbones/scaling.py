"""How networks scale their images. Importing this file does not load TensorFlow."""

import dataclasses

Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """What a network was trained to have subtracted from its images, and to have them divided by.

    Attributes:
        mean: Of red, green and blue, of pixels in [0, 1].
        deviation: Their standard deviations.
    """

    mean: Colour = (0.485, 0.456, 0.406)
    deviation: Colour = (0.229, 0.224, 0.225)

    @property
    def description(self) -> str:
        """The scaling for people, in one line, as it is written in task packs and tables."""
        return f"torch: (x / 255 - {self.mean}) / {self.deviation}"

    @property
    def rescaling(self) -> tuple[list[float], list[float]]:
        """Scale and offset of each colour, for pixels in [0, 255]."""
        scale = [1 / (255 * deviation) for deviation in self.deviation]
        return scale, [-mean / deviation for mean, deviation in zip(self.mean, self.deviation, strict=True)]


IMAGENET = PixelStatistics()

# The modes of `preprocess_images`, as they are written in task packs and tables.
DESCRIPTIONS = {
    "tf": "tf: x / 127.5 - 1",
    "torch": IMAGENET.description,
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
