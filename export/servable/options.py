"""What can be chosen about a SavedModel."""

import dataclasses

from piggyback_tf.settings import option
from piggyback_tf.settings.records import check_choice, check_integer

CACHES = ("auto", "packed", "unpacked")
IMAGE_DTYPES = ("uint8", "float32")
# What memory is counted in, here and where servers are configured.
MIB = 2**20
# Where Pillow begins to warn of decompression bombs; an image of this size takes a quarter of a gigabyte in RGB.
MAX_PIXELS = 89_478_485


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Settings of an export; the fields are flags of `python -m export.saved_model`.

    Raises:
        ValueError: If one is not valid.
    """

    cache: str = option(
        "auto",
        "Masked kernels: unpacked once (fast, large), packed (unpacked in every call), or auto: packed if there "
        "are more than four tasks.",
    )
    memory_limit: int = option(4096, "MiB of memory for all arrays of the export; larger exports are refused.")
    top_k: int = option(5, "How many classes the signature `encoded` returns.")
    image_dtype: str = option("uint8", "Type of the images in a call: uint8 or float32, in [0, 255].")
    max_image_pixels: int = option(
        MAX_PIXELS,
        "Pixels (width times height) of the largest JPEG or PNG file that is decoded. It determines the memory of a "
        "server.",
    )

    def __post_init__(self) -> None:
        check_choice("cache", self.cache, CACHES)
        check_choice("image_dtype", self.image_dtype, IMAGE_DTYPES)
        for name in ("memory_limit", "top_k"):
            check_integer(name, getattr(self, name), 1)
        check_integer("max_image_pixels", self.max_image_pixels, 1, MAX_PIXELS)
