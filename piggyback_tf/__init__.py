"""One frozen network, many tasks: learned binary weight masks for Keras 3 and TensorFlow.

The public names are imported when they are first used: `import piggyback_tf` and reading task packs do not load
TensorFlow.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from piggyback_tf.lazy import lazy_names
from piggyback_tf.version import __version__

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone, WeightsError, list_backbones, load_backbone
    from piggyback_tf.data import DataError, load_data, make_dataset
    from piggyback_tf.masking import MaskConfig, mask, read_masks
    from piggyback_tf.packs import PackError, TaskBank, TaskPack

_HOMES = {
    "Backbone": "backbones",
    "DataError": "data",
    "MaskConfig": "masking",
    "PackError": "packs",
    "TaskBank": "packs",
    "TaskPack": "packs",
    "WeightsError": "backbones",
    "list_backbones": "backbones",
    "load_backbone": "backbones",
    "load_data": "data",
    "make_dataset": "data",
    "mask": "masking",
    "read_masks": "masking",
}

__all__ = [
    "Backbone",
    "DataError",
    "MaskConfig",
    "PackError",
    "TaskBank",
    "TaskPack",
    "WeightsError",
    "__version__",
    "list_backbones",
    "load_backbone",
    "load_data",
    "make_dataset",
    "mask",
    "read_masks",
]

# What is installed as `piggyback_tf.export` is the folder `export` beside this one in a checkout.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "export" / "__init__.py").is_file() and (_CHECKOUT / "train.py").is_file():
    __path__.append(str(_CHECKOUT))

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
