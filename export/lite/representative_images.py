"""The images that the ranges of int8 are found on: a sample of each task's, prepared as the task says."""

import numpy as np

from piggyback_tf.data import DataError, load_data, make_dataset, surface_data_errors
from piggyback_tf.data.augment import check_final_size
from piggyback_tf.packs import TaskPack

from ..shared.errors import ExportError


def representative_images(specs: str, packs: list[TaskPack], count: int) -> list[np.ndarray]:
    """Returns images for each task, prepared as the task says, float32 `[N, S, S, 3]`.

    Args:
        specs: A data spec for all tasks, or one for each by comma.
        packs: The tasks.
        count: How many images of each; fewer if there are no more. They are spread over the training split. Files that
            cannot be used are left out, and the log says which: of a sample no result depends on a single image.

    Raises:
        ExportError: If there are neither one nor as many specs as packs.
        DataError: If the images cannot be read.
    """
    return [_images(spec, pack, count) for spec, pack in zip(split_specs(specs, len(packs)), packs, strict=True)]


def split_specs(specs: str, packs: int) -> list[str]:
    """Returns the data spec of each pack; see `representative_images`.

    Raises:
        ExportError: If there are neither one nor as many specs as packs.
    """
    given = specs.split(",")
    if len(given) not in (1, packs):
        raise ExportError(
            f"representative_data has {len(given)} data specs for {packs} packs; give one, or one for each."
        )
    return given if len(given) == packs else given * packs


def _images(spec: str, pack: TaskPack, count: int) -> np.ndarray:
    source = load_data(spec, skip_broken_images=True).train
    with surface_data_errors():
        batches = make_dataset(source, pack.eval_augment, batch_size=1, training=False, cache="none")
        step = max(1, len(source.labels) // count)
        chosen = [images.numpy()[0] for images, _ in batches.shard(step, 0).take(count)]
    images = np.stack(chosen).astype(np.float32)
    try:
        check_final_size(pack.eval_augment, images.shape[1:3], pack.image_shape)
    except DataError as error:
        raise ExportError(f"Task {pack.task!r} cannot take the images of {spec!r}. {error}") from error
    return images
