"""How much memory a server of an export needs."""

import dataclasses
from pathlib import Path

from ..servable.decode import BYTES_PER_PIXEL
from ..servable.folder import read_description
from ..servable.options import MIB
from ..servable.problem_signatures import shape_of_images
from ..servable.read import read_export
from ..servable.task_tables import Family
from ..servable.unpacked_kernels import memory_needed
from .options import ServingOptions

# The program itself, its libraries and threads.
_SERVER = 512 * MIB
# Features of an image while it goes through a network: two maps of 64 channels in float32 at full size, which is what
# the first block of VGG holds; other networks take less.
_FEATURE_BYTES = 2 * 64 * 4


@dataclasses.dataclass(frozen=True)
class ServerMemory:
    """What a server needs, in bytes.

    Attributes:
        arrays: What both servables of a version hold all the time.
        working: What all calls that run at a time take on top.
        decoding: What they take if each of them holds an image file of the largest size.
        loaded: How many versions stay loaded.
    """

    arrays: int
    working: int
    decoding: int
    loaded: int

    @property
    def request(self) -> int:
        """Megabytes in daily work."""
        return -(-(_SERVER + self.loaded * self.arrays + self.working) // MIB)

    @property
    def limit(self) -> int:
        """Megabytes at most: with a new version loaded before an old one goes, and a quarter for what allocators keep.

        A server that goes beyond it is killed, so that one image must not be enough for that.
        """
        most = _SERVER + (self.loaded + 1) * self.arrays + self.working + self.decoding
        return -(-most * 5 // (4 * MIB))


def image_bytes(family: Family, image_size: int) -> int:
    """Returns the bytes that an image of some tasks takes on its way through the network.

    Args:
        family: The tasks.
        image_size: The side of the base's images.
    """
    height, width = shape_of_images(family, image_size)
    # At the end of a network with an answer for each pixel, its logits and what is made of them.
    return height * width * max(_FEATURE_BYTES, 2 * 4 * family.spec.classes)


def memory_of(versions: list[Path], options: ServingOptions, loaded: int) -> ServerMemory:
    """Returns the memory that a server needs for versions of an export.

    Args:
        versions: The folders of the versions that are loaded now.
        options: How many batches run at a time, and of how many images.
        loaded: How many versions stay loaded when there are enough of them.

    Raises:
        ExportError: If a folder is no whole export.
    """
    arrays = working = pixels = 0
    for folder in versions:
        base, tables, chosen = read_export(folder)
        need = memory_needed(base.layout, tables)
        cache = read_description(folder).get("kernels", chosen.cache)
        if cache == "auto":
            # Earlier versions did not write down what they chose: to unpack what fits.
            cache = "unpacked" if need["unpacked"] <= chosen.memory_limit * MIB else "packed"
        kernels = 4 * base.layout.kernels.length
        # The second servable has the base's weights once more, and no masks.
        second = kernels + 4 * base.layout.rest.length + tables.norms[0].nbytes
        arrays = max(arrays, need[cache] + second)
        images = options.max_batch_size * max(image_bytes(family, base.spec.image_size) for family in tables.families)
        working = max(working, options.cpus * (kernels + images))
        pixels = max(pixels, chosen.max_image_pixels)
    return ServerMemory(arrays, working, options.cpus * pixels * BYTES_PER_PIXEL, loaded)
