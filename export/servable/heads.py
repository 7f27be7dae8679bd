"""The networks of tasks whose heads are more than a layer on the features: made for an export, or taken from one."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from piggyback_tf.backbones import Backbone
from piggyback_tf.foreign_text import shown
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import BaseSpec, PackError, TaskPack
from piggyback_tf.packs.base_fit import check_head_shapes, check_same_weights
from piggyback_tf.problems import HeadNetwork

from ..shared.errors import ExportError
from ..shared.packs import head_of
from .layout import WeightLayout
from .network import ServedHead, head_shapes, save_head_network


class HeadNetworks:
    """The networks with heads that are more than a layer on the features; each is made when a task needs it.

    Args:
        spec: What the base is.
        find: Returns the base for a pack; None if there is none.
        known: The networks that an export has already, in order.
    """

    def __init__(
        self,
        spec: BaseSpec,
        find: Callable[[TaskPack], Backbone] | None,
        known: Mapping[HeadSpec, ServedHead] | None = None,
    ):
        self._spec, self._find, self._known = spec, find, dict(known or {})
        self._backbone: Backbone | None = None
        self._made: dict[HeadSpec, HeadNetwork] = {}

    def check(self, pack: TaskPack) -> None:
        """Checks that there is a network for the head of a pack, or makes it.

        Raises:
            PackError: If the base cannot take the head, or the head does not fit.
            ExportError: If the base is needed, and is not there or another one.
        """
        spec = head_of(pack)
        if spec.is_dense:
            return
        if spec in self._known:
            expected = self._known[spec].shapes
        else:
            base = self._base(pack)
            try:
                self._made[spec] = self._made.get(spec) or HeadNetwork(base, spec)
            except ValueError as error:
                raise PackError(f"Task {shown(pack.task)} has a head that this base cannot take: {error}") from error
            expected = head_shapes(self._made[spec])
        found = {path: value.shape for path, value in pack.head.items()}
        check_head_shapes(found, expected, f"The head of task {shown(pack.task)}")

    def write(
        self, specs: Iterable[HeadSpec], layout: WeightLayout, folder: Path, source: Path | None = None
    ) -> dict[HeadSpec, ServedHead]:
        """Writes networks into the folders `0`, `1` and so on, and returns them over what was written.

        Args:
            specs: The heads, in order; those that were known come first.
            layout: Where the base's weights are.
            folder: Where the folders are made.
            source: Where those of the networks are that were known.
        """
        written = {}
        for place, spec in enumerate(specs):
            if spec in self._known:
                assert source is not None, "what is known was read from an export"
                shutil.copytree(source / str(place), folder / str(place))
                written[spec] = self._known[spec]
            else:
                assert self._backbone is not None, "a head was made on it"
                written[spec] = save_head_network(self._backbone, layout, self._made[spec], folder / str(place))
        return written

    def _base(self, pack: TaskPack) -> Backbone:
        if self._backbone is None:
            if self._find is None:
                height, width = pack.image_shape
                raise ExportError(
                    f"Task {pack.task!r} has a head {head_of(pack).kind!r} for images of {height}x{width} pixels, and "
                    "no task of the export has such a one. Give the base, too, of which its network is made: "
                    "add_tasks(..., backbone=...)."
                )
            backbone = self._find(pack)
            check_same_weights("The export is of", self._spec.hash, BaseSpec.of(backbone), ExportError)
            self._backbone = backbone
        return self._backbone
