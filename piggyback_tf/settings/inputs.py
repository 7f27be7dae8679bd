"""How images get from a data set to the network."""

import dataclasses
from typing import Any

from piggyback_tf.settings.records import check_choice, check_integer, option

CACHES = ("auto", "memory", "disk", "none", "existing")
CHECKS = ("pixels", "headers")
# How files of training images become pixels.
EXACT = "exact"
INPUTS = (EXACT, "fast")


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How images get from a data set to the network."""

    augment_train: str = option("", "Preparation of training images; by default resize(S,S).")
    augment_eval: str = option("", "Preparation of all other images; by default resize(S,S).")
    input: str = option(
        EXACT,
        "fast: training images sooner, other pixels, no cache.",
        before=EXACT,
    )
    cache: str = option("auto", "Where prepared images are kept: auto, memory, disk, none.", recorded=False)
    cache_limit_mb: int = option(2048, "MiB of memory that cache=auto may take.", recorded=False)
    cache_disk_limit_mb: int = option(20480, "MiB of disk that cache=auto may take.", recorded=False)
    cache_dir: str = option("", "Folder of cache=disk; by default the user's cache folder.", recorded=False)
    check: str = option("pixels", "Before training: pixels decodes all images, headers none.", recorded=False)

    def __post_init__(self) -> None:
        for name, valid in (("input", INPUTS), ("cache", CACHES), ("check", CHECKS)):
            check_choice(name, getattr(self, name), valid)
        for name in ("cache_limit_mb", "cache_disk_limit_mb"):
            check_integer(name, getattr(self, name), 0)

    def for_size(self, image_size: int) -> "InputConfig":
        """Returns the same settings with augmentations filled in that were left to the default."""
        default = f"resize({image_size},{image_size})"
        return dataclasses.replace(
            self, augment_train=self.augment_train or default, augment_eval=self.augment_eval or default
        )

    def cache_options(self) -> dict[str, Any]:
        """Returns what `make_dataset` takes of the settings."""
        return {
            "cache": self.cache,
            "cache_limit_mb": self.cache_limit_mb,
            "cache_disk_limit_mb": self.cache_disk_limit_mb,
            "cache_dir": self.cache_dir or None,
        }

    def existing_cache(self) -> dict[str, Any]:
        """Returns the same for images that are used once: what is cached is taken from there, and nothing is cached."""
        return self.cache_options() | ({} if self.cache == "none" else {"cache": "existing"})
