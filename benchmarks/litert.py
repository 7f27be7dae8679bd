"""What LiteRT exports cost on a device, and how well they answer.

    PIGGYBACK_REALDATA=... python benchmarks/litert.py

Each section runs in a process of its own; one that is in results/litert.json is not run again.

- speed NETWORK: 224 px, random weights, one thread. A task that design patch installed on its base, its head applied by
  the patcher, against a .tflite of that task alone, converted in the usual way; verification, installation, sizes.
- inputs NETWORK: the same for the designs switch and input, without and with masks on depthwise convolutions.
- answers QUANTISATION, answers DESIGN QUANTISATION: the three sets of real_images.py, MobileNetV2 at 96 px (its packs
  are taken where they lie, or trained now): every test image against the bank. With integers also against a .tflite of
  the task alone that was quantised in the usual way with the same images.
- own norm: the same in int8 for one of these tasks with batch norm of its own, every variable of which was multiplied
  by 0.9 to 1.1 at random.
- bytes: ten tasks on one base against ten .tflite, one of which is converted for each type.

Ratios are medians over pairs of calls that take turns; the ratio of the fastest calls is beside them. The table shows
what was measured beside the limit that it must keep, if it has one; if one does not, the program ends with status 1.
"""

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bank import PackMaker, check, random_images
from common import Results, in_new_process, judge, parser, realdata

NETWORKS = ("mobilenet_v2", "resnet50")
# Pairs of calls.
ROUNDS = {"mobilenet_v2": 300, "resnet50": 80}
PATCH_LIMIT, SWITCH_LIMIT = 1.03, 1.5
INSTALL_LIMIT, SET_LIMIT = 20, 3
# Percent of images with another most probable class than the bank's; points of test error.
OTHER_LIMITS, ERROR_LIMIT = {"none": 0.0, "float16": 0.5}, 1.0
QUANTIZATIONS, TASKS, REPRESENTATIVE = ("none", "float16", "dynamic", "int8"), 10, 100
MB = 1e6


def speed(name: str) -> dict[str, Any]:
    """Times tasks of design patch, and a model of one of them alone."""
    from export.edge.piggyback_edge import Base, Model, Task, write_file
    from export.lite.patch.task_file import task_bytes
    from export.litert import export_litert

    maker = PackMaker(network(name))
    packs, image = [maker(number) for number in range(2)], random_images(maker.backbone, 1).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_litert(maker.backbone, packs, f"{temporary}/patch")
        plain = interpreter(usual_model(maker.backbone, packs[0], "none"))
        base = Base.load(folder / "base.tflite")
        tasks = [Task.load(folder / f"task{number}.edge", base.manifest) for number in range(2)]
        model = Model(base)
        model.install(tasks[0])
        content = bytes(model.data)
        patched = interpreter(content)
        calls = {
            "plain": lambda: answer(plain, image),
            "patch": lambda: tasks[0].probabilities(answer(patched, image), content),
        }
        difference = float(np.abs(calls["patch"]() - calls["plain"]()).max())
        times = paired(calls, ROUNDS[name])
        turn = iter(range(10**9))
        steps = paired(
            {
                "verify": lambda: Base.load(folder / "base.tflite"),
                "read task": lambda: Task.load(folder / "task0.edge", base.manifest),
                "install": lambda: model.install(tasks[next(turn) % 2]),
                "write to disk": lambda: write_file(folder / "current.tflite", model.data),
                "new interpreter": lambda: interpreter(model.data),
            },
            20,
        )
        size = base.manifest
        weights = sum(size.entries[place].size for place in size.filters)
        head = sum(value.nbytes for value in packs[0].head.values())
        coded = len(task_bytes(tasks[0], base.manifest, compress=True))
    limit = INSTALL_LIMIT if name == "mobilenet_v2" else None
    medians = {step: 1e3 * statistics.median(values) for step, values in steps.items()}
    return {
        "ms": {key: 1e3 * statistics.median(values) for key, values in times.items()} | medians,
        "bytes": {"base": len(base.data), "task": tasks[0].nbytes, "compressed": coded, "weights": weights},
        "checks": [
            *ratios(f"{name}, patch against a plain model", times, "patch", PATCH_LIMIT),
            line(f"{name}, largest difference of both", difference, 1e-4),
            line(f"{name}, install in memory on a verified base", medians["install"], limit, "ms"),
            line(f"{name}, read and verify the base", medians["verify"], None, "ms"),
            line(f"{name}, write to disk besides", medians["write to disk"], None, "ms"),
            line(f"{name}, new interpreter besides", medians["new interpreter"], None, "ms"),
            line(f"{name}, bytes of a task", tasks[0].nbytes, weights / 8 + head + 4096),
            line(f"{name}, bytes of a task with --compress", coded, None),
        ],
    }


def inputs(name: str) -> dict[str, Any]:
    """Times the designs that take masks as inputs, and a model of one task alone."""
    import keras

    from export.lite.inputs.run import StatelessModel, SwitchModel
    from export.lite.options import LiteOptions
    from export.litert import export_litert
    from piggyback_tf.backbones import named_layers

    maker = PackMaker(network(name))
    image, whole = random_images(maker.backbone, 1).astype(np.float32), maker(0)
    layers = (path for path, layer in named_layers(maker.backbone.model) if type(layer) is keras.layers.DepthwiseConv2D)
    depthwise = tuple(f"{path}/" for path in layers)
    cases = {"all layers": whole}
    if depthwise:
        some = {path: mask for path, mask in whole.masks.items() if not path.startswith(depthwise)}
        cases = {"conv, dense": dataclasses.replace(whole, masks=some), **cases}
    calls, setting, checks, sizes = {}, {}, [], {}
    plain = interpreter(usual_model(maker.backbone, whole, "none"))
    calls["plain"] = lambda: answer(plain, image)
    with tempfile.TemporaryDirectory() as temporary:
        for case, pack in cases.items():
            for design, kind in (("switch", SwitchModel), ("input", StatelessModel)):
                key = f"{design}, {case}"
                folder = export_litert(maker.backbone, [pack], f"{temporary}/{key}", LiteOptions(design=design))
                model = kind(folder / "model.tflite")
                task = folder / f"{pack.task}.inputs.safetensors"
                model.set_task(task)
                sizes[key] = {"model": (folder / "model.tflite").stat().st_size, "task": task.stat().st_size}
                calls[key] = functools.partial(model.predict, image)
                if design == "switch":
                    setting[key] = functools.partial(model.set_task, model._task)
    times = paired(calls, ROUNDS[name] // 2)
    # Between predictions, as on a device: what `set_task` reads and writes has left the caches.
    seconds = {key: paired({key: call, "predict": calls[key]}, 100)[key] for key, call in setting.items()}
    for key in times:
        if key == "plain":
            continue
        limited = name == "mobilenet_v2" and key == "switch, conv, dense"
        checks += ratios(f"{name}, {key}, against a plain model", times, key, SWITCH_LIMIT if limited else None)
        if key in setting:
            value = 1e3 * statistics.median(seconds[key])
            checks.append(line(f"{name}, {key}: set_task", value, SET_LIMIT if limited else None, "ms"))
            checks.append(line(f"{name}, {key}: set_task, fastest call", 1e3 * min(seconds[key]), None, "ms"))
    return {
        "ms": {key: 1e3 * statistics.median(values) for key, values in times.items()},
        "bytes": sizes,
        "checks": checks,
    }


def answers(design: str, quantize: str) -> dict[str, Any]:
    """Compares an export of the three trained tasks with the bank, and in integers with the usual way."""
    from tasks import mobilenet

    base = mobilenet()
    return compared(base, trained_packs(base), design, quantize)


def own_norm() -> dict[str, Any]:
    """Compares an int8 export of a task with batch norm of its own."""
    from tasks import mobilenet

    from piggyback_tf.backbones import named_variables
    from piggyback_tf.packs import BaseSpec

    base = mobilenet()
    pack, rng = trained_packs(base)[0], np.random.default_rng(0)
    variables = named_variables(base.model)
    norm = {
        path: (variables[path].numpy() * rng.uniform(0.9, 1.1, variables[path].shape)).astype(np.float32)
        for path in sorted(BaseSpec.of(base).norm_paths)
    }
    return compared(base, [dataclasses.replace(pack, norm=norm)], "patch", "int8")


def compared(base: Any, packs: list[Any], design: str, quantize: str) -> dict[str, Any]:
    """Exports tasks and compares each with the bank on its test images."""
    from export.lite.compare import InputsExport, PatchedExport, compare_lite
    from export.lite.options import LiteOptions
    from export.litert import export_litert
    from piggyback_tf.packs import TaskBank

    options = LiteOptions(design, quantize)
    if quantize == "int8":
        specs = ",".join(f"folder:{realdata() / pack.task}" for pack in packs)
        options = LiteOptions(design, quantize, representative_data=specs, representative_images=REPRESENTATIVE)
    rows, checks = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_litert(base, packs, f"{temporary}/export", options)
        export = (
            PatchedExport(folder / "base.tflite", base) if design == "patch" else InputsExport(folder / "model.tflite")
        )
        for pack in packs:
            files = sorted((realdata() / pack.task / "test").rglob("*.jpg"))
            found = compare_lite(export, TaskBank(base).add(pack), pack, files)
            if found.fault:
                sys.exit(found.fault)
            row = rows[pack.task] = dataclasses.asdict(found)
            what = f"{design} {quantize}{', own norm' if pack.norm else ''}, {pack.task}"
            other = 100 * (1 - found.agreement)
            checks.append(line(f"{what}, another top-1 than the bank's", other, OTHER_LIMITS.get(quantize), "%"))
            if quantize not in OTHER_LIMITS:
                row["usual_error"] = usual_error(base, pack, quantize, files)
                more = found.error - row["usual_error"]
                limit = ERROR_LIMIT if quantize == "int8" else None
                checks.append(line(f"{what}, test error above the usual way's", more, limit, "points"))
    return {"tasks": rows, "checks": checks}


def usual_error(base: Any, pack: Any, quantize: str, files: list[Path]) -> float:
    """Returns the test error in percent of a model of one task that was quantised in the usual way."""
    from export.shared.prepare_image import prepare_image
    from piggyback_tf.data import parse_augment

    model, operations = interpreter(usual_model(base, pack, quantize)), parse_augment(pack.eval_augment)
    wrong = 0
    for file in files:
        image = prepare_image(file.read_bytes(), str(file), operations).astype(np.float32)
        wrong += pack.class_names[answer(model, image[None])[0].argmax()] != file.parent.name
    return 100 * wrong / len(files)


def sizes() -> dict[str, Any]:
    """Measures what ten tasks take on a device."""
    from tasks import mobilenet

    from export.lite.options import LiteOptions
    from export.litert import export_litert

    maker = PackMaker(mobilenet())
    # The names of a trained task's set, for images to quantise with.
    packs = [maker(number) for number in range(TASKS)]
    spec, rows, checks = f"folder:{realdata() / 'dtd10'}", {}, []
    for quantize in QUANTIZATIONS:
        alone = TASKS * len(usual_model(maker.backbone, packs[0], quantize, "dtd10", 10))
        row = rows[quantize] = {"separate": alone}
        for design, compress in (("patch", False), ("patch", True), ("switch", False)):
            if design != "patch" and quantize not in OTHER_LIMITS:
                continue
            data = spec if quantize == "int8" else ""
            options = LiteOptions(design, quantize, 0, compress, data, 10)
            with tempfile.TemporaryDirectory() as temporary:
                folder = export_litert(maker.backbone, packs, f"{temporary}/export", options)
                needed = [path for path in folder.iterdir() if path.suffix not in (".py", ".json")]
                key = f"{design}{', compressed' if compress else ''}"
                row[key] = sum(path.stat().st_size for path in needed)
            what = f"{TASKS} tasks, {quantize}, {key}, of {alone / MB:.1f} MB as separate models"
            checks.append(line(what, row[key] / MB, None, "MB"))
    return {"bytes": rows, "checks": checks}


def network(name: str) -> Any:
    """Returns a network of 224 px with random weights."""
    from piggyback_tf.backbones import load_backbone

    return load_backbone(name, weights="random", image_size=224)


def trained_packs(base: Any) -> list[Any]:
    """Returns the packs of the three sets."""
    from pack_size import trained_pack
    from tasks import SETS

    return [trained_pack(base, name) for name in SETS]


def usual_model(base: Any, pack: Any, quantize: str, images_of: str = "", count: int = REPRESENTATIVE) -> bytes:
    """Returns a .tflite of one task alone, as anyone would convert its Keras model.

    Args:
        base: The base.
        pack: The task.
        quantize: The quantisation; with `int8`, images and probabilities stay float32.
        images_of: The set whose training images find the ranges of int8; that of the task's name by default.
        count: How many of them.
    """
    import tensorflow as tf

    from export.lite.representative_images import representative_images
    from piggyback_tf.packs import TaskBank

    model = TaskBank(base).add(pack).to_keras(pack.task)
    signature = [tf.TensorSpec([1, base.image_size, base.image_size, 3], tf.float32)]
    with tempfile.TemporaryDirectory() as folder:
        # From a SavedModel: from a concrete function the converter leaves variables in quantised models unset.
        model.export(folder, input_signature=signature, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            (images,) = representative_images(f"folder:{realdata() / (images_of or pack.task)}", [pack], count)
            converter.representative_dataset = lambda: ([image[None]] for image in images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return converter.convert()


def interpreter(data: bytes | bytearray) -> Any:
    """Returns an interpreter of one thread."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_content=bytes(data), num_threads=1)
    found.allocate_tensors()
    return found


def answer(model: Any, images: np.ndarray) -> np.ndarray:
    """Returns the output of an interpreter."""
    model.set_tensor(model.get_input_details()[0]["index"], images)
    model.invoke()
    return model.get_tensor(model.get_output_details()[0]["index"])


def paired(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of calls that take turns, each round in the other direction."""
    # Where it may, it goes before other programs.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        order = list(calls.items())
        for name, call in order if turn % 2 else order[::-1]:
            start = time.perf_counter()
            call()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    return seconds


def ratios(what: str, times: dict[str, list[float]], key: str, limit: float | None) -> list[dict[str, Any]]:
    """Returns how many times as long as the plain model a call takes: the median over pairs, and of the fastest."""
    median = statistics.median(a / b for a, b in zip(times[key], times["plain"], strict=True))
    return [line(what, median, limit), line(f"{what}, fastest calls", min(times[key]) / min(times["plain"]), None)]


def line(what: str, value: float, limit: float | None, unit: str = "") -> dict[str, Any]:
    """Returns a line of the table; without a limit it is there to be read."""
    return (
        {"what": what, "value": float(value), "limit": None, "unit": unit}
        if limit is None
        else check(what, value, limit, unit)
    )


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"speed {name}": functools.partial(speed, name) for name in NETWORKS},
    **{f"inputs {name}": functools.partial(inputs, name) for name in NETWORKS},
    **{f"answers patch {quantize}": functools.partial(answers, "patch", quantize) for quantize in QUANTIZATIONS},
    **{
        f"answers {design} {quantize}": functools.partial(answers, design, quantize)
        for design in ("switch", "input")
        for quantize in OTHER_LIMITS
    },
    "own norm": own_norm,
    "bytes": sizes,
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, metavar="SECTION")
    arguments.add_argument("--run", metavar="SECTION", help="Used by the script itself.")
    options = arguments.parse_args()
    if options.run:
        print(json.dumps(SECTIONS[options.run]()))
        return
    results, checks = Results("litert"), []
    for name in options.sections:
        checks += results.run(name, functools.partial(in_new_process, __file__, "--run", name))["checks"]
    results.save()
    judge(checks)


if __name__ == "__main__":
    main()
