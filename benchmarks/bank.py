"""What a bank of many tasks costs, and whether it ever answers for another task.

    PIGGYBACK_REALDATA=... python benchmarks/bank.py

Each section runs in processes of its own; one that is in results/bank.json is not run again.

- first: ResNet-50 at 224 px, random weights: a pack on disk to the first prediction, in five new processes.
- switch: the same network: a switch between two cached tasks, and between two packed ones, against a copy of the base's
  kernels into fresh memory.
- memory, compressed: MobileNetV2 at 96 px, 1,000 packs in one bank, or 200 compressed ones: resident memory before, and
  after all of them were added and had predicted once, the cache being full.
- answers: 1,000 tasks in random order, alone and mixed, against kernels masked by hand and, 20 of them, `to_keras`.
- threads: eight threads, 10,000 predictions of single and mixed tasks, while tasks are added and removed.

Masks are random with 1.6 to 6.3 % zeros by layer, as many as in trained tasks. The table shows what was measured beside
the limit that it must keep; if one does not, the program ends with status 1.
"""

import functools
import gc
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import Results, in_new_process, judge, parser

MIB = 2**20
TASKS, CLASSES = 1000, 10
# Room for seven tasks of MobileNetV2.
CACHE = 64 * MIB
THREADS, CALLS = 8, 10_000


class PackMaker:
    """Makes packs for a base whose masks and head follow from a number, without a training."""

    def __init__(self, backbone: Any):
        from piggyback_tf.backbones import named_variables

        self.backbone, self._hash, self._structure = backbone, backbone.hash, backbone.structure
        variables = named_variables(backbone.model)
        self.kernels = {path: v.numpy() for path, v in variables.items() if path.endswith("kernel")}

    def __call__(self, number: int) -> Any:
        """Returns the pack of the task `task<number>`."""
        from piggyback_tf.packs import MaskBits, TaskArrays, TaskPack

        rng = np.random.default_rng(number)
        masks = {}
        for path, kernel in self.kernels.items():
            # Of four to six random bits at least one is set.
            draws = rng.integers(0, 256, (rng.integers(4, 7), -(-kernel.size // 8)), np.uint8)
            bits = np.bitwise_or.reduce(draws)
            bits[-1] &= 0xFF >> (-kernel.size % 8)
            masks[path] = MaskBits(kernel.shape, bits[None])
        base = self.backbone
        return TaskPack(
            task=f"task{number}",
            class_names=[f"class {index}" for index in range(CLASSES)],
            base_name=base.name,
            base_hash=self._hash,
            **self._structure.to_json(),
            base_weights=base.weights,
            method="piggyback",
            threshold=5e-3,
            arrays=TaskArrays(
                mask_kind="binary",
                masks=masks,
                norm={},
                head={
                    "kernel": rng.normal(0, 0.02, (base.feature_dim, CLASSES)).astype("float32"),
                    "bias": rng.normal(0, 0.02, CLASSES).astype("float32"),
                },
            ),
            preprocessing=base.preprocessing,
            image_size=base.image_size,
            eval_augment=f"resize({base.image_size},{base.image_size})",
        )


def first() -> dict[str, Any]:
    """Measures the first prediction in several processes."""
    runs = [in_new_process(__file__, "--run", "first_once") for _ in range(5)]
    seconds = [run["first_prediction"] for run in runs]
    return {"runs": runs, "checks": [check("pack on disk to first prediction, slowest of five", max(seconds), 1, "s")]}


def first_once() -> dict[str, Any]:
    """Times what it takes from a pack on disk to its first prediction, and what came before."""
    base, images = resnet()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.task.safetensors"
        PackMaker(base)(0).save(path)
        start = time.perf_counter()
        bank = new_bank(base)
        ready = time.perf_counter()
        bank.add(path)
        added = time.perf_counter()
        bank.predict(images, task="task0")
        end = time.perf_counter()
    return {"bank": ready - start, "add": added - ready, "predict": end - added, "first_prediction": end - ready}


def switch() -> dict[str, Any]:
    """Times switches between tasks, and the copy that they are compared with, in turns."""
    base, images = resnet()
    maker = PackMaker(base)
    cached, packed = new_bank(base), new_bank(base, cache_bytes=0)
    for number in range(2):
        pack = maker(number)
        cached.add(pack)
        packed.add(pack)
    kernels = list(maker.kernels.values())
    names = ["task0", "task1"]
    turn = iter(range(10**9))
    times = in_turns(
        {
            "copy of the kernels": lambda: copy_into_fresh_memory(kernels),
            "switch, packed": lambda: packed._tensors(packed._find(names[next(turn) % 2])),
            "switch, cached": lambda: cached._tensors(cached._find(names[next(turn) % 2])),
            "prediction, same cached task": lambda: cached.predict(images, task="task0"),
            "prediction, other cached task": lambda: cached.predict(images, task=names[next(turn) % 2]),
            "prediction, other packed task": lambda: packed.predict(images, task=names[next(turn) % 2]),
        },
        rounds=30,
    )
    copy = times["copy of the kernels"]
    return {
        "seconds": times,
        "checks": [
            check("switch between packed tasks, in copies of the kernels", times["switch, packed"] / copy, 3),
            check("switch between cached tasks", 1e6 * times["switch, cached"], 100, "µs"),
        ],
    }


def memory(hold: str = "packed", tasks: int = TASKS) -> dict[str, Any]:
    """Measures resident memory with an empty bank and with many tasks."""
    from tasks import mobilenet

    base = mobilenet()
    maker, images = PackMaker(base), random_images(base, 1)
    bank = new_bank(base, cache_bytes=CACHE, hold=hold)
    # Warmed up with a task that goes again.
    bank.add(maker(TASKS)).predict(images, task=f"task{TASKS}")
    bank.remove(f"task{TASKS}")
    before = resident()
    for number in range(tasks):
        bank.add(maker(number))
    for number in np.random.default_rng(0).permutation(tasks):
        bank.predict(images, task=f"task{number}")
    after, held = resident(), bank.nbytes
    weights = sum(kernel.size for kernel in maker.kernels.values())
    bits = sum(-(-kernel.size // 8) for kernel in maker.kernels.values())
    head = 4 * CLASSES * (base.feature_dim + 1)
    allowed = 1.1 * (before + (tasks * (bits + head) if hold == "packed" else held["tasks"]))
    return {
        "masked_weights": weights,
        "bytes": {"before": before, "after": after, "tasks": held["tasks"], "cache": held["cache"], "limit": CACHE},
        "checks": [
            check(f"resident, {tasks} tasks, {hold}, cache of {CACHE // MIB} MiB", after / MIB, allowed / MIB, "MiB"),
            check(f"bytes a task, {hold}", held["tasks"] / tasks, bits + head),
        ],
    }


def answers() -> dict[str, Any]:
    """Compares the answers of a thousand tasks with those of kernels masked by hand."""
    from tasks import mobilenet

    base = mobilenet()
    maker, images = PackMaker(base), random_images(base, 4)
    features, heads = masked_by_hand(maker, images)
    bank = new_bank(base, cache_bytes=CACHE)
    for number in range(TASKS):
        bank.add(maker(number))
    rng = np.random.default_rng(1)
    expected = {number: softmax(features[number] @ kernel + bias) for number, (kernel, bias) in heads.items()}
    alone = mixed = 0.0
    for number in rng.permutation(TASKS):
        found = bank.predict(images, task=f"task{number}")
        alone = max(alone, np.abs(found - expected[number]).max())
    for _ in range(100):
        numbers, places = rng.integers(0, TASKS, 16), rng.integers(0, len(images), 16)
        found = bank.predict(images[places], task=[f"task{number}" for number in numbers])
        rows = [expected[number][place] for number, place in zip(numbers, places, strict=True)]
        mixed = max(mixed, np.abs(np.array(found) - rows).max())
    models = max(
        np.abs(bank.to_keras(f"task{number}").predict_on_batch(images) - expected[number]).max()
        for number in rng.choice(TASKS, 20, replace=False)
    )
    # With another task's masks, or with all of another task, the answer would differ by this at least.
    foreign = nearest_foreign_answer(features, heads, expected)
    return {
        "nearest_foreign_answer": foreign,
        "checks": [
            check(f"{TASKS} tasks in random order, largest deviation", alone, min(1e-4, foreign / 10)),
            check("1,600 images in mixed batches, largest deviation", mixed, min(1e-4, foreign / 10)),
            check("20 tasks as Keras models, largest deviation", models, min(1e-4, foreign / 10)),
            check("traces of the network", bank._run.experimental_get_tracing_count(), 1),
        ],
    }


def threads() -> dict[str, Any]:
    """Compares the answers of eight threads with those of the same calls made alone."""
    from tasks import mobilenet

    base = mobilenet()
    maker, images = PackMaker(base), random_images(base, 16)
    bank = new_bank(base, cache_bytes=CACHE)
    packs = [maker(number) for number in range(32)]
    for pack in packs[:24]:
        bank.add(pack)
    rng = np.random.default_rng(0)
    calls = []
    for index in range(60):
        places = rng.integers(0, len(images), rng.integers(1, 7))
        names = [f"task{number}" for number in rng.integers(0, 24, len(places))]
        calls.append((images[places], names if index % 2 else names[0], int(rng.choice([2, 32]))))
    expected = [bank.predict(*call) for call in calls]
    sequence = rng.integers(0, len(calls), CALLS)
    done, wrong, again, changes = threading.Event(), [], [], []

    def change() -> None:
        # Tasks that nobody asks for come and go, and four that are asked for are away for a moment.
        while not done.is_set():
            number = len(changes) % 8
            bank.add(packs[24 + number])
            bank.remove(f"task{number % 4}")
            time.sleep(0.002)
            bank.add(packs[number % 4])
            bank.remove(f"task{24 + number}")
            changes.append(number)
            time.sleep(0.02)

    def predict(thread: int) -> None:
        for index in sequence[thread::THREADS]:
            while True:
                try:
                    found = bank.predict(*calls[index])
                    break
                except ValueError as error:
                    assert "Unknown task" in str(error)
                    again.append(index)
            if not all(np.array_equal(a, b) for a, b in zip(found, expected[index], strict=True)):
                wrong.append(index)

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS + 1) as pool:
        changing = pool.submit(change)
        try:
            list(pool.map(predict, range(THREADS)))
        finally:
            done.set()
        changing.result()
    return {
        "seconds": time.perf_counter() - start,
        "added_and_removed": 2 * len(changes),
        "asked_again_for_a_task_that_was_away": len(again),
        "checks": [
            check(f"answers of {CALLS} that differ from the same call alone", len(wrong), 0),
            check("traces of the network", bank._run.experimental_get_tracing_count(), 1),
        ],
    }


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "first": first,
    "switch": switch,
    "memory": memory,
    "compressed": lambda: memory("compressed", 200),
    "answers": answers,
    "threads": threads,
}


def check(what: str, value: float, limit: float, unit: str = "") -> dict[str, Any]:
    """Returns a line of the table: a measured value and the highest one that is allowed."""
    return {"what": what, "value": float(value), "limit": float(limit), "unit": unit}


def resnet() -> tuple[Any, np.ndarray]:
    """Returns ResNet-50 with random weights, and an image."""
    from piggyback_tf.backbones import load_backbone

    base = load_backbone("resnet50", weights="random")
    return base, random_images(base, 1)


def new_bank(base: Any, **options: Any) -> Any:
    """Returns an empty bank."""
    from piggyback_tf.packs import TaskBank

    return TaskBank(base, **options)


def random_images(base: Any, count: int) -> np.ndarray:
    """Returns random images, uint8, of the base's size."""
    return np.random.default_rng(0).integers(0, 256, (count, base.image_size, base.image_size, 3), np.uint8)


def copy_into_fresh_memory(arrays: list[np.ndarray]) -> np.ndarray:
    """Copies arrays one behind another into memory that was just taken: the fastest copy that was found."""
    memory, start = np.empty(sum(array.size for array in arrays), np.float32), 0
    for array in arrays:
        np.copyto(memory[start : start + array.size], array.reshape(-1))
        start += array.size
    return memory


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each call, in which what it returns is also dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def masked_by_hand(maker: PackMaker, images: np.ndarray) -> tuple[np.ndarray, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Returns the features `[tasks, images, F]` of a plain copy of the network that is given each task's kernels in
    turn, and the tasks' heads."""
    from piggyback_tf.backbones import named_variables
    from piggyback_tf.surgery import copy_of_base

    copy = copy_of_base(maker.backbone.model)
    variables = named_variables(copy)
    features, heads = [], {}
    for number in range(TASKS):
        pack = maker(number)
        for path, kernel in maker.kernels.items():
            variables[path].assign(np.where(pack.mask(path) == 1, kernel, 0))
        features.append(copy.predict_on_batch(images))
        heads[number] = pack.head["kernel"], pack.head["bias"]
    return np.stack(features), heads


def nearest_foreign_answer(features: np.ndarray, heads: dict, expected: dict[int, np.ndarray]) -> float:
    """Returns by how much, at least, some image's probabilities would differ with any other task's masks, or with any
    other task as a whole."""
    nearest, answers_of_all = np.inf, np.stack(list(expected.values()))
    for number, (kernel, bias) in heads.items():
        for answers_of_others in (softmax(features @ kernel + bias), answers_of_all):
            distance = np.abs(answers_of_others - expected[number]).max(axis=(1, 2))
            nearest = min(nearest, np.delete(distance, number).min())
    return float(nearest)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--run", metavar="NAME", help="Used by the script itself.")
    options = arguments.parse_args()
    if options.run:
        print(json.dumps(first_once() if options.run == "first_once" else SECTIONS[options.run]()))
        return
    results = Results("bank")
    checks = []
    for name in SECTIONS:
        # The first section starts processes of its own.
        row = results.run(
            name, first if name == "first" else functools.partial(in_new_process, __file__, "--run", name)
        )
        checks += row["checks"]
    results.save()
    judge(checks)


if __name__ == "__main__":
    main()
