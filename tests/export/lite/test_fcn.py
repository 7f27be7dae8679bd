"""Fully convolutional heads on devices: the base's dense layers as convolutions, skips, and biases of equal layers."""

import functools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from export.edge.piggyback_edge import Base, Model, Task
from export.lite import plain
from export.lite.checks import run_model
from export.lite.flatbuffer import LiteFile
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.patch.calibrate import corresponding
from export.lite.patch.checks import check_constants
from export.lite.patch.elements import filter_inputs
from export.lite.patch.write import read_base
from export.litert import export_litert
from export.shared.errors import ExportError
from tests.export.fcn import IMAGES, SHAPES
from tests.export.segments import assert_same_labels
from tests.packs.test_segments import images_of

# The last has all that the others have.
KINDS = ["fcn8", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fcn32", "fcn16"))]
_CODE = schema.BuiltinOperator
# What rounds its output to steps of its own; others have those of their input.
_ROUNDING = {_CODE.CONV_2D, _CODE.FULLY_CONNECTED, _CODE.ADD, _CODE.MUL, _CODE.RESIZE_BILINEAR}


def calibration(spec, packs, count):
    """Returns images for the ranges of int8."""
    return [images_of(pack.image_shape, IMAGES + 24)[IMAGES:].astype(np.float32) for pack in packs]


@pytest.fixture(scope="module", name="patched")
def _patched(fcn, tmp_path_factory):
    """A function of a quantisation and a task that returns its export: of the first alone, of others with all."""

    @functools.cache
    def export(quantize, kinds):
        folder = tmp_path_factory.mktemp("fcn") / "out"
        options = LiteOptions(quantize=quantize, representative_data="images" if quantize == "int8" else "")
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(write, "representative_images", calibration)
            export_litert(fcn.backbone, [fcn.packs[kind] for kind in kinds], folder, options)
        return folder

    return lambda quantize, kind: export(quantize, ("fcn8",) if kind == "fcn8" else tuple(SHAPES))


def installed(folder, kind):
    base = Base.load(folder / "base.tflite")
    task, model = Task.load(folder / f"{kind}.edge", base.manifest), Model(base)
    model.install(task)
    return task, bytes(model.data)


def noise_of_steps(patched, kind, images):
    """Returns what rounding to int8 adds to the logits, as a share of their deviation.

    Each operator that rounds adds errors that are uniform over a step, so of a twelfth of its square. As a share of the
    variance of what it computes they go through the operators after it, and are independent.
    """
    (task, content), (_, in_integers) = (installed(patched(quantize, kind), kind) for quantize in ("none", "int8"))
    file, other = (LiteFile(each).with_graph(task.graph) for each in (content, in_integers))
    pairs = corresponding(file, other)
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    run = interpreter.get_signature_runner(task.signature.name)
    rounded = [op.outputs[0] for op in file.computing() if op.code in _ROUNDING]
    values = {index: [] for index in rounded}
    for image in images:
        run(images=image[None].astype(np.float32))
        for index in rounded:
            values[index].append(interpreter.get_tensor(index, task.graph))
    variance = 0.0
    for index in rounded:
        (tensor,) = (other.tensors[number] for number in pairs[index])
        variance += float(other.read(tensor.scales)[0]) ** 2 / 12 / np.var(values[index])
    return np.sqrt(variance)


def assert_within_noise(found, logits, noise):
    """Checks label maps: no more pixels differ than have two classes as near as the noise, and none that is far beyond.

    The noise is that of a usual pixel, and twice as much was measured of some.
    """
    first, second = np.sort(logits, axis=-1)[..., :-3:-1].transpose(3, 0, 1, 2)
    differs, margin = found != logits.argmax(axis=-1), (first - second) / (noise * logits.std())
    assert differs.mean() <= (margin < 2).mean() < 0.5
    assert margin[differs].max(initial=0) <= 10


@pytest.mark.parametrize("kind", KINDS)
def test_patches_in_float32(fcn, patched, kind):
    task, content = installed(patched("none", kind), kind)
    output = run_model(content, fcn.images[kind].astype(np.float32), task.signature.name)
    assert_same_labels(task.label_maps(output, content), fcn.logits[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_patches_in_int8(fcn, patched, kind):
    task, content = installed(patched("int8", kind), kind)
    images, logits = fcn.images[kind], fcn.logits[kind]
    output = run_model(content, images.astype(np.float32), task.signature.name)
    noise = noise_of_steps(patched, kind, images)
    # Measured: 1.6 times the noise, and 20 times with biases in the multiples of other layers.
    assert (output - logits).std() <= 3 * noise * logits.std()
    assert_within_noise(task.label_maps(output, content), logits, noise)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("kind", SHAPES)
def test_models_of_their_own(fcn, patched, kind, quantize, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "representative_images", calibration)
    data = "images" if quantize == "int8" else ""
    options = LiteOptions(design="plain", quantize=quantize, representative_data=data)
    export_litert(fcn.backbone, [fcn.packs[kind]], tmp_path / "out", options)
    found = run_model((tmp_path / "out" / f"{kind}.tflite").read_bytes(), fcn.images[kind].astype(np.float32))
    if quantize == "none":
        assert_same_labels(found, fcn.logits[kind])
    else:
        assert_within_noise(found, fcn.logits[kind], noise_of_steps(patched, kind, fcn.images[kind]))


def test_a_bias_in_other_multiples_is_found_before_it_is_written(fcn, patched):
    """LiteRT reads a bias in multiples of its input's and its filter's scales, and does not look at its own."""
    folder, pack = patched("int8", "fcn8"), fcn.packs["fcn8"]
    base, (_, content) = read_base(fcn.backbone, folder / "base.tflite"), installed(folder, "fcn8")
    check_constants(base, content, pack)
    file = LiteFile(content)
    biases = [file.tensors[index] for _, _, index in map(filter_inputs, file.operators) if index >= 0]
    # Of the base, which no task changes.
    fixed = next(tensor for tensor in biases if tensor.index not in base.graphs[0].constants)
    file.write(fixed.scales, file.read(fixed.scales) * np.float32(1.001))
    with pytest.raises(ExportError, match="The bias .* of task 'fcn8' is in other multiples than those that its input"):
        check_constants(base, file.data, pack)
