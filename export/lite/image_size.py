"""For which size of images the base of a written export was loaded; nothing here needs TensorFlow."""

from pathlib import Path

from ..edge.piggyback_edge import FIRST_SIGNATURE, Manifest
from .folder import MANIFEST_FILE, is_patched
from .model_description import read_model_description


def image_size_of(model: Path) -> int | None:
    """Returns for which size of images the base of an export was loaded; None if no graph of it depends on that.

    Raises:
        EdgeError, ExportError, PackError: If the file is no export, or damaged.
        OSError: If a file cannot be read.
    """
    if not is_patched(model):
        return read_model_description(model).get("layout", {}).get("image_size")
    signatures = Manifest.load(model.with_name(MANIFEST_FILE)).signatures
    return next((own.image_shape[0] for own in signatures if own.name == FIRST_SIGNATURE), None)
