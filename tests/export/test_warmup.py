"""The requests that a server calls before a version counts as loaded."""

import pytest
import tensorflow as tf

from export.servable.additions import WARMUP_FILE
from tests.export.helpers import BATCH, replay


@pytest.mark.parametrize("export", ["packed", "unpacked"])
def test_warm_up_requests_call_every_signature_and_preparation(exports, small, export):
    tasks, sizes, preparations = set(), set(), set()
    prepared = {pack.task.encode(): pack.eval_augment for pack in small.packs}
    for signature, inputs, outputs in replay(exports / export / "1"):
        rows = inputs["task"].numpy()
        sizes.add((signature, len(rows)))
        for flag in {"task_ok", "image_ok"} & set(outputs):
            assert outputs[flag].numpy().all()
        if signature == "serving_default":
            tasks |= set(rows.tolist())
            assert (outputs["class_id"].numpy() >= 0).all()
        if signature == "encoded":
            assert (outputs["scores"].numpy()[:, 0] > 0).all()
            kinds = ["JPEG" if data.startswith(b"\xff\xd8") else "PNG" for data in inputs["image_bytes"].numpy()]
            preparations |= {(prepared[name], kind) for name, kind in zip(rows, kinds, strict=True)}
    assert sizes == {(name, size) for name in ("serving_default", "by_name", "encoded") for size in (1, BATCH)}
    assert len(tasks) == BATCH
    assert preparations == {(augment, kind) for augment in prepared.values() for kind in ("JPEG", "PNG")}


@pytest.mark.parametrize("export", ["packed", "unpacked"])
def test_warm_up_requests_of_the_second_servable(exports, export):
    folder = exports / export / "with_mask" / "1"
    seen, kinds = set(), set()
    for signature, inputs, outputs in replay(folder):
        seen.add(signature)
        if signature == "with_mask":
            kinds.add((len(inputs["images"]), len(inputs["mask"]), len(inputs["norm"]) > 0))
            assert (outputs["class_id"].numpy() >= 0).all()
    # Whatever signatures an export has.
    assert seen == set(tf.saved_model.load(str(folder)).signatures)
    smallest = min(length for _, length, _ in kinds)
    assert kinds == {(1, smallest, False), (1, 2 * smallest, True), (BATCH, smallest, False)}


def test_warm_up_requests_are_small(exports):
    sizes = [path.stat().st_size for path in exports.rglob(WARMUP_FILE.name)]
    assert len(sizes) == 4
    assert 0 < max(sizes) < 20_000
