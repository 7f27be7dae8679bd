"""Settings of compacting, picking and growing."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, NormConfig
from piggyback_tf.settings.records import check_integer, option


@CONFIGS.register("cpg")
@dataclasses.dataclass(frozen=True)
class CPGConfig(NormConfig):
    """Settings of compacting and picking."""

    trains = ("mask", "adapter", "weights", "norm", "head")
    problems = ("class", "multilabel")
    why_one_machine = "TensorFlow does not send its bytes, which say whose a weight is, from machine to machine"

    cpg_goal: float = option(0.5, "Share of the epochs for fine-tuning; its validation error is the goal.")
    cpg_slack: float = option(0.0, "Points by which the validation error of a pruned network may exceed the goal.")
    cpg_ladder: str = option(
        "0.5,0.75,0.9", "Shares of each layer's free weights that a task tries to leave free; the first is a must."
    )
    cpg_rung: int = option(1, "Epochs of retraining after each pruning, before the error is compared with the goal.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cpg_goal < 1:
            raise ValueError(f"`cpg_goal` must be in (0, 1). Received: cpg_goal={self.cpg_goal}.")
        if self.cpg_slack < 0:
            raise ValueError(f"`cpg_slack` must be 0 or more. Received: cpg_slack={self.cpg_slack}.")
        check_integer("cpg_rung", self.cpg_rung, 1)
        _read(self.cpg_ladder)

    @property
    def rungs(self) -> tuple[float, ...]:
        """The parts of free weights that a task tries to leave free, rising."""
        return _read(self.cpg_ladder)


def _read(ladder: str) -> tuple[float, ...]:
    try:
        rungs = tuple(float(part) for part in ladder.split(","))
    except ValueError:
        rungs = ()
    if not rungs or sorted({*rungs}) != [*rungs] or not rungs[0] >= 0 or not rungs[-1] < 1:
        raise ValueError(
            "`cpg_ladder` must be rising numbers in [0, 1) with commas between them, such as 0.5,0.75,0.9. Received: "
            f"cpg_ladder={ladder!r}."
        )
    return rungs
