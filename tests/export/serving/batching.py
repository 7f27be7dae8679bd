"""Requests merged along the first dimension, as TensorFlow Serving's BatchingSession merges them."""

import queue
import threading
import time

import numpy as np

from tests.export.serving.tensors import FAILED_PRECONDITION, INVALID_ARGUMENT, ServingError

INTERNAL = 13


class _Task:
    def __init__(self, inputs, size):
        self.inputs, self.size, self.done = inputs, size, threading.Event()
        self.outputs = self.error = None


class Batcher:
    """Runs one signature for several callers at a time.

    Args:
        run: Takes arrays by name and returns arrays by name.
        max_batch_size: Rows of a run.
        timeout: Seconds that a request waits for others.

    Attributes:
        merged: How many runs answered more than one request.
    """

    def __init__(self, run, max_batch_size, timeout):
        self._run, self._max, self._timeout = run, max_batch_size, timeout
        self._tasks, self._next, self.merged = queue.Queue(), None, 0
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, inputs):
        """Waits for the answer to a request."""
        if not all(array.ndim for array in inputs.values()):
            raise ServingError(
                INVALID_ARGUMENT, "Batching session Run() input tensors must have at least one dimension."
            )
        sizes = {len(array) for array in inputs.values()}
        if len(sizes) > 1:
            raise ServingError(
                INVALID_ARGUMENT, "Batching session Run() input tensors must have equal 0th-dimension size."
            )
        task = _Task(inputs, sizes.pop())
        if task.size > self._max:
            raise ServingError(
                INVALID_ARGUMENT, f"Task size {task.size} is larger than maximum input batch size {self._max}"
            )
        self._tasks.put(task)
        task.done.wait()
        if task.error:
            raise task.error
        return task.outputs

    def _work(self):
        while True:
            batch = self._collect()
            try:
                self._answer(batch)
            except Exception as error:  # All that merged requests have in common is their error.
                for task in batch:
                    task.error = error
            for task in batch:
                task.done.set()

    def _collect(self):
        """Returns the requests that come within the timeout and fit into a run."""
        batch = [self._next or self._tasks.get()]
        self._next, end = None, time.monotonic() + self._timeout
        while True:
            try:
                task = self._tasks.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                return batch
            if sum(task.size for task in batch) + task.size > self._max:
                self._next = task
                return batch
            batch.append(task)

    def _answer(self, batch):
        first = batch[0].inputs
        for name, array in first.items():
            if any(task.inputs[name].shape[1:] != array.shape[1:] for task in batch):
                raise ServingError(
                    FAILED_PRECONDITION,
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
                    "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                    "have equal dimensions starting with the first dim.",
                )
            if any(task.inputs[name].dtype != array.dtype for task in batch):
                raise ServingError(INTERNAL, "Tensor concat operation failed: they have different types")
        outputs = self._run({name: np.concatenate([task.inputs[name] for task in batch]) for name in first})
        self.merged += len(batch) > 1
        if any(len(array) != sum(task.size for task in batch) for array in outputs.values()):
            raise ServingError(
                FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the inputs",
            )
        start = 0
        for task in batch:
            task.outputs = {name: array[start : start + task.size] for name, array in outputs.items()}
            start += task.size
