"""LiteRT's interpreter: for models of one input, and without the line that it writes about itself."""

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from piggyback_tf.quiet import filtered_stderr


class ImageModel:
    """A model of one input in LiteRT's interpreter, on one thread.

    Args:
        model: Its file, or its content.
        signature: Which of its graphs is run; None for the first.
    """

    def __init__(self, model: Path | bytes, signature: str | None = None):
        given = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
        self._interpreter = Interpreter(**given, num_threads=1)
        if signature is None and len(self._interpreter.get_output_details()) > 1:
            signature = next(iter(self._interpreter.get_signature_list()))
        self._runner = None if signature is None else self._interpreter.get_signature_runner(signature)
        if self._runner is not None:
            return
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the output of a model that has one, `[1, ...]`, for an image, float32 `[H, W, 3]`."""
        (found,) = self.outputs(image).values()
        return found

    def outputs(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs by name, `[1, ...]` each, for an image; without signatures the one is `"output"`."""
        if self._runner is not None:
            return self._runner(images=image[None])
        self._interpreter.set_tensor(self._input, image[None])
        self._interpreter.invoke()
        return {"output": self._interpreter.get_tensor(self._output)}


def load_litert() -> None:
    """Runs what makes LiteRT say, once in a process, that it has a delegate; programs call it before their own work."""
    with filtered_stderr():
        Interpreter(model_content=_smallest_model(), num_threads=1).allocate_tensors()


def _smallest_model() -> bytes:
    """Returns a model of one operation; without any, there would be no delegate."""
    code, operation, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    operation.inputs, operation.outputs = [0], [1]
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [_tensor(), _tensor()], [operation], [0], [1]
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], [schema.BufferT()]
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor() -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.shape, tensor.type = [1], schema.TensorType.FLOAT32
    return tensor
