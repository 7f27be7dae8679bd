"""What tools that know nothing of this package read in the models."""

import pytest
from ai_edge_litert.interpreter import Interpreter

from export.edge.piggyback_edge import Base, Task
from export.lite.inputs.task_inputs import TaskInputs
from export.lite.inputs.write import export_inputs
from export.lite.options import LiteOptions
from tests.export.lite.metadata import read_metadata

# Places of fields in the schema, and what some numbers stand for.
NAME, DESCRIPTION, INPUTS, OUTPUTS, SUBGRAPHS, CONTENT, PROCESS, STATS = 0, 1, 2, 3, 3, 3, 4, 5
FEATURES, IMAGE, RGB, NORMALIZATION = 1, 2, 1, 1


def _check(content, backbone):
    """Checks what is said of images, and returns for each subgraph its name and those of its tensors."""
    found, images = read_metadata(content), []
    assert found.text(NAME) == backbone.name
    graphs = {}
    for graph in found.tables(SUBGRAPHS):
        inputs, outputs = graph.tables(INPUTS), graph.tables(OUTPUTS)
        images += [tensor for tensor in inputs if tensor.text(NAME) == "images"]
        # Variables have a graph that gives them their first values, which no one calls.
        if graph.text(NAME):
            graphs[graph.text(NAME)] = [[tensor.text(NAME) for tensor in side] for side in (inputs, outputs)]
    [image] = images
    assert image.text(DESCRIPTION).endswith(backbone.preprocessing)
    assert (image.table(CONTENT).byte(0), image.table(CONTENT).table(1).byte(0)) == (IMAGE, RGB)
    [process] = image.tables(PROCESS)
    # Nothing is left to be done: normalisation is in the graph.
    assert process.byte(0) == NORMALIZATION
    assert (process.table(1).floats(0), process.table(1).floats(1)) == ([0.0], [1.0])
    assert (image.table(STATS).floats(0), image.table(STATS).floats(1)) == ([255.0], [0.0])
    return graphs


@pytest.mark.parametrize(("quantize", "max_classes", "output"), [("none", 0, "features"), ("int8", 9, "logits")])
def test_a_base(patched, quantize, max_classes, output):
    export = patched(quantize, max_classes)
    base = Base.load(export.folder / "base.tflite")
    assert _check(base.data, export.backbone) == {"serving_default": [["images"], [output]]}
    for pack in export.packs:
        assert list(Task.load(export.folder / f"{pack.task}.edge", base.manifest).labels) == pack.class_names


@pytest.mark.parametrize("design", ["switch", "input"])
def test_a_model_that_takes_masks(patched, tmp_path, design):
    backbone, pack = patched("none").backbone, patched("none").packs[2]
    model, inputs = export_inputs(backbone, [pack], tmp_path, LiteOptions(design=design))
    graphs = _check(model.read_bytes(), backbone)
    # Tensors are told by their places: those that LiteRT has.
    runners = Interpreter(model_path=str(model)).get_signature_list()
    assert {name: tuple(map(sorted, sides)) for name, sides in graphs.items()} == {
        name: (sorted(sides["inputs"]), sorted(sides["outputs"])) for name, sides in runners.items()
    }
    assert TaskInputs.load(inputs).labels == pack.class_names
