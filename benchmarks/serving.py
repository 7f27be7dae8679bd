"""What a SavedModel of many tasks costs a server, against an ordinary SavedModel of the network alone.

    python benchmarks/serving.py

Networks of 224 px with random weights. Each section runs in processes of its own, all on one core; one that is in
results/serving.json is not run again.

- NETWORK, batch 1 and 32: the time of a call, for tasks whose kernels are unpacked once, and packed ones; the network
  with one head that Keras exported; and 32 rows of eight tasks. The calls take turns, and ratios are those of medians.
- NETWORK, tasks: exports of 1, 10, 100 and 1,000 packed tasks: seconds to load, resident memory, disk.
- encoded: what a JPEG costs in the signature `encoded` beyond the same image as pixels.

Models are loaded through TensorFlow's C API, as TensorFlow Serving loads them, by a process without TensorFlow's
Python; seconds are from the call that loads to the answer that it is loaded. `tf.saved_model.load` is timed beside it.

Disk is what the files take, each once: the variables of the second servable, `with_mask`, are hard links to those of
the first. A copy without links takes the variables twice; the table says how much that is. In memory each servable that
is loaded holds its own base; what the second one takes is measured in a process of its own.

The table shows what was measured beside the limit that it must keep; if one does not, the program ends with status 1.
"""

import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bank import CLASSES, PackMaker, check, in_turns, resident
from common import Results, in_new_process, judge, markdown, parser

NETWORKS = ("resnet50", "mobilenet_v2")
COUNTS = (1, 10, 100, 1000)
# Rounds by batch.
ROUNDS = {1: 200, 32: 15}
MIB, SIZE = 2**20, 224
LIMITS = {("unpacked", 1): 1.05, ("packed", 1): 1.35, ("packed", 32): 1.03}
MIXED, MIXED_LIMIT = 8, 1.12


def ratios(name: str, batch: int, quick: bool) -> dict[str, Any]:
    """Times the calls of a batch."""
    rounds = 5 if quick else ROUNDS[batch]
    with tempfile.TemporaryDirectory() as folder:
        in_process("write", name, MIXED, f"{folder}/packed", "packed")
        in_process("write", name, MIXED, f"{folder}/unpacked", "unpacked")
        in_process("write_plain", name, f"{folder}/plain")
        seconds = in_process("time_calls", folder, batch, rounds)
    checks = [
        check(f"{name}, batch {batch}, {kind} against plain", seconds[kind] / seconds["plain"], limit)
        for (kind, rows), limit in LIMITS.items()
        if rows == batch
    ]
    if batch >= MIXED:
        ratio = seconds["packed, mixed"] / seconds["packed"]
        checks.append(check(f"{name}, {batch} rows of {MIXED} tasks against one task", ratio, MIXED_LIMIT))
    return {"rounds": rounds, "seconds": seconds, "checks": checks}


def time_calls(folder: str, batch: int, rounds: int) -> dict[str, float]:
    """Returns the median seconds of each kind of call."""
    images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    mixed, alone = np.arange(batch, dtype=np.int32) % MIXED, np.zeros(batch, np.int32)
    plain = load(f"{folder}/plain")
    (name,) = plain.signatures["serving_default"][0]
    numbers = {name: images.astype(np.float32)}
    calls = {"plain": lambda: plain.run("serving_default", **numbers)}
    for kind in ("packed", "unpacked"):
        run = load(f"{folder}/{kind}/1").run
        calls[kind] = functools.partial(run, "serving_default", images=images, task=alone)
        if batch >= MIXED:
            calls[f"{kind}, mixed"] = functools.partial(run, "serving_default", images=images, task=mixed)
    return in_turns(calls, rounds)


def tasks(name: str, quick: bool) -> dict[str, Any]:
    """Measures exports of more and more packed tasks."""
    rows, checks = {}, []
    for count in COUNTS[:2] if quick else COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            sizes = in_process("write", name, count, folder, "packed")
            row = {"disk": disk(Path(folder)), "disk_without_links": disk(Path(folder), linked=False)}
            row |= {"seconds_to_write": sizes["seconds"]}
            for part, path in (("first", f"{folder}/1"), ("second", f"{folder}/with_mask/1")):
                loaded = [in_process("load_once", path) for _ in range(3)]
                row[part] = {key: statistics.median(each[key] for each in loaded) for key in loaded[0]}
            row["python_seconds_to_load"] = in_process("load_in_python", f"{folder}/1")["seconds"]
        allowed = 1.03 * (sizes["base"] + count * (sizes["weights"] / 8 + sizes["head"])) + 2e6
        checks.append(check(f"{name}, {count} tasks, disk", row["disk"] / 1e6, allowed / 1e6, "MB"))
        if count == 100:
            checks.append(check(f"{name}, {count} tasks, seconds to load", row["first"]["seconds"], 3, "s"))
        rows[count] = row
    return {"counts": rows, "sizes": sizes, "checks": checks}


def write(name: str, count: int, folder: str, cache: str) -> dict[str, float]:
    """Writes an export and returns the bytes of what it has to hold."""
    from export.saved_model import export_saved_model
    from export.servable.options import ExportOptions

    maker = PackMaker(network(name))
    base = maker.backbone
    start = time.perf_counter()
    export_saved_model(base, map(maker, range(count)), folder, ExportOptions(cache=cache, memory_limit=2**20))
    return {
        "seconds": time.perf_counter() - start,
        "base": 4 * base.model.count_params(),
        "weights": sum(kernel.size for kernel in maker.kernels.values()),
        "head": 4 * CLASSES * (base.feature_dim + 1),
    }


def write_plain(name: str, folder: str) -> dict[str, Any]:
    """Writes the network and a head as Keras does."""
    import keras

    base = network(name)
    head = keras.layers.Dense(CLASSES, activation="softmax", name="head")
    keras.Model(base.model.inputs, head(base.model.output)).export(folder, verbose=False)
    return {}


def encoded(quick: bool) -> dict[str, Any]:
    """Times JPEG files, and the images in them as pixels."""
    with tempfile.TemporaryDirectory() as folder:
        in_process("write", "mobilenet_v2", 1, folder, "unpacked")
        seconds = in_process("time_files", folder, 5 if quick else 100)
    return {"seconds": seconds, "milliseconds_a_file": 1e3 * (seconds["file"] - seconds["pixels"]), "checks": []}


def time_files(folder: str, rounds: int) -> dict[str, float]:
    """Returns the median seconds of a call with a JPEG of 333 x 501 pixels, and with pixels."""
    import io

    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (42, 63, 3), np.uint8)
    stream, file, task = io.BytesIO(), np.empty(1, object), np.empty(1, object)
    Image.fromarray(small).resize((501, 333), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    file[0], task[0] = stream.getvalue(), b"task0"
    run = load(f"{folder}/1").run
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    calls = {
        "pixels": lambda: run("by_name", images=pixels, task=task),
        "file": lambda: run("encoded", image_bytes=file, task=task),
    }
    return in_turns(calls, rounds)


def load_once(folder: str) -> dict[str, float]:
    """Returns how long a SavedModel takes to load through the C API, and what it adds to resident memory."""
    from tests.export import c_api

    # The libraries themselves are a server's, too, and no part of a model.
    c_api._load_library()
    before, start = resident(), time.perf_counter()
    session = c_api.Session(folder)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "resident": resident() - before}
    session.close()
    return found


def load_in_python(folder: str) -> dict[str, float]:
    """Returns how long `tf.saved_model.load` takes."""
    import tensorflow as tf

    start = time.perf_counter()
    tf.saved_model.load(folder)
    return {"seconds": time.perf_counter() - start}


def disk(folder: Path, *, linked: bool = True) -> int:
    """Returns the bytes that files take on disk, those with several names once, or once for each name."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    blocks = {(stat.st_ino if linked else index): stat.st_blocks for index, stat in enumerate(files)}
    return 512 * sum(blocks.values())


def network(name: str) -> Any:
    """Returns a base with random weights."""
    from piggyback_tf.backbones import load_backbone

    return load_backbone(name, weights="random", image_size=SIZE)


def load(folder: str) -> Any:
    """Returns the C++ session of a SavedModel."""
    from tests.export.c_api import Session

    return Session(folder)


def sections(quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns the sections by name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in NETWORKS:
        for batch in ROUNDS:
            found[f"{name}, batch {batch}"] = functools.partial(ratios, name, batch, quick)
        found[f"{name}, tasks"] = functools.partial(tasks, name, quick)
    return found | {"encoded": functools.partial(encoded, quick)}


STEPS = {f.__name__: f for f in (write, write_plain, time_calls, time_files, load_once, load_in_python)}


def in_process(step: str, *arguments: Any) -> dict[str, Any]:
    """Returns what a function of this file returns in a new process."""
    return in_new_process(__file__, "--step", json.dumps([step, *arguments]))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="Few rounds and tasks; written to serving_quick.json.")
    arguments.add_argument("--core", type=int, help="The core that everything runs on; the last one by default.")
    arguments.add_argument("--step", type=json.loads, help="Used by the script itself.")
    options = arguments.parse_args()
    if options.step:
        step, *values = options.step
        print(json.dumps(STEPS[step](*values)))
        return
    # Processes inherit it, and TensorFlow makes as many threads as there are cores.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if options.core is None else options.core})
    results, checks = Results("serving_quick" if options.quick else "serving"), []
    for name, measure in sections(options.quick).items():
        checks += results.run(name, measure)["checks"]
    results.save()
    print(costs(results.rows), end="\n\n")
    judge(checks)


def costs(rows: dict[str, Any]) -> str:
    """Returns the table of what has no limit."""
    header = ["packed tasks", "load", "in Python", "memory", "memory of with_mask", "disk", "disk without links"]
    cells = []
    for name in NETWORKS:
        for count, row in rows[f"{name}, tasks"]["counts"].items():
            first, second = row["first"], row["second"]
            seconds = (f"{value:.2f} s" for value in (first["seconds"], row["python_seconds_to_load"]))
            memory = (f"{part['resident'] / MIB:.0f} MiB" for part in (first, second))
            size = (f"{row[key] / 1e6:.1f} MB" for key in ("disk", "disk_without_links"))
            cells.append([f"{name}, {count}", *seconds, *memory, *size])
    file = rows["encoded"]["milliseconds_a_file"]
    return f"{markdown(header, cells)}\n\nA JPEG of 333 x 501 pixels takes {file:.1f} ms more than its pixels."


if __name__ == "__main__":
    main()
