"""What masks cost in training: time of a step and peak memory against plain fine-tuning.

    python benchmarks/overhead.py

ResNet-50 at 96 px, batch 16, and MobileNetV2 at 96 px, batch 32. Both models, the masked one with the default recipe
and the fine-tuned one with frozen batch norm and Adam, live in one process and take turns, one step each; the ratio is
that of the medians. Peak memory is that of a process of its own for each. Writes results/overhead.json.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import Results, in_new_process, markdown, parser, peak_mib

SETTINGS = {"resnet50": 16, "mobilenet_v2": 32}
METHODS = ("finetune", "piggyback")
STEPS_PER_EPOCH = 100


def make_step(
    backbone: Any,
    method: str,
    batch: int,
    *,
    image_size: int = 96,
    xla: bool = False,
    data: Any = None,
    **settings: Any,
) -> Callable[[], Any]:
    """Returns a function that takes one training step.

    Args:
        backbone: The base.
        method: The method.
        batch: Images in a step.
        image_size: Their height and width.
        xla: Whether XLA compiles the step.
        data: Batches without an end; by default one of random images in memory, again and again.
        **settings: Those of the method.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from piggyback_tf.methods import METHODS as registry
    from piggyback_tf.training import TrainConfig, make_optimizer

    made = registry[method](registry[method].Config(**settings))
    model = made.build(backbone, 10)
    optimizer = make_optimizer(made, model, TrainConfig(batch_size=batch), STEPS_PER_EPOCH)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=xla)
    generator = np.random.default_rng(0)
    images = tf.constant(generator.uniform(0, 255, (batch, image_size, image_size, 3)).astype("float32"))
    labels = tf.constant(generator.integers(0, 10, batch))
    model.make_train_function()
    iterator = iter(data or tf.data.Dataset.from_tensors((images, labels)).repeat())
    return lambda: model.train_function(iterator)


def alternate(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Times both methods in turn and returns the medians and their ratio."""
    from piggyback_tf.backbones import load_backbone

    backbone = load_backbone(name, weights="random", image_size=96)
    steps = {method: make_step(backbone, method, batch) for method in METHODS}
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds):
        for method in METHODS if turn % 2 else reversed(METHODS):
            start = time.perf_counter()
            steps[method]()
            seconds[method].append(time.perf_counter() - start)
    medians = {method: statistics.median(values) for method, values in seconds.items()}
    return {
        "rounds": rounds,
        "batch": batch,
        "seconds_a_step": medians,
        "ratio": medians["piggyback"] / medians["finetune"],
        "ratio_of_minima": min(seconds["piggyback"]) / min(seconds["finetune"]),
    }


def peak_memory(name: str, method: str, batch: int) -> int:
    """Returns the peak resident memory in MiB of a process that takes ten steps."""
    return in_new_process(__file__, "--peak", name, method, str(batch))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--peak", nargs=3, metavar=("NAME", "METHOD", "BATCH"), help="Used by the script itself.")
    options = arguments.parse_args()
    if options.peak:
        from piggyback_tf.backbones import load_backbone

        name, method, batch = options.peak
        step = make_step(load_backbone(name, weights="random", image_size=96), method, int(batch))
        for _ in range(10):
            step()
        print(math.ceil(peak_mib()))
        return
    results = Results("overhead")
    table = []
    for name, batch in SETTINGS.items():

        def measure(name: str = name, batch: int = batch) -> dict[str, Any]:
            memory = {method: peak_memory(name, method, batch) for method in METHODS}
            return alternate(name, batch, options.rounds) | {"peak_mib": memory}

        row = results.run(name, measure)
        step, peak = row["seconds_a_step"], row["peak_mib"]
        table.append(
            [
                f"{name}, 96 px, batch {batch}",
                *(f"{1000 * step[method]:.0f} ms" for method in METHODS),
                f"{row['ratio']:.3f}",
                *(f"{peak[method]} MiB" for method in METHODS),
            ]
        )
    results.save()
    print(markdown(["network", *(f"{m}, step" for m in METHODS), "ratio", *(f"{m}, peak" for m in METHODS)], table))


if __name__ == "__main__":
    main()
