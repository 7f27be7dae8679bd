"""Reads a SavedModel export again, to add tasks to it."""

from pathlib import Path

import tensorflow as tf

from piggyback_tf.head_spec import HeadSpec

from ..shared.errors import ExportError
from .folder import HEADS, NETWORK, described_base, read_description
from .layout import WeightLayout
from .network import ServedHead, ServedNetwork
from .options import ExportOptions
from .part_tables import PART_ARRAYS
from .task_tables import ARRAYS, TaskTables


def read_export(folder: Path) -> tuple[ServedNetwork, TaskTables, ExportOptions]:
    """Reads an export: its base, its tasks, and what was chosen for it.

    Raises:
        ExportError: If the folder is no whole export.
    """
    content = read_description(folder)
    try:
        layout = WeightLayout.from_json(content["layout"])
        spec = described_base(content, layout)
        options = ExportOptions(**content["options"])
        # From the file: loading the SavedModel would unpack the kernels of every task.
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        names = {name: f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in (*ARRAYS, *PART_ARRAYS, "kernels", "rest")}
        # Which of the arrays of parts are there is asked; of the others each must be.
        there = [name for name in names if name not in PART_ARRAYS or reader.has_tensor(names[name])]
        arrays = {name: reader.get_tensor(names[name]) for name in there}
        network = tf.saved_model.load(str(folder / NETWORK))
        heads = {}
        for place, entry in enumerate(content.get("heads", [])):
            own = tf.saved_model.load(str(folder / HEADS / str(place)))
            heads[HeadSpec.from_json(entry["head"])] = ServedHead.from_json(entry, own.logits)
        base = ServedNetwork(spec, layout, network.features, arrays["kernels"], arrays["rest"], heads)
        return base, TaskTables.restore(arrays, content), options
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, tf.errors.OpError) as error:
        raise ExportError(f"{str(folder)!r} is no whole export: {error}") from error
