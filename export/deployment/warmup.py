"""Warm-up requests: what a server answers before it counts a version as loaded.

A server sets up the graph of a signature when it is called first, so that each is called: with one image, with as many
as run at once, and with each way of preparing files. Tasks are numbers in arrays that loading has filled, so that there
is nothing to warm in each of them: a thousand tasks need no more requests than one.

All numbers of an image or mask are the same, and such a tensor is written as its shape and one number: the records of
a version take some kilobytes.
"""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from piggyback_tf.files import scratch_folder

from ..servable.layout import WeightLayout
from ..servable.preparation import parse_preparation
from ..servable.problem_signatures import file_signature, shape_of_images, signature_for
from ..servable.task_tables import Family, family_in
from ..shared.errors import ExportError

# A server reads no more.
MAX_RECORDS = 1000
_VALUES = {tf.uint8: "int_val", tf.int32: "int_val", tf.float32: "float_val", tf.string: "string_val"}
_GREY = 128

Inputs = dict[str, TensorProto]


def filled(dtype: tf.DType, shape: tuple[int, ...], values: Any) -> TensorProto:
    """Returns a tensor whose elements are `values`, one behind another, and then the last of them."""
    proto = TensorProto(dtype=dtype.as_datatype_enum)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    # Without any element there is nothing to repeat.
    getattr(proto, _VALUES[dtype]).extend(values if math.prod(shape) else [])
    return proto


def warm_up_requests(content: dict[str, Any], batch_size: int) -> Iterator[tuple[str, Inputs]]:
    """Yields signatures of both servables and what they are called with.

    Args:
        content: What is known of the export: `read_description` returns it.
        batch_size: The most images that run at once.
    """
    size, dtype = content["base"]["image_size"], tf.as_dtype(content["options"]["image_dtype"])
    names = [entry["task"].encode() for entry in content["tasks"]]
    families = [family_in(entry) for entry in content["tasks"]]
    groups: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for place, family in enumerate(families):
        shape = shape_of_images(family, size)
        groups.setdefault(("" if family.of_classes else signature_for(family.problem, shape), shape), []).append(place)
    for (signature, shape), members in groups.items():
        # Tasks from the whole list, in one batch: every row goes through the network by itself.
        mixed = [members[index * len(members) // batch_size] for index in range(batch_size)]
        for count, tasks in ((1, members[:1]), (batch_size, members[:1]), (batch_size, mixed)):
            images = filled(dtype, (count, *shape, 3), [_GREY])
            named = filled(tf.string, (count,), [names[task] for task in tasks])
            if signature:
                yield signature, {"images": images, "task": named}
            else:
                yield "serving_default", {"images": images, "task": filled(tf.int32, (count,), tasks)}
                yield "by_name", {"images": images, "task": named}
    for signature in dict.fromkeys(map(file_signature, families)):
        pairs = zip(content["tasks"], families, strict=True)
        chosen = [(entry, family) for entry, family in pairs if file_signature(family) == signature]
        for inputs in _of_files(chosen, size, batch_size):
            yield signature, inputs
    layout, features = WeightLayout.from_json(content["layout"]), content["base"]["features"]
    head = filled(tf.float32, (features + 1, 2), [0.0])
    norm = layout.norm.length
    for count, planes, numbers in ((1, 1, 0), (1, 2, norm), (batch_size, 1, 0)):
        yield (
            "with_mask",
            {
                "images": filled(dtype, (count, size, size, 3), [_GREY]),
                "mask": filled(tf.uint8, (planes * layout.mask_bytes,), [255]),
                "head": head,
                "norm": filled(tf.float32, (numbers,), [1.0]),
            },
        )
    yield "tasks", {}
    yield "find_tasks", {"task": filled(tf.string, (1,), names[:1])}


def _of_files(tasks: list[tuple[dict[str, Any], Family]], image_size: int, batch_size: int) -> Iterator[Inputs]:
    """Yields calls with JPEG and PNG files for a task of each way of preparing them, one image and many at a time."""
    first: dict[tuple[str, tuple[int, int]], bytes] = {}
    for entry, family in tasks:
        first.setdefault((entry["eval_augment"], shape_of_images(family, image_size)), entry["task"].encode())
    rows = []
    for (augment, shape), task in first.items():
        rows += [(data, task) for data in _files(augment, shape)]
    for count, start in ((1, 0), *((batch_size, start) for start in range(0, len(rows), batch_size))):
        part = rows[start : start + count]
        # From the front again, so that a batch is full.
        part += [rows[index % len(rows)] for index in range(count - len(part))]
        files, names = zip(*part, strict=True)
        yield {"image_bytes": filled(tf.string, (count,), files), "task": filled(tf.string, (count,), names)}


def _files(augment: str, image_shape: tuple[int, int]) -> tuple[bytes, bytes]:
    """Returns a JPEG and a PNG that are large enough to be prepared."""
    sizes = [operation.output_size(None) for operation in parse_preparation(augment)]
    largest = max((max(pair) for pair in sizes if pair), default=1)
    shape = [max(side, largest) for side in image_shape]
    image = Image.fromarray(np.full((*shape, 3), _GREY, np.uint8))
    files = {kind: io.BytesIO() for kind in ("JPEG", "PNG")}
    for kind, stream in files.items():
        image.save(stream, kind)
    return files["JPEG"].getvalue(), files["PNG"].getvalue()


def warm_up_records(servable: Path, requests: list[tuple[str, Inputs]]) -> bytes:
    """Returns the file of warm-up requests for one servable.

    Args:
        servable: The folder of a SavedModel; a signature that it does not have is left out, for a request that fails
            would keep a server from loading it.
        requests: What `warm_up_requests` yielded.

    Raises:
        ExportError: If the folder is no SavedModel.
    """
    try:
        saved = saved_model_pb2.SavedModel.FromString((servable / "saved_model.pb").read_bytes())
        known = set(saved.meta_graphs[0].signature_def)
    except (OSError, DecodeError, IndexError) as error:
        raise ExportError(f"{str(servable)!r} is no whole SavedModel: {error}.") from error
    records = []
    for signature, inputs in requests:
        if signature not in known:
            continue
        request = PredictRequest()
        request.model_spec.signature_name = signature
        for name, tensor in inputs.items():
            request.inputs[name].CopyFrom(tensor)
        log = PredictionLog()
        log.predict_log.request.CopyFrom(request)
        records.append(log.SerializeToString(deterministic=True))
    return _records_file(records[:MAX_RECORDS])


def _records_file(records: list[bytes]) -> bytes:
    """Returns the bytes of a TFRecord file, which TensorFlow writes to paths alone."""
    with scratch_folder() as folder:
        path = folder / "records"
        try:
            with tf.io.TFRecordWriter(str(path)) as writer:
                for record in records:
                    writer.write(record)
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
        return path.read_bytes()
