"""`digits`: the 1797 handwritten digits, 8 by 8 pixels, that come with scikit-learn; `digits:0-4` is some of them."""

import re
from functools import cached_property

import numpy as np

from piggyback_tf.data.images import DataError
from piggyback_tf.data.sources import Source, Subset, TaskData, carve_validation, digest, stratified_split
from piggyback_tf.data.specs import DataRequest, register_data

TEST_FRACTION = 0.2


class DigitsSource(Source):
    """All digits, as RGB; their 17 levels of grey run from 0 to 255."""

    image_size = (8, 8)

    @cached_property
    def _data(self):
        from sklearn.datasets import load_digits

        return load_digits()

    @cached_property
    def labels(self) -> np.ndarray:
        return self._data.target.astype(np.int32)

    def read(self, index: int) -> np.ndarray:
        grey = np.round(self._data.images[index] * (255 / 16)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def describe(self, index: int) -> str:
        return f"digits #{index}"

    def key(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        import sklearn

        return digest("digits", sklearn.__version__)


class ClassRange(Subset):
    """The images of some classes of another source, counted from 0.

    Args:
        source: Where the images are.
        first: The first class.
        last: The last class.
    """

    def __init__(self, source: Source, first: int, last: int):
        super().__init__(source, np.flatnonzero((source.labels >= first) & (source.labels <= last)))
        self._first = first

    @cached_property
    def labels(self) -> np.ndarray:
        return self._source.labels[self._indices] - self._first


@register_data("digits", targets=("class",))
def load_digits_task(request: DataRequest) -> TaskData:
    """Answers `digits` and `digits:FIRST-LAST`: a fifth of the images, always the same, is the test split."""
    first, last = _parse_range(request)
    source = ClassRange(DigitsSource(), first, last) if request.argument else DigitsSource()
    rest, test = stratified_split(source, TEST_FRACTION, "digits test split")
    train, validation = carve_validation(Subset(source, rest), request.val_fraction, request.seed, request.spec)
    classes = tuple(str(digit) for digit in range(first, last + 1))
    name = f"digits_{first}-{last}" if request.argument else "digits"
    return TaskData(request.spec, name, classes, train, validation, Subset(source, test))


def _parse_range(request: DataRequest) -> tuple[int, int]:
    """Returns the first and the last digit."""
    if not request.argument:
        return 0, 9
    match = re.fullmatch(r"(\d)-(\d)", request.argument)
    if not match or match[1] >= match[2]:
        raise DataError(
            f"The data spec is 'digits', or some of them in a row as in 'digits:0-4', but was {request.spec!r}."
        )
    return int(match[1]), int(match[2])
