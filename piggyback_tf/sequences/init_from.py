"""Where a task starts that starts from another: which pack that is, and how it is chosen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Subset, TaskData, make_dataset, surface_data_errors
from piggyback_tf.evaluation.transferability import log_me
from piggyback_tf.file_names import START_FILE
from piggyback_tf.files import with_home
from piggyback_tf.foreign_text import shown
from piggyback_tf.masking import MaskStart
from piggyback_tf.methods.base import AUTO, Method
from piggyback_tf.packs import BaseSpec, PackError, TaskPack
from piggyback_tf.packs.find import find_packs
from piggyback_tf.packs.parts import parts_in_words
from piggyback_tf.remote import is_url
from piggyback_tf.targets import TARGETS
from piggyback_tf.training import InputConfig, TrainingError, check_settings
from piggyback_tf.training.run_folder import damaged

# Training images by which packs are compared: so many, and at least so many for each class.
IMAGES, IMAGES_PER_CLASS = 500, 5
_BATCH = 32


def with_start(
    method: Method,
    backbone: Backbone,
    data: TaskData,
    inputs: InputConfig,
    *,
    seed: int,
    folder: Path | None = None,
    learned: Mapping[str, Path] | None = None,
) -> Method:
    """Returns a method that starts as its `start_source` says; the method itself if it has none.

    With `PACK`, masks start from that pack. With `auto`, they start from one of the packs of the tasks learned before,
    or as usual: from what has features with the highest LogME on training images of the new task. With `auto:PACKS`,
    files, URLs, folders and patterns separated by commas, they start from one of those packs, or as usual.

    Args:
        method: How the task is learned.
        backbone: The base.
        data: The task; only its training images are looked at.
        inputs: Augmentation, for the backbone's size.
        seed: Decides which training images are looked at, and whatever else of the start is random.
        folder: Where `start.json` keeps what was chosen, so that a training that goes on has the same start; None
            keeps nothing.
        learned: The packs of the tasks learned before, by task; None if there is no sequence.

    Raises:
        PackError: If a pack cannot be read, is of another base, or its masks are none to start from.
        ValueError: If `auto` is asked for without a sequence, or for a task of pixels, or the method cannot start from
            the pack.
        TrainingError: If the pack is no longer what it was when the training in the folder began.
    """
    source, kept = method.start_source, folder / START_FILE if folder else None
    if not source:
        return method
    automatic = source == AUTO or source.startswith(f"{AUTO}:")
    candidates = _candidates(source, learned) if automatic else {source: source}
    if automatic and TARGETS[data.target].own_size:
        raise ValueError(
            f"init_from={source!r} compares features of whole images, and {data.name!r} has {TARGETS[data.target]}. "
            "Name one pack: init_from=PACK."
        )
    if automatic and kept and kept.exists():
        origin = _read(kept)
    elif automatic:
        origin = _choose(method, backbone, candidates, _Sample(data, inputs, seed))
    else:
        origin = {"pack": source}
    start = MaskStart(origin=origin)
    if origin["pack"] is not None:
        if origin["pack"] not in candidates:
            raise TrainingError(
                f"This training began with masks that start from {origin['pack']!r}, which is gone. Put it back, or "
                "choose another --output_dir."
            )
        start = _load(method, BaseSpec.of(backbone), candidates[origin["pack"]], origin)
    if folder:
        check_settings(folder, dict(start.origin), file=START_FILE, prefix="")
    return method.starting_from(start)


class _Sample:
    """Some of a task's training images, as they are prepared for evaluation, and their labels."""

    def __init__(self, data: TaskData, inputs: InputConfig, seed: int):
        count = max(IMAGES, IMAGES_PER_CLASS * len(data.class_names))
        chosen = np.random.default_rng(seed).permutation(len(data.train))[:count]
        self.seed, self._images = seed, Subset(data.train, np.sort(chosen))
        self.labels, self._augment = self._images.labels, inputs.augment_eval

    def features(self, network: keras.Model) -> np.ndarray:
        """Returns the features `[N, F]` that a network makes of the images."""
        dataset = make_dataset(self._images, self._augment, batch_size=_BATCH, training=False, cache="none")
        spec = tf.TensorSpec([None, *network.input_shape[1:]], dataset.element_spec[0].dtype)
        # Not Keras' predict: within a strategy's scope it would run the batch on every device.
        forward = tf.function(lambda images: network(images, training=False), jit_compile=False)
        forward = forward.get_concrete_function(spec)
        with surface_data_errors():
            return np.concatenate([forward(images).numpy() for images, _ in dataset])


def _choose(
    method: Method, backbone: Backbone, candidates: Mapping[str, str | Path], sample: _Sample
) -> dict[str, Any]:
    """Returns the name of the best candidate, None if it is to start as usual, and the scores of all."""
    base = BaseSpec.of(backbone)
    scores: list[Any] = []
    for name in (None, *candidates) if candidates else ():
        start = MaskStart() if name is None else _load(method, base, candidates[name], {})
        # As training would start, whatever is masked and however batch norm is learned.
        network = method.starting_from(start).feature_model(backbone, sample.seed)
        scores.append([name, log_me(sample.features(network), sample.labels)])
    best = max(scores, key=lambda entry: entry[1])[0] if scores else None
    if scores:
        shown = ", ".join(f"{score:.4f} {'as usual' if name is None else name}" for name, score in scores)
        logging.info("Masks start %s. LogME: %s", "as usual" if best is None else f"from {best}", shown)
    return {"pack": best, "scores": scores}


def _candidates(source: str, learned: Mapping[str, Path] | None) -> dict[str, str | Path]:
    """Returns the files of the packs that `auto` or `auto:PACKS` names, by what they are called."""
    if source == AUTO:
        if learned is None:
            raise ValueError(
                "init_from='auto' chooses among the tasks of a sequence that were learned before. For a single task, "
                f"name the packs: init_from='{AUTO}:PACKS', files, folders or patterns separated by commas."
            )
        return dict(learned)
    sources = filter(None, (part.strip() for part in source.removeprefix(f"{AUTO}:").split(",")))
    return {file: file for file in find_packs([*sources], f"init_from={AUTO}:")}


def _load(method: Method, base: BaseSpec, path: str | Path, origin: Mapping[str, Any]) -> MaskStart:
    """Reads a pack and returns the start it gives to the method's masks."""
    path = with_home(path)
    if not is_url(path) and Path(path).is_dir():
        raise PackError(f"init_from={str(path)!r} is a folder; '{AUTO}:{path}' chooses one of its packs.")
    try:
        pack = TaskPack.load(path, base)
    except FileNotFoundError as error:
        raise PackError(f"There is no pack {str(path)!r}, named by init_from={method.start_source!r}.") from error
    if not pack.masks:
        task, learner = shown(pack.task), shown(pack.method)
        raise PackError(f"Task {task} was learned by {learner} and has no masks that others could start from.")
    if pack.parts:
        raise PackError(
            f"Task {shown(pack.task)} has {parts_in_words(pack.parts)} beside its masks, without which these "
            "are not what they were."
        )
    masks = {path: pack.mask(path) for path in pack.masks}
    record = {**origin, "digest": pack.content_digest()}
    return MaskStart(task=pack.task, kind=pack.mask_kind, masks=masks, norm=pack.norm, origin=record)


def _read(path: Path) -> dict[str, Any]:
    try:
        origin = json.loads(path.read_text())
        return {key: origin[key] for key in ("pack", "scores") if key in origin or key == "pack"}
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
