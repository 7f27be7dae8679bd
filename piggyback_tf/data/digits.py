"""`digits`: the 1797 handwritten digits, 8 by 8 pixels, that come with scikit-learn."""

from functools import cached_property

import numpy as np

from piggyback_tf.data.images import DataError
from piggyback_tf.data.kinds import DataRequest, register_data
from piggyback_tf.data.sources import Source, Subset, TaskData, carve_validation, digest, stratified_split

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


@register_data("digits")
def load_digits_task(request: DataRequest) -> TaskData:
    """Answers `digits`: a fifth of the images, always the same, is the test split."""
    if request.argument:
        raise DataError(f"The data spec is 'digits', with nothing behind it, but was {request.spec!r}.")
    source = DigitsSource()
    rest, test = stratified_split(source, TEST_FRACTION, "digits test split")
    train, validation = carve_validation(Subset(source, rest), request.val_fraction, request.seed, request.spec)
    names = tuple(str(digit) for digit in range(10))
    return TaskData(request.spec, "digits", names, train, validation, Subset(source, test))
