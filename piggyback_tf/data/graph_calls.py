"""Python functions that graphs call: gone with their dataset, and with errors that are told as they are."""

import contextlib
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from piggyback_tf.data.decoding import explain
from piggyback_tf.data.images import DataError


@contextlib.contextmanager
def surface_data_errors() -> Iterator[None]:
    """Turns a `DataError` that TensorFlow has wrapped while reading a dataset back into one.

    Put it around the loop over an uncached dataset, or around `fit`.

    Raises:
        DataError: With the message of the original, and without TensorFlow's trace.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        import tensorflow as tf

        found = re.search(r"\bDataError: (.+?)\s*\nTraceback ", str(error), re.DOTALL)
        if not isinstance(error, tf.errors.OpError):
            raise
        cause = DataError(found.group(1)) if found is not None else explain(error)
        if cause is None:
            raise
        raise cause from None


def weakly(plan: Any, name: str) -> Callable:
    """Returns a function that calls a plan's function `name` as long as there is the plan.

    TensorFlow keeps every Python function of a dataset until the process ends, and would keep the cached images with
    it. The plan belongs to the dataset object, which iterators and datasets made from it hold on to.
    """
    reference = weakref.ref(plan)

    def call(*arguments):
        alive = reference()
        if alive is None:
            raise RuntimeError("The dataset was deleted while it was read; keep a reference to it.")
        try:
            return getattr(alive, name)(*arguments)
        except DataError as error:
            # By this class name `surface_data_errors` finds the sentence again.
            raise DataError(str(error)) from None

    return call
