"""How images get from a data set to the network."""

import dataclasses
from typing import Any

from piggyback_tf.settings.records import option


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How images get from a data set to the network."""

    augment_train: str = option("", "What happens to training images; by default resize(S,S).")
    augment_eval: str = option("", "What happens to any other image; by default resize(S,S).")
    cache: str = option(
        "auto", "Images after the fixed operations: memory, disk, none, or auto by size.", recorded=False
    )
    cache_limit_mb: int = option(2048, "MiB of memory that cache=auto may take.", recorded=False)
    cache_dir: str = option("", "Folder of cache=disk; by default the user's cache folder.", recorded=False)

    def for_size(self, image_size: int) -> "InputConfig":
        """Returns the same settings with augmentations filled in that were left to the default."""
        default = f"resize({image_size},{image_size})"
        return dataclasses.replace(
            self, augment_train=self.augment_train or default, augment_eval=self.augment_eval or default
        )

    def cache_options(self) -> dict[str, Any]:
        """Returns what `make_dataset` takes of the settings."""
        return {"cache": self.cache, "cache_limit_mb": self.cache_limit_mb, "cache_dir": self.cache_dir or None}
