"""Which constants of a base have to be in its manifest beside those of all bases, since a task changes its vectors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.parts import VECTOR, changed_weights

from ..weights import Network
from .constants import FILTER
from .constants import VECTOR as VECTOR_ROLE


def replaced_constants(
    packs: Sequence[TaskPack], quantize: str, backbone: Backbone
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns `vectors` and `rescaled` of `Network` for a base of some tasks.

    Of integers a filter that a task changes has other scales, and its bias is in multiples of these.

    Args:
        packs: The tasks.
        quantize: The type of the constants.
        backbone: Their base.
    """
    changed = [changed_weights(pack.parts) for pack in packs]
    vectors = {path for roles in changed for path, own in roles.items() if VECTOR in own}
    kernels = {path for roles in changed for path, own in roles.items() if VECTOR not in own}
    if quantize not in ("dynamic", "int8"):
        kernels.clear()
    if quantize == "int8" and kernels:
        known = Network.of(backbone).kernels
        vectors |= {bias for path in kernels if (bias := known[path].bias) is not None}
    return frozenset(vectors), frozenset(kernels)


def described_replaced(entries: Iterable[Mapping[str, Any]]) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the same from what `manifest.json` says of a base's constants.

    Raises:
        KeyError: If it is damaged.
    """
    entries = list(entries)
    vectors = {entry["bias"] for entry in entries if entry["role"] == VECTOR_ROLE}
    scaled = [entry for entry in entries if entry["part"] == "scales" and entry["role"] == FILTER]
    return frozenset(vectors), frozenset(entry["kernel"] for entry in scaled if "norm" not in entry)
