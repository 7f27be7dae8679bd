"""Settings of dynamically expandable networks."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig
from piggyback_tf.settings.records import check_integer, option


@CONFIGS.register("den")
@dataclasses.dataclass(frozen=True)
class DENConfig(MethodConfig):
    """Settings of dynamically expandable networks."""

    trains = ("weights", "head")
    problems = ("class", "multilabel")

    den_sparsity: float = option(0.1, "How much each step shrinks the weights of a new head, as a share of its rate.")
    den_connect: float = option(0.5, "A connection counts from this share of the unit's strongest connection on.")
    den_loss: float = option(0.1, "Validation loss above which a retrained network gets more units.")
    den_units: int = option(8, "Number of units that each layer can get for a task.")
    den_group: float = option(0.1, "How much each step shrinks new units, as a share of their rate.")
    den_split: float = option(0.1, "A unit is split if its weights move by more than this share of their length.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("den_sparsity", "den_loss", "den_group", "den_split"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more. Received: {name}={getattr(self, name)}.")
        if not 0 <= self.den_connect <= 1:
            raise ValueError(f"`den_connect` must be in [0, 1]. Received: den_connect={self.den_connect}.")
        check_integer("den_units", self.den_units, 0)
