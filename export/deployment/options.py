"""What can be chosen about a deployment."""

import dataclasses
import re

from piggyback_tf.settings import option
from piggyback_tf.settings.records import check_integer

# A model's name stands in addresses and, in lower case and with hyphens, names what is made in Kubernetes, where 63
# characters are allowed with what is added.
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9._-]{0,38}[A-Za-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_LEAST = {
    "cpus": 1,
    "replicas": 1,
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "poll_seconds": 1,
    "stable": 0,
    "canary": 0,
}


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """Settings of a deployment; the fields are flags of `python -m export.serving`.

    Raises:
        ValueError: If one is not valid.
    """

    name: str = option("piggyback", "Name of the model on the server; the second model is NAME_with_mask.")
    image: str = option("tensorflow/serving:2.21.0", "Docker image of the server.")
    cpus: int = option(4, "CPU cores of a server, and number of batches that run at once.")
    replicas: int = option(1, "Number of servers in Kubernetes.")
    max_batch_size: int = option(32, "Largest number of images that run through the network at once.")
    batch_timeout_micros: int = option(1000, "Microseconds that a request waits for others to be merged with.")
    max_enqueued_batches: int = option(64, "Largest number of waiting batches; further requests get UNAVAILABLE.")
    poll_seconds: int = option(10, "How often the server reads models.config again, in seconds.")
    stable: int = option(0, "Version that gets the label `stable`; 0: none.")
    canary: int = option(0, "Version that gets the label `canary`; 0: none.")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be 1 to 40 letters, digits, dots, hyphens and underscores, begin with a letter and end "
                f"with a letter or digit. Received: name={self.name!r}."
            )
        if not _IMAGE.fullmatch(self.image):
            raise ValueError(f"image must name a Docker image, such as REPOSITORY:TAG. Received: image={self.image!r}.")
        for name, least in _LEAST.items():
            check_integer(name, getattr(self, name), least)

    @property
    def second_name(self) -> str:
        """Name of the servable that is not batched."""
        return f"{self.name}_with_mask"

    @property
    def labels(self) -> dict[str, int]:
        """The labels that are given, and their versions."""
        labels = {"stable": self.stable, "canary": self.canary}
        return {label: version for label, version in labels.items() if version}
