"""Why do networks die of masks, and why not with the trust region? A training of cars98 step by step.

    PIGGYBACK_REALDATA=... python benchmarks/collapse.py

MobileNetV2 at 96 px with ImageNet weights, 98 classes of cars, the schedule of 10 epochs of 32, of which the first
three are trained. Of each step: the loss of its batch, the weights that flipped, the zeros in all and in the worst
layer. `results/flip_limit/collapse.json` holds the same for the recipe before the trust region, by this script in a
checkout of that state. Writes results/collapse.json and the figure docs/collapse.svg.
"""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from common import RESULTS, Results, parser
from tasks import INPUTS, mobilenet, realdata

from piggyback_tf.data import load_data
from piggyback_tf.masking import masked_weights
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.training import TrainConfig, train_task

RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "Adam alone": ({}, {"mask_trust": 0.0}),
}
OLD = "flip limit of a layer"
FIGURE = Path(__file__).resolve().parent.parent / "docs" / "collapse.svg"


class Trace(keras.callbacks.Callback):
    """Keeps what each step did to the masks, and ends the training after some epochs."""

    def __init__(self, epochs: int):
        super().__init__()
        self.epochs = epochs
        self.rows: dict[str, list[float]] = {"loss": [], "flips": [], "zeros": [], "worst": []}
        self._sum = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._masks = self._read()

    def _read(self) -> list[np.ndarray]:
        return [weight.read() == 0 for weight in masked_weights(self.model).values()]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        masks = self._read()
        size = sum(mask.size for mask in masks)
        flips = sum(int((new != old).sum()) for new, old in zip(masks, self._masks, strict=True))
        # Keras gives the mean of the epoch so far.
        total = logs["loss"] * (batch + 1)
        self.rows["loss"].append(round(total - self._sum if batch else total, 4))
        self.rows["flips"].append(100 * flips / size)
        self.rows["zeros"].append(100 * sum(int(mask.sum()) for mask in masks) / size)
        self.rows["worst"].append(100 * max(float(mask.mean()) for mask in masks))
        self._sum, self._masks = total, masks

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.stop_training = epoch + 1 == self.epochs


def trace(label: str, epochs: int) -> dict[str, Any]:
    """Returns the steps of a recipe's first epochs."""
    settings, train = RECIPES[label]
    learner, watch = Piggyback(PiggybackConfig(**settings)), Trace(epochs)
    learner.callbacks = lambda model, own=learner.callbacks: [*own(model), watch]
    config = TrainConfig(chance_epochs=0, **train)
    train_task(learner, mobilenet(), load_data(f"folder:{realdata() / 'cars98'}"), config, INPUTS)
    return watch.rows


def draw(traces: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draws loss, flips and zeros by step, a line for each recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    panels = figure.subplots(3, sharex=True)
    names = {"loss": "loss of the batch, nats", "flips": "flips, % of all weights", "zeros": "zeros, %"}
    for panel, (name, title) in zip(panels, names.items(), strict=True):
        for label, rows in traces.items():
            values = np.maximum(rows[name], 1e-5) if name != "loss" else rows[name]
            panel.plot(np.arange(1, len(values) + 1), values, label=label, linewidth=1)
        panel.set_ylabel(title)
        if name != "loss":
            panel.set_yscale("log")
    panels[0].axhline(np.log(98), color="grey", linestyle=":", label="guessing, ln 98")
    panels[0].legend()
    panels[-1].set_xlabel("step")
    # Without the date equal numbers give equal files.
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="RECIPE")
    arguments.add_argument("--epochs", type=int, default=3)
    options = arguments.parse_args()
    results = Results("collapse")
    traces = {label: results.run(label, lambda label=label: trace(label, options.epochs)) for label in options.recipes}
    old = RESULTS / "flip_limit" / "collapse.json"
    if old.exists():
        traces[OLD] = json.loads(old.read_text())["rows"]["default"]
    draw(traces, FIGURE)
    for label, rows in traces.items():
        last = {name: round(values[-1], 3) for name, values in rows.items()}
        print(f"{label}, step {len(rows['loss'])}: {last}")


if __name__ == "__main__":
    main()
