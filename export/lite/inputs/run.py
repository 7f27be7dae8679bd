"""Runs the models of the designs `switch` and `input` by LiteRT, where this package is installed.

TensorFlow is not needed. This file is not copied to devices: programs there ask LiteRT's interpreter themselves.

model = SwitchModel("DIR/model.tflite")
model.set_task("DIR/birds.inputs.safetensors")
probabilities = model.predict(images)
"""

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from piggyback_tf.data.pixel_range import as_images
from piggyback_tf.packs import PackError
from piggyback_tf.settings.records import check_choice

from ..model_description import read_model_description
from .task_inputs import TaskInputs

RUNTIMES = ("interpreter", "compiled")


class Runner(Protocol):
    """A loaded model."""

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what a signature returns, by name."""


class InterpreterRunner:
    """A model in LiteRT's `Interpreter`."""

    def __init__(self, path: str, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=path, num_threads=threads)
        self._signatures = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._signatures[signature](**inputs)


class CompiledRunner:
    """A model in LiteRT's `CompiledModel`, which keeps variables between calls as `Interpreter` does."""

    def __init__(self, path: str, threads: int):
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=threads))
        self._model = CompiledModel.from_file(path, options=options)
        self._buffers = {}
        for name, tensors in self._model.get_signature_list().items():
            inputs = {key: self._model.create_input_buffer_by_name(name, key) for key in tensors["inputs"]}
            outputs = {key: self._model.create_output_buffer_by_name(name, key) for key in tensors["outputs"]}
            self._buffers[name] = inputs, outputs, self._model.get_output_tensor_details(name)

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken, given, details = self._buffers[signature]
        for name, array in inputs.items():
            taken[name].write(array)
        self._model.run_by_name(signature, taken, given)
        found = {}
        for name, buffer in given.items():
            shape, dtype = tuple(details[name]["shape"]), np.dtype(details[name]["dtype"])
            found[name] = buffer.read(int(np.prod(shape)), dtype.type).reshape(shape)
        return found


class LiteModel:
    """A model that takes masks as inputs.

    Threads may call one model; calls then wait for one another. The task is that of the last `set_task`, whichever
    thread called it: threads on different tasks need a model each.

    Args:
        path: The `.tflite` file.
        threads: Threads of a call.
        runtime: `"interpreter"` or `"compiled"`.

    Attributes:
        quantize: The type of its constants: `"none"` or `"float16"`.

    Raises:
        PackError: If the file is no model of this design.
        ValueError: If there is no such runtime.
    """

    DESIGN: str

    def __init__(self, path: str | os.PathLike, *, threads: int = 1, runtime: str = "interpreter"):
        check_choice("runtime", runtime, RUNTIMES)
        description = read_model_description(path)
        if description["design"] != self.DESIGN:
            raise PackError(f"{os.fspath(path)!r} is of design {description['design']!r}, not {self.DESIGN!r}.")
        self.quantize: str = description["quantize"]
        self._digest, self._size = description["digest"], description["layout"]["image_size"]
        runners: dict[str, Any] = {"interpreter": InterpreterRunner, "compiled": CompiledRunner}
        self._runner: Runner = runners[runtime](os.fspath(path), threads)
        self._lock = threading.Lock()
        self._task: TaskInputs | None = None

    @property
    def labels(self) -> list[str]:
        """The classes of the current task.

        Raises:
            ValueError: If there is none.
        """
        return self._current().labels

    def set_task(self, task: TaskInputs | str | os.PathLike) -> None:
        """Makes a task the current one.

        Args:
            task: Its inputs, or their file.

        Raises:
            PackError: If the file is damaged, or made for another model.
        """
        task = task if isinstance(task, TaskInputs) else TaskInputs.load(task)
        if task.description["layout"] != self._digest:
            raise PackError(
                f"The inputs of task {task.description['task']!r} were made for another model; a task's file "
                "belongs to the model of the same export."
            )
        with self._lock:
            self._enter(task)
            self._task = task

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the current task's classes.

        Args:
            images: RGB images `[N, S, S, 3]` with values in [0, 255], integer or floating point. Floating point
                numbers that end at 1 are refused, as they look scaled to [0, 1].

        Returns:
            float32 `[N, C]`.

        Raises:
            ValueError: If there is no current task, or the images are of another shape or hold other values.
        """
        images = as_images(images, (self._size, self._size)).astype(np.float32)
        with self._lock:
            task = self._current()
            rows = [self._answer(task, image[None])[0, : len(task.labels)] for image in images]
        return np.stack(rows) if rows else np.zeros([0, len(task.labels)], np.float32)

    def _current(self) -> TaskInputs:
        if self._task is None:
            raise ValueError("There is no current task; call set_task first.")
        return self._task

    def _enter(self, task: TaskInputs) -> None:
        """Does what has to be done once for a task."""

    def _answer(self, task: TaskInputs, image: np.ndarray) -> np.ndarray:
        """Returns the model's output for an image."""
        raise NotImplementedError


class SwitchModel(LiteModel):
    """A model of design `switch`: its variables are the current task."""

    DESIGN = "switch"

    def _enter(self, task: TaskInputs) -> None:
        self._runner.call("set_task", task.arrays)

    def _answer(self, task: TaskInputs, image: np.ndarray) -> np.ndarray:
        return self._runner.call("predict", {"images": image})["probabilities"]


class StatelessModel(LiteModel):
    """A model of design `input`: the current task goes into every call."""

    DESIGN = "input"

    def _answer(self, task: TaskInputs, image: np.ndarray) -> np.ndarray:
        return self._runner.call("predict", {"images": image, **task.arrays})["probabilities"]


def load_model(path: str | os.PathLike) -> LiteModel:
    """Returns a model of either design.

    Raises:
        PackError: If the file is no such model.
        OSError: If it cannot be read.
    """
    kinds = {kind.DESIGN: kind for kind in (SwitchModel, StatelessModel)}
    design = read_model_description(path)["design"]
    if design not in kinds:
        raise PackError(f"{os.fspath(path)!r} is of design {design!r}, which takes no masks as inputs.")
    return kinds[design](path)
