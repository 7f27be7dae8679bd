"""What can be chosen about an export for LiteRT."""

import dataclasses

from piggyback_tf.settings import option
from piggyback_tf.settings.records import check_choice, check_integer

from ..edge.piggyback_edge import QUANTIZATIONS

DESIGNS = ("patch", "switch", "input", "plain")
_IMAGES = 100
# As many classes as a file of a task can have.
_MOST = 1 << 20


@dataclasses.dataclass(frozen=True)
class LiteOptions:
    """Settings of an export; the fields are flags of `python -m export.litert`.

    Raises:
        ValueError: If one is not valid.
    """

    design: str = option("patch", "How tasks get into the model: patch, switch, input or plain; see docs/litert.md.")
    quantize: str = option("none", "Type of the weights: none (float32), float16, dynamic or int8.")
    max_classes: int = option(0, "Put the head into the graph, with room for this many classes; 0: keep it outside.")
    compress: bool = option(False, "Compress the masks in the files of tasks: smaller, but slower to read.")
    representative_data: str = option(
        "", "Calibration images for int8: a data spec, or one for each pack; broken images are skipped."
    )
    representative_images: int = option(_IMAGES, "Number of calibration images per task.")

    def __post_init__(self) -> None:
        check_choice("design", self.design, DESIGNS)
        check_choice("quantize", self.quantize, tuple(QUANTIZATIONS))
        for name, least in (("max_classes", 0), ("representative_images", 1)):
            check_integer(name, getattr(self, name), least, _MOST)
        if self.quantize == "int8" and not self.representative_data:
            raise ValueError("quantize=int8 needs images to find the ranges: representative_data is missing.")
        if self.representative_images != _IMAGES and not self.representative_data:
            raise ValueError("representative_images is how many images of representative_data, which is missing.")
