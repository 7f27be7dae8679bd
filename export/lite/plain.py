"""The design `plain`: a model of each task alone, for programs that know nothing of tasks, bases or masks.

Labels are in its metadata and what makes answers of logits is in its graph, which is what programs such as MediaPipe's
image classifier ask for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import BaseSpec, PackError, TaskBank, TaskPack
from piggyback_tf.packs.base_fit import check_same_weights
from piggyback_tf.problems import PROBLEMS

from ..shared.errors import ExportError
from ..shared.packs import PackSource, fitting_packs, head_of
from .checks import check_answers, probe_images, run_outputs
from .convert import convert
from .flatbuffer import pack_objects, read_objects
from .folder import new_folder
from .kinds import GraphKind, check_answer
from .metadata import LABELS_FILE, add_metadata
from .model_description import append_files
from .options import LiteOptions
from .representative_images import representative_images
from .weights import Network, own_weights

DESIGN, MODEL_SUFFIX = "plain", ".tflite"


def export_plain(backbone: Backbone, packs: Sequence[PackSource], output: Path, options: LiteOptions) -> list[Path]:
    """Writes a `<task>.tflite` for each task: images to what the task answers.

    Args:
        backbone: The base; not changed.
        packs: Packs for this base, or their files.
        output: The folder, which must not be there, or be empty; it is written whole or not at all.
        options: `quantize`, and for `int8` the images that ranges are found on, each task's on its own.

    Returns:
        The files of the models.

    Raises:
        PackError: If a pack is for another base, or two tasks have one name.
        ExportError: If there are no packs, a class's name has several lines, or a model does not answer as the bank.
        DataError: If the images for int8 cannot be read.
        ValueError: If the base cannot be exported.
        OSError: If the files cannot be written.
    """
    tasks = list(fitting_packs(packs, BaseSpec.of(backbone), check=check_answer))
    for pack in tasks:
        check_labels(pack)
    images: Sequence[np.ndarray | None] = [None] * len(tasks)
    if options.quantize == "int8":
        images = representative_images(options.representative_data, tasks, options.representative_images)
    bank, names = TaskBank(backbone), []
    with new_folder(output) as folder:
        for pack, own in zip(tasks, images, strict=True):
            head = head_of(pack)
            kind = GraphKind.of(head, backbone)
            problem = PROBLEMS[pack.problem](pack.class_names, kind.image_shape)
            # Boxes are chosen outside of the graph.
            inside = None if problem.answers_boxes else problem
            weights = own_weights(Network.of(backbone, kind), pack)
            model = read_objects(convert(backbone, kind, weights, options.quantize, problem=inside, images=own))
            add_metadata(model, f"{pack.task} on {backbone.name}", backbone.preprocessing, labels=True)
            content = pack_objects(model)
            outputs = run_outputs(content, probe_images(kind.image_shape))
            found = next(iter(outputs.values())) if inside else outputs
            check_answers(found, bank, pack, options.quantize)
            names.append(f"{pack.task}{MODEL_SUFFIX}")
            (folder / names[-1]).write_bytes(content)
            description: dict[str, Any] = {"design": DESIGN, "quantize": options.quantize, "task": pack.task}
            description |= {"labels": pack.class_names, "eval_augment": pack.eval_augment, "base_hash": backbone.hash}
            if not head.is_dense:
                description |= {"problem": pack.problem, "head": head.to_json()}
            labels = "".join(f"{label}\n" for label in pack.class_names)
            append_files(folder / names[-1], description, {LABELS_FILE: labels})
    return [output / name for name in names]


def check_labels(pack: TaskPack) -> None:
    """Checks that each class has a line of a text file.

    Raises:
        ExportError: If a name holds the end of a line.
    """
    for label in pack.class_names:
        if len(f"{label}.".splitlines()) > 1:
            raise ExportError(
                f"Class {label!r} of task {pack.task!r} has several lines, and the labels of a .tflite are one in a "
                "line; use another design, whose files of tasks hold any text."
            )


def check_is_plain(description: dict, path: Path, backbone: Backbone) -> None:
    """Checks that a model is of this design and of a base.

    Raises:
        PackError: If not.
    """
    if description["design"] != DESIGN:
        raise PackError(f"{str(path)!r} is of design {description['design']!r}, not {DESIGN!r}.")
    check_same_weights(f"The model {str(path)!r} was made of", description["base_hash"], backbone)
