"""A task that a server does not have, sent to it with each request; TensorFlow is not needed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piggyback_tf.data import TARGETS, DataError, parse_augment
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.packs.base_fit import check_fits
from piggyback_tf.packs.parts import parts_in_words
from piggyback_tf.top_k import best_classes

from ..servable.folder import DESCRIPTION, described_base
from ..servable.layout import WeightLayout
from ..servable.task_tables import family_of
from ..shared.prepare_image import prepare_image


class SentPackError(Exception):
    """A pack cannot be sent; the message says why."""


class SentPack:
    """A task from its pack, in the form that an export takes.

    Args:
        path: The pack, or its URL.
        export: The export on the server: the folder of a version, or its file `assets/export.json`.

    Attributes:
        task: The task's name.
        inputs: `mask`, `head` and `norm` as the signature `with_mask` takes them; `norm` is None for that of the base.

    Raises:
        SentPackError: If one of both cannot be read, or they do not belong together.
    """

    def __init__(self, path: str, export: str):
        file = Path(export, DESCRIPTION) if Path(export).is_dir() else Path(export)
        try:
            pack = TaskPack.load(path)
            self._operations = parse_augment(pack.eval_augment)
            content = json.loads(file.read_text(encoding="utf-8"))
        except (PackError, DataError, OSError) as error:
            raise SentPackError(str(error)) from error
        except ValueError as error:
            raise SentPackError(f"{str(file)!r} is not the description of an export: {error}.") from error
        try:
            layout = WeightLayout.from_json(content["layout"])
            base = described_base(content, layout)
            self._dtype, self._top_k = np.dtype(content["options"]["image_dtype"]), int(content["options"]["top_k"])
            self._shape = (int(base.image_size),) * 2 + (3,)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SentPackError(f"{str(file)!r} is not the description of an export: {error!r}.") from error
        if not family_of(pack).of_classes:
            raise SentPackError(
                f"Task {pack.task!r} finds {TARGETS.get(pack.problem, pack.problem)}; the signature with_mask takes "
                "tasks with a class for each image. Add this one to the export: export saved_model --add_to."
            )
        try:
            check_fits(pack.claims, base)
        except PackError as error:
            raise SentPackError(f"{error} The base here is that of the export {str(file)!r}.") from error
        if pack.parts:
            raise SentPackError(
                f"Task {pack.task!r} changes its base by more than a mask and batch norm: by "
                f"{parts_in_words(pack.parts)}. The signature with_mask does not take that. Add the task to the "
                "export: export saved_model --add_to."
            )
        try:
            self.inputs = {
                "mask": layout.pack_mask(pack).reshape(-1),
                "head": np.concatenate([pack.head["kernel"], pack.head["bias"][None]]),
                "norm": layout.norm.flatten(pack.norm) if pack.norm else None,
            }
        except PackError as error:
            raise SentPackError(str(error)) from error
        except KeyError as error:
            raise SentPackError(f"Task {pack.task!r} has batch norm of its own, but not {error}.") from error
        self.task, self._classes = pack.task, pack.class_names

    def classify_files(self, client: Any, files: Sequence[bytes]) -> list[dict[str, Any]]:
        """Decodes, prepares and classifies the contents of image files.

        Args:
            client: A `client.Client`.
            files: The contents.

        Returns:
            What `client.Client.classify_files` returns.
        """
        rows = [{"labels": [], "scores": [], "task_ok": True, "image_ok": False} for _ in files]
        images = {}
        for index, data in enumerate(files):
            try:
                image = prepare_image(data, "the image", self._operations)
            except DataError:
                continue
            # A preparation that keeps the ratio of the sides fits images of some sizes alone.
            if image.shape == self._shape:
                images[index] = image
        if not images:
            return rows
        found = client.classify_with_mask(np.stack(list(images.values())).astype(self._dtype), **self.inputs)
        for index, scores, class_id in zip(images, found["probabilities"], found["class_id"], strict=True):
            best = best_classes(scores, self._top_k)
            rows[index] |= {
                "labels": [self._classes[i] for i in best],
                "scores": [float(scores[i]) for i in best],
                "image_ok": bool(class_id >= 0),
            }
        return rows
