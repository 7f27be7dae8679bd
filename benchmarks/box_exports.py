"""What does int8 cost a task of boxes, by what the model's outputs are? AP on the test images, in pixels of the files.

    python benchmarks/box_exports.py runs/cells/cells.task.safetensors voc:PATH

`together` is one tensor of logits and sides, as the head has them for training; `apart` are the same as two tensors;
`answers` are scores and sides in pixels, which is what exports give. Boxes are chosen outside of the model in all of
them. Ranges are found on training images. `bank` is the task bank. Exports of design `patch` are measured beside them.
Writes results/box_exports.json.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from common import Results, markdown, parser

from export.edge.piggyback_edge import chosen_boxes
from export.lite.compare import enter_task, open_export
from export.lite.kinds import GraphKind
from export.lite.options import LiteOptions
from export.lite.weights import Network, own_weights
from export.litert import export_litert
from export.shared.packs import find_base, head_of
from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.commands.common import load_base
from piggyback_tf.data import load_data, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.problems import HEAD_NAME, PROBLEMS, HeadNetwork, Problem, is_head

BANK, FORMS = "bank", ("together", "apart", "answers")
PATCHES = {f"patch {quantize}": quantize for quantize in ("none", "float16", "int8")}
# Training images that ranges are found on.
RANGES = 60


def converted(pack: TaskPack, backbone: Backbone, form: str, images: Sequence[np.ndarray]) -> bytes:
    """Returns a task as a model of int8 with outputs of one of `FORMS`; its images and outputs stay float32."""
    spec = head_of(pack)
    network, weights = (
        HeadNetwork(backbone, spec),
        own_weights(Network.of(backbone, GraphKind.of(spec, backbone)), pack),
    )
    values = [tf.constant(weights[path]) for path in named_variables(backbone.model)]
    head = {path.removeprefix(f"{HEAD_NAME}/"): tf.constant(value) for path, value in weights.items() if is_head(path)}

    def forward(images: tf.Tensor) -> dict[str, tf.Tensor]:
        if form == "together":
            return {"logits": network.logits(values, head, images)}
        if form == "apart":
            return dict(zip(("classes", "sides"), network.parts(values, head, images), strict=True))
        return network.outputs(values, head, images)

    module = tf.Module()
    module.forward = tf.function(forward, [tf.TensorSpec([1, *spec.image_shape, 3], tf.float32, "images")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.forward.get_concrete_function()], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def answers_of(content: bytes, problem: Problem, form: str, images: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the boxes that are chosen of what a model gives, float32 `[N, 100, 6]`."""
    interpreter = Interpreter(model_content=content, num_threads=2)
    run = interpreter.get_signature_runner()
    found = []
    for image in images:
        outputs = run(images=image[None].astype(np.float32))
        if form == "answers":
            found.append(chosen_boxes(outputs["scores"], outputs["sides"], problem.image_shape)[0])
            continue
        logits = outputs["logits"] if form == "together" else np.concatenate([outputs["classes"], outputs["sides"]], -1)
        found.append(problem.predicted(problem.answer(tf.constant(logits))).numpy()[0])
    return np.stack(found)


def patched(pack: TaskPack, backbone: Backbone, quantize: str, data: str, images: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the boxes that an export of design `patch` answers, float32 `[N, 100, 6]`."""
    with tempfile.TemporaryDirectory() as folder:
        ranges = {"representative_data": data, "representative_images": RANGES} if quantize == "int8" else {}
        options = LiteOptions(quantize=quantize, **ranges)
        export_litert(backbone, [pack], Path(folder) / "device", options)
        export = open_export(Path(folder) / "device" / "base.tflite", backbone)
        enter_task(export, pack)
        return np.stack([export.answer(image.astype(np.float32)).found for image in images])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("pack", help="a task of boxes")
    options.add_argument("data", help="its data, such as voc:PATH")
    options.add_argument("--weights", help="those of the base, if the pack's names do not lead to them")
    given = options.parse_args()
    pack, found = find_base(given.pack, None, given.weights)
    backbone, data, operations = load_base(pack, found), load_data(given.data), parse_augment(pack.eval_augment)
    problem = PROBLEMS[pack.problem](pack.class_names, pack.image_shape)
    read = [data.test.read(index) for index in range(len(data.test))]
    originals = [data.test.original(index, image) for index, image in enumerate(read)]
    images = [apply_operations(operations, image) for image in read]
    ranges = [apply_operations(operations, data.train.read(index)) for index in range(RANGES)]
    bank = TaskBank(backbone).add(pack)

    def measure(form: str) -> dict[str, Any]:
        if form == BANK:
            answers = bank.predict(np.stack(images), pack.task)
        elif form in PATCHES:
            answers = patched(pack, backbone, PATCHES[form], given.data, images)
        else:
            answers = answers_of(converted(pack, backbone, form, ranges), problem, form, images)
        told = problem.measured(problem.count_originals(answers, answers, originals, operations))
        return {"ap": 100 - told["ap_error"], "ap50": told["mean_ap50"], "ap_by_class": told["ap"]}

    results, rows = Results("box_exports"), {}
    for form in (BANK, *FORMS, *PATCHES):
        rows[form] = results.run(form, lambda form=form: measure(form))
    cells = [
        [form, *(f"{value:.2f}" for value in (row["ap"], row["ap50"], *row["ap_by_class"].values()))]
        for form, row in rows.items()
    ]
    print(markdown(["outputs", "AP", "AP50", *pack.class_names], cells))
    results.save(images=len(images), ranges=RANGES)


if __name__ == "__main__":
    main()
