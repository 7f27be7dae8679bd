"""How small are packs, and how quickly are they opened?

    PIGGYBACK_REALDATA=... python benchmarks/pack_size.py

1. Masks that were trained (the three sets of real_images.py, MobileNetV2, seed 0; its packs are taken where they lie,
   or trained now): coded bytes with the rates and channel classes that the decoder needs, against the entropy
   that each layer would have if its weights were dropped independently, against a bit and a byte a weight, and against
   xz on the packed bits; the whole file; what other information would give: another task's mask, the base's weights.
2. Masks of ResNet-50's shapes without structure, dropped independently with the average zeros that the Piggyback paper
   reports, more in deeper layers as in its figure 3.
3. The head: its bytes beside the mask's, and what float16 does to the test error.
4. Decoding and checking at ResNet-50's size, a pack as a whole.
5. Encoding the largest layer that there is, VGG-16's first dense one, whose channels differ: processor time, in turn.

Writes results/pack_size.json, and ends with an error if a limit is exceeded.
"""

import dataclasses
import lzma
import math
import statistics
import sys
import time

import numpy as np
from common import Results, markdown, parser, realdata
from tasks import INPUTS, SETS, mobilenet, state_folder, train_and_test

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.data import load_data, make_dataset
from piggyback_tf.evaluation import evaluate
from piggyback_tf.file_names import pack_name
from piggyback_tf.packs import MaskBits, TaskBank, TaskPack
from piggyback_tf.packs.bits import MASK_VALUES, count_zeros, pack_bits
from piggyback_tf.packs.codec import CODECS, encode
from piggyback_tf.training import TrainConfig

STATIC_LIMIT, BEST_LIMIT, SPEED_LIMIT = 1.01, 0.95, 60e6
# How many times as long as the static codec the best one may take to encode the largest layer.
ENCODE_LIMIT, LARGEST = 8, (25088, 4096)
# Average zeros in percent: Flowers, CUBS, Cars, Sketch, WikiArt.
PAPER_ZEROS = {"Flowers": 4.5, "CUBS": 13.0, "Cars": 16.5, "Sketch": 24.5, "WikiArt": 31.5}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=7, help="Times that a pack is opened.")
    options = arguments.parse_args()
    results, backbone = Results("pack_size"), mobilenet()
    packs = {name: trained_pack(backbone, name) for name in SETS}
    failures = []

    trained = {name: sizes(pack.masks) | {"file": len(pack.to_bytes())} for name, pack in packs.items()}
    paper = {name: sizes(paper_masks(zeros)) for name, zeros in PAPER_ZEROS.items()}
    results.rows = {"trained": trained, "paper": paper}
    print(size_table(trained, "file"), "\n")
    print(size_table(paper), "\n")
    for name, row in {**trained, **paper}.items():
        if row["static"] > STATIC_LIMIT * row["entropy"]:
            failures.append(f"{name}: static codec at {row['static'] / row['entropy']:.4f} of the entropy")
    whole = {key: sum(row[key] for row in trained.values()) for key in ("best", "static", "entropy")}
    results.rows["all trained masks"] = whole
    ratios = {codec: whole[codec] / whole["entropy"] for codec in ("static", "best")}
    print(f"All trained masks together: static {ratios['static']:.4f}, best {ratios['best']:.4f} of the entropy.\n")
    if ratios["best"] > BEST_LIMIT:
        failures.append(f"best codec at {ratios['best']:.4f} of the entropy")

    results.rows["conditions"] = {name: conditions(name, packs, backbone) for name in SETS}
    header = ["task", *next(iter(results.rows["conditions"].values()))]
    rows = [
        [name, *("-" if value is None else f"{value:.4f}" for value in row.values())]
        for name, row in results.rows["conditions"].items()
    ]
    print("Entropy, relative to that of independent weights, if the decoder knew more:\n")
    print(markdown(header, rows), "\n")

    results.rows["heads"] = {name: head_row(backbone, name, pack) for name, pack in packs.items()}
    header = ["task", "mask", "head float32", "file", "error %", "head float16", "file", "error %"]
    print(markdown(header, [[name, *row.values()] for name, row in results.rows["heads"].items()]), "\n")

    results.rows["speed"] = speed(next(iter(packs.values())), options.repeats)
    rows = [[codec, *(f"{value:.1f}" for value in row.values())] for codec, row in results.rows["speed"].items()]
    print(markdown(["masks, codec", *next(iter(results.rows["speed"].values()))], rows))
    for codec, row in results.rows["speed"].items():
        if row["M weights/s"] * 1e6 < SPEED_LIMIT:
            failures.append(f"{codec}: {row['M weights/s']:.1f} million weights a second")

    results.rows["encoding"] = encoding = encode_largest()
    print("\n" + markdown(["largest layer, codec", *encoding["best"]], [[k, *v.values()] for k, v in encoding.items()]))
    slower = encoding["best"]["s"] / encoding["static"]["s"]
    if slower > ENCODE_LIMIT:
        failures.append(f"best codec takes {slower:.1f} times as long as static")
    results.save(failures=failures)
    if failures:
        sys.exit("Limits exceeded:\n" + "\n".join(failures))


def trained_pack(backbone: Backbone, name: str) -> TaskPack:
    """Returns the pack of a task that `real_images.py` has trained, or trains it."""
    state = f"real_images/{name}/piggyback/0"
    path = state_folder(state) / pack_name(name)
    if not path.exists():
        train_and_test(backbone, name, "piggyback", TrainConfig(seed=0), state)
    return TaskPack.load(path)


def paper_masks(percent: float) -> dict[str, MaskBits]:
    """Returns masks of ResNet-50's shapes: independent zeros, `percent` on average, rising linearly with depth."""
    shapes = resnet50_shapes()
    depth = np.linspace(0.2, 1.0, len(shapes))
    counts = np.array([math.prod(shape) for shape in shapes.values()])
    rates = depth * percent / 100 * counts.sum() / (depth * counts).sum()
    rng = np.random.default_rng(0)
    return {
        path: MaskBits(shape, pack_bits(rng.random(shape) >= rate, "binary"))
        for (path, shape), rate in zip(shapes.items(), rates, strict=True)
    }


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of ResNet-50's 53 kernels by path."""
    import keras

    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    return {path: tuple(v.shape) for path, v in named_variables(model).items() if path.endswith("/kernel")}


def sizes(masks: dict[str, MaskBits]) -> dict[str, float]:
    """Returns the bytes of masks in several codes."""
    weights = sum(mask.size for mask in masks.values())
    zeros = sum(count_zeros(mask.packed, mask.shape) for mask in masks.values())
    packed = b"".join(mask.packed.tobytes() for mask in masks.values())
    row = {"weights": weights, "zeros": 100 * zeros / weights, "entropy": entropy(masks) / 8}
    row |= {codec: encode(masks, "binary", codec).nbytes for codec in ("static", "best")}
    return row | {"xz": len(lzma.compress(packed, preset=9)), "1 bit": len(packed), "8 bits": weights}


def size_table(rows: dict[str, dict[str, float]], *extra: str) -> str:
    """Returns a Markdown table of `sizes`."""
    names = ("entropy", "static", "best", "xz", "1 bit", "8 bits", *extra)
    table = [
        [name, f"{row['zeros']:.2f}", f"{8 * row['best'] / row['weights']:.4f}"]
        + [f"{row[key]:,.0f} ({row[key] / row['entropy']:.4f})" for key in names]
        for name, row in rows.items()
    ]
    return markdown(["task", "zeros %", "bits/weight, best", *(f"{name}, bytes" for name in names)], table)


def entropy(masks: dict[str, MaskBits]) -> float:
    """Returns the bits of masks whose weights are dropped independently with a layer's frequency."""
    return sum(cells_entropy(np.array([count_zeros(m.packed, m.shape)]), np.array([m.size])) for m in masks.values())


def cells_entropy(zeros: np.ndarray, counts: np.ndarray) -> float:
    """Returns the bits of weights in cells, of which each has a frequency of zeros."""
    rate = zeros[counts > 0] / counts[counts > 0]
    rate, counts = rate[(rate > 0) & (rate < 1)], counts[counts > 0][(rate > 0) & (rate < 1)]
    return float(-(counts * (rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))).sum())


def conditions(name: str, packs: dict[str, TaskPack], backbone: Backbone) -> dict[str, float | None]:
    """Returns what remains of the independent entropy if the decoder also knew another task's mask, or the weights."""
    pack, kernels = packs[name], named_variables(backbone.model)
    total, result = entropy(pack.masks), {}
    for other in (other for other in packs if other != name):
        bits = 0.0
        for path in pack.masks:
            dropped, given = pack.mask(path).reshape(-1) == 0, packs[other].mask(path).reshape(-1)
            bits += cells_entropy(np.bincount(given, dropped, 2), np.bincount(given, minlength=2))
        result[f"given {other}"] = bits / total
    result = {f"given {other}": result.get(f"given {other}") for other in packs}
    for signed in (False, True):
        bits = 0.0
        for path in pack.masks:
            weights = np.asarray(kernels[path]).reshape(-1)
            weights = weights if signed else np.abs(weights)
            cell = np.digitize(weights, np.quantile(weights, np.arange(1, 8) / 8))
            bits += cells_entropy(
                np.bincount(cell, pack.mask(path).reshape(-1) == 0, 8), np.bincount(cell, minlength=8)
            )
        result["given W in 8 classes" if signed else "given |W| in 8 classes"] = bits / total
    return result


def head_row(backbone: Backbone, name: str, pack: TaskPack) -> dict[str, str]:
    """Returns bytes and test error with a head in float32 and in float16."""
    data = load_data(f"folder:{realdata() / name}", seed=0)
    row = {"mask": f"{encode(pack.masks, pack.mask_kind).nbytes:,}"}
    for dtype in ("float32", "float16"):
        stored = pack.astype(dtype)
        size = sum(value.astype(dtype).nbytes for value in stored.head.values())
        bank = TaskBank(backbone).add(stored)
        dataset = make_dataset(data.test, INPUTS.augment_eval, batch_size=64, training=False)
        error = evaluate(lambda images: bank.predict(images, name, 64), dataset)["top1_error"]  # noqa: B023
        row |= {f"head {dtype}": f"{size:,}", f"file {dtype}": f"{len(stored.to_bytes()):,}"}
        row[f"error {dtype}"] = f"{error:.2f}"
    return row


def speed(pack: TaskPack, repeats: int) -> dict[str, dict[str, float]]:
    """Returns how quickly packs of ResNet-50's size are opened: read, decoded, checked against their checksum."""
    files = {f"{kind}, {codec}": large_pack(pack, kind).to_bytes(codec) for kind in MASK_VALUES for codec in CODECS}
    weights = TaskPack.from_bytes(files["binary, bits"]).masked_weights
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(repeats):
        for name, data in files.items():
            start = time.perf_counter()
            TaskPack.from_bytes(data)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "ms": 1e3 * statistics.median(values),
            "M weights/s": weights / statistics.median(values) / 1e6,
            "bytes": float(len(files[name])),
        }
        for name, values in seconds.items()
    }


def encode_largest(repeats: int = 3) -> dict[str, dict[str, float]]:
    """Returns how long it takes to encode a layer of 103 million weights, and the bytes, by codec."""
    rng = np.random.default_rng(0)
    inputs, outputs = (np.exp(0.7 * rng.standard_normal(side)).astype(np.float32) for side in LARGEST)
    # A part at a time: numbers for all weights would take 400 MB.
    parts = [
        np.packbits(
            rng.random((some.size, outputs.size), np.float32) >= 0.05 * np.outer(some, outputs), bitorder="little"
        )
        for some in np.split(inputs, 49)
    ]
    masks = {"fc1/kernel": MaskBits(LARGEST, np.concatenate(parts)[None])}
    rows: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {codec: [] for codec in CODECS}
    for _ in range(repeats):
        for codec in CODECS:
            start = time.process_time()
            size = encode(masks, "binary", codec).nbytes
            seconds[codec].append(time.process_time() - start)
            rows[codec] = {"s": round(statistics.median(seconds[codec]), 2), "bytes": size}
    return rows


def large_pack(pack: TaskPack, kind: str) -> TaskPack:
    """Returns a pack with masks of ResNet-50's shapes, whose channels differ: the decoder has classes to put back."""
    rng, masks = np.random.default_rng(0), {}
    for path, shape in resnet50_shapes().items():
        rates = 0.15 * rng.gamma(1.5, 0.5, shape[-2])[:, None] * rng.gamma(1.5, 0.5, shape[-1])
        values = (rng.random(shape) >= rates).astype(np.int8)
        if kind == "ternary":
            values[rng.random(shape) < 0.1] *= -1
        masks[path] = MaskBits(shape, pack_bits(values, kind))
    classes = len(pack.class_names)
    head = {"kernel": np.zeros((2048, classes), np.float32), "bias": np.zeros(classes, np.float32)}
    return dataclasses.replace(pack, mask_kind=kind, masks=masks, norm={}, head=head)


if __name__ == "__main__":
    main()
