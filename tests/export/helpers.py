"""Files of images, one way to call all three loaders, and what warm-up requests are answered."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from export.servable.additions import WARMUP_FILE

ROOT = Path(__file__).parents[2]
LOADERS = ("v2", "v1", "c_api")
BATCH = 4  # of the servers of `exports`


def texts(*values):
    """Returns an array of bytes objects, which NumPy's own kind of bytes would strip of zeros at the end."""
    array = np.empty(len(values), object)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


def picture(height, width, channels=3, seed=0):
    """Returns a picture that is smooth enough for a JPEG, uint8 `[height, width, channels]`."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind, mode=None, **options):
    """Returns the bytes of an image file."""
    image = Image.fromarray(image) if mode is None else Image.fromarray(image).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def huge_jpeg(side=60_000):
    """Returns a JPEG whose header says that it has side x side pixels."""
    data = bytearray(encode(picture(16, 16), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = side.to_bytes(2, "big") * 2
    return bytes(data)


def huge_png(side=60_000):
    """Returns a PNG whose header says that it has side x side pixels."""
    data = bytearray(encode(picture(16, 16), "PNG"))
    data[16:24] = side.to_bytes(4, "big") * 2
    return bytes(data)


def call(loader, folder, calls):
    """Calls signatures of a SavedModel.

    Args:
        loader: One of `LOADERS`.
        folder: The SavedModel.
        calls: Pairs of a signature's name and its inputs, arrays by name.

    Returns:
        For each call the outputs by name, or the text of the error.
    """
    return {"v2": _call_v2, "v1": _call_v1, "c_api": _call_c}[loader](str(folder), calls)


def _call_v2(folder, calls):
    model = tf.saved_model.load(folder)

    def run(signature, inputs):
        # Not the object itself: Python would compare shapes before the graph does.
        outputs = model.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return [_answer(run, *each) for each in calls]


def _call_v1(folder, calls):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def

        def run(name, inputs):
            signature = signatures[name]
            outputs = {name: info.name for name, info in signature.outputs.items()}
            feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
            return session.run(outputs, feeds)

        return [_answer(run, *each) for each in calls]


def _answer(run, signature, inputs):
    try:
        return run(signature, inputs)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        return str(error)


def _call_c(folder, calls):
    requests, answers = Path(folder).with_suffix(".calls.npz"), Path(folder).with_suffix(".answers.npz")
    written = np.empty(len(calls), object)
    written[:] = calls
    np.savez(requests, calls=written)
    program = ROOT / "tests" / "export" / "c_api.py"
    run = subprocess.run([sys.executable, program, folder, requests, answers], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return list(np.load(answers, allow_pickle=True)["results"])


def replay(servable):
    """Yields signature, inputs and outputs of every warm-up request."""
    signatures = tf.saved_model.load(str(servable)).signatures
    for record in tf.data.TFRecordDataset(str(servable / WARMUP_FILE)).as_numpy_iterator():
        request = PredictionLog.FromString(record).predict_log.request
        signature = signatures[request.model_spec.signature_name]
        specs = signature.structured_input_signature[1]
        # As a server reads tensors.
        inputs = {
            name: tf.io.parse_tensor(proto.SerializeToString(), specs[name].dtype)
            for name, proto in request.inputs.items()
        }
        yield request.model_spec.signature_name, inputs, signature(**inputs)
