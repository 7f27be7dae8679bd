"""DEN beside other methods on a chain of convolutions: errors, drift of old answers, units, bytes.

    python benchmarks/den.py

DEN learns on chains alone. The one here is the shipped network, shapesnet, without its residual blocks: three
convolutions with the weights that they have there, batch norm, ReLU. Three groups of the handwritten digits are learned
one after another, with the same epochs and optimisers for every method. Weights are trained at ten times the default
rate, since without its blocks the network has much to learn anew.

Drift is how far the answers to test images of the first two tasks are at the end from what they were when the task was
learned: the mean change of a probability, in percent, and the images whose class changed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from common import Results, markdown, mean_and_spread, parser
from tasks import state_folder

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.data import TaskData, load_data, make_dataset
from piggyback_tf.evaluation.text import format_bytes
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.parts.chains import read_chain
from piggyback_tf.training import InputConfig, TrainConfig, train_task

TASKS = {"low": "digits:0-3", "middle": "digits:4-6", "high": "digits:7-9"}
ROWS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "finetune": ("finetune", {}),
    "finetune_sequential": ("finetune_sequential", {}),
    "ewc": ("ewc", {}),
    "packnet": ("packnet", {}),
    "cpg": ("cpg", {}),
    "den": ("den", {}),
    "den, no unit becomes two": ("den", {"den_split": 1e9}),
    "den, all that move become two": ("den", {"den_split": 0.0}),
    "den, no new units": ("den", {"den_units": 0}),
}


def chain() -> Backbone:
    """Returns the shipped network without its residual blocks."""
    network = load_backbone("shapesnet")
    kinds = (keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.ReLU, keras.layers.Rescaling)
    x = network.model.inputs[0]
    for layer in network.model.layers:
        if isinstance(layer, (*kinds, keras.layers.GlobalAveragePooling2D)) and not layer.name.startswith("block"):
            x = layer(x)
    backbone = Backbone.from_model(keras.Model(network.model.inputs[0], x, name="shapesnet_chain"), image_size=32)
    read_chain(backbone.model)
    return backbone


def answers(network: keras.Model, images: Any) -> np.ndarray:
    """Returns the probabilities of a network for batches of images."""
    logits = np.concatenate([network(batch, training=False).numpy() for batch, _ in images])
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def learn(row: str, seed: int, epochs: int) -> dict[str, Any]:
    """Learns the tasks by a method, and measures all after each."""
    name, settings = ROWS[row]
    kind, backbone, memory = METHODS[name], chain(), Memory()
    inputs = InputConfig().for_size(backbone.image_size)
    config = TrainConfig(weights_lr=1e-3, epochs=epochs, seed=seed, chance_epochs=0)
    tasks: dict[str, TaskData] = {task: load_data(spec, seed=seed) for task, spec in TASKS.items()}
    test, labels = {}, {}
    for task, data in tasks.items():
        test[task] = make_dataset(data.test, inputs.augment_eval, batch_size=64, training=False)
        labels[task] = data.test.labels
    first: dict[str, np.ndarray] = {}
    seconds = 0.0
    for task, data in tasks.items():
        method = kind(kind.Config(**settings), memory)
        trained = train_task(method, backbone, data, config, inputs, state_dir=state_folder(f"den/{row}/{seed}/{task}"))
        seconds += trained.seconds
        train = make_dataset(data.train, inputs.augment_eval, batch_size=config.batch_size, training=False)
        memory = method.remember(trained.model, backbone, task, train)
        first[task] = answers(kind(method.config, memory).recall(backbone, task), test[task])
    last = {task: answers(kind(method.config, memory).recall(backbone, task), test[task]) for task in tasks}

    def error(found: np.ndarray, task: str) -> float:
        return 100 * float((found.argmax(axis=1) != labels[task]).mean())

    old = list(tasks)[:-1]
    return {
        "errors": {task: error(last[task], task) for task in tasks},
        "forgetting": float(np.mean([error(last[task], task) - error(first[task], task) for task in old])),
        "drift": 100 * float(np.mean([np.abs(last[task] - first[task]).mean() for task in old])),
        "changed": 100 * float(np.mean([(last[t].argmax(axis=1) != first[t].argmax(axis=1)).mean() for t in old])),
        "system": memory.nbytes + (0 if kind.replaces_base else backbone.nbytes),
        "units": {path: len(array) for path, array in memory.shared.items() if path.endswith("/birth")},
        "replaced": {path: int((array > 0).sum()) for path, array in memory.shared.items() if path.endswith("/death")},
        "seconds": round(seconds, 1),
        "config": dataclasses.asdict(config),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--epochs", type=int, default=20)
    options = arguments.parse_args()
    results, table = Results("den"), []
    for row in ROWS:
        found = [results.run(f"{row}/{seed}", lambda: learn(row, seed, options.epochs)) for seed in options.seeds]  # noqa: B023
        table.append(
            [
                row,
                mean_and_spread([float(np.mean([*one["errors"].values()])) for one in found]),
                *(mean_and_spread([one[name] for one in found]) for name in ("forgetting", "drift", "changed")),
                ", ".join(f"{np.mean([one['units'][path] for one in found]):.0f}" for path in found[0]["units"]),
                ", ".join(f"{np.mean([one['replaced'][path] for one in found]):.0f}" for path in found[0]["replaced"]),
                format_bytes(int(np.mean([one["system"] for one in found]))),
                f"{np.mean([one['seconds'] for one in found]):.0f} s",
            ]
        )
    results.save()
    head = ["method", "mean %", "forgetting", "drift %", "changed %", "units", "of these replaced", "system", "time"]
    print(markdown(head, table))


if __name__ == "__main__":
    main()
