"""What a step costs on this machine's GPU, in one precision, with or without XLA; gpu.sh runs all of them.

    python benchmarks/gpu.py --precision=bfloat16 --xla
    python benchmarks/gpu.py --wait

Masks with the default recipe and fine-tuning with frozen batch norm and Adam take turns, one step each, on a batch of
random images in memory. `--wait` trains masks on 1,000 JPEGs of 500x375 that it makes, once from their files and once
from a cache, and says which share of the time a step waits for its images. It was not run on a GPU yet.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from common import parser
from input import CROP, make_folder
from overhead import METHODS, make_step


def step_times(network: str, size: int, batch: int, rounds: int, precision: str, xla: bool) -> str:
    """Returns a line with the time of a step of each method, their ratio, and images a second."""
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.training import prepare_devices

    with prepare_devices("none", precision, deterministic=False).scope():
        backbone = load_backbone(network, weights="random", image_size=size)
        steps = {method: make_step(backbone, method, batch, image_size=size, xla=xla) for method in METHODS}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 3):  # The first three compile, and are not counted.
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 3:
                seconds[method].append(time.perf_counter() - start)
    medians = {method: statistics.median(values) for method, values in seconds.items()}
    times = ", ".join(f"{method} {1e3 * median:.1f} ms ({batch / median:.0f}/s)" for method, median in medians.items())
    ratio = medians["piggyback"] / medians["finetune"]
    return (
        f"{network}, {size} px, {batch} images, {precision}, {'XLA' if xla else 'no XLA'}: {times}, ratio {ratio:.3f}"
    )


def waiting(network: str, size: int, batch: int, rounds: int, folder: Path) -> list[str]:
    """Returns a line for each source of images with the share of the time that steps wait for them.

    That is what they take longer than steps on a batch in memory, with which they take turns.
    """
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.data import load_data, make_dataset

    source, augment = load_data(f"folder:{folder}").train, CROP.replace("224", str(size))
    epochs = -(-(rounds + 3) * batch // len(source)) + 1
    lines = []
    for name, preparation, settings in (
        ("files", augment, {"cache": "none"}),
        ("files, --input=fast", augment, {"input": "fast"}),
        ("cache in memory", f"resize(256)|{augment}", {"cache": "memory"}),
    ):
        backbone = load_backbone(network, weights="random", image_size=size)
        images = make_dataset(source, preparation, training=True, batch_size=batch, epochs=epochs, **settings)
        steps = {
            from_memory: make_step(backbone, "piggyback", batch, image_size=size, data=None if from_memory else images)
            for from_memory in (True, False)
        }
        seconds = {True: 0.0, False: 0.0}
        for turn in range(rounds + 3):  # The first three compile, and are not counted.
            for from_memory, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[from_memory] += (time.perf_counter() - start) * (turn >= 3)
        share = max(0.0, 1 - seconds[True] / seconds[False])
        lines.append(f"{network}, {size} px, {batch} images, {name}: {100 * share:.1f} % of the time waits for images")
    return lines


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--network", default="resnet50")
    arguments.add_argument("--size", type=int, default=224, help="Height and width in pixels.")
    arguments.add_argument("--batch", type=int, default=64, help="Images in a step.")
    arguments.add_argument("--rounds", type=int, default=50, help="Steps of each method that are timed.")
    arguments.add_argument("--precision", default="none", choices=("none", "float16", "bfloat16"))
    arguments.add_argument("--xla", action="store_true", help="Compile the step with XLA.")
    arguments.add_argument("--wait", action="store_true", help="Measure how long steps wait for images.")
    options = arguments.parse_args()
    shape = options.network, options.size, options.batch, options.rounds
    if options.wait:
        folder = Path(tempfile.gettempdir()) / "piggyback_benchmarks" / "photographs"
        print("\n".join(waiting(*shape, make_folder(folder))))
    else:
        print(step_times(*shape, options.precision, options.xla), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    main()
