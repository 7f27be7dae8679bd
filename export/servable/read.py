"""Reads a SavedModel export again, to add tasks to it."""

from pathlib import Path

import tensorflow as tf

from piggyback_tf.backbones.structure_record import Structure
from piggyback_tf.packs import BaseSpec

from ..shared.errors import ExportError
from .folder import NETWORK, read_description
from .layout import WeightLayout
from .network import ServedNetwork
from .options import ExportOptions
from .task_arrays import ARRAYS, TaskTables


def read_export(folder: Path) -> tuple[ServedNetwork, TaskTables, ExportOptions]:
    """Reads an export: its base, its tasks, and what was chosen for it.

    Raises:
        ExportError: If the folder is no whole export.
    """
    content = read_description(folder)
    try:
        layout = WeightLayout.from_json(content["layout"])
        shapes = {p: s for part in (layout.kernels, layout.norm, layout.rest) for p, s in part.shapes.items()}
        spec = BaseSpec(
            **content["base"],
            shapes=shapes,
            norm_paths=frozenset(layout.norm.shapes),
            structure=Structure.from_json(content),
            maskable=frozenset(layout.kernels.shapes),
        )
        options = ExportOptions(**content["options"])
        # From the file: loading the SavedModel would unpack the kernels of every task.
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        arrays = {
            name: reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE") for name in (*ARRAYS, "kernels", "rest")
        }
        network = tf.saved_model.load(str(folder / NETWORK))
        base = ServedNetwork(spec, layout, network.features, arrays["kernels"], arrays["rest"])
        return base, TaskTables.restore(arrays, content), options
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, tf.errors.OpError) as error:
        raise ExportError(f"{str(folder)!r} is no whole export: {error}") from error
