"""What can be chosen about an export."""

import dataclasses

from export.servable.cache import CACHES
from piggyback_tf.methods.base import option
from piggyback_tf.registry import unknown_name_message

IMAGE_DTYPES = ("uint8", "float32")


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
    memory_limit: int = option(4096, "Megabytes for all arrays of the export in memory; what needs more is refused.")
    top_k: int = option(5, "How many classes the signature for encoded images returns.")
    image_dtype: str = option("uint8", "What the images of a call are: uint8 or float32, in [0, 255].")

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ValueError(unknown_name_message("cache", str(self.cache), list(CACHES)))
        if self.image_dtype not in IMAGE_DTYPES:
            raise ValueError(unknown_name_message("image_dtype", str(self.image_dtype), list(IMAGE_DTYPES)))
        for name in ("memory_limit", "top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1. Received: {name}={value!r}.")
