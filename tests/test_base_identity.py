"""A pack of one network is not for another with the same weights, wherever both meet."""

import dataclasses
import hashlib
import json
import re

import keras
import pytest

from export.deployment.sent_pack import SentPack, SentPackError
from export.lite.inputs.run import StatelessModel
from export.lite.inputs.task_inputs import TaskInputs
from export.lite.inputs.write import add_inputs, export_inputs
from export.lite.model_description import append_files, read_model_description
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.plain import check_is_plain
from export.litert import export_litert
from export.saved_model import add_tasks, export_saved_model
from export.servable.read import read_export
from export.shared.errors import ExportError
from piggyback_tf.backbones import Backbone, structure_record
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.packs import BaseSpec, PackError, TaskBank, TaskPack
from piggyback_tf.packs.base_fit import MisfitError, check_same_weights
from piggyback_tf.sequences import with_start
from piggyback_tf.training import TrainingError, check_found
from tests.methods.toy import INPUTS, toy_tasks
from tests.packs.helpers import make_pack, pack_of, renamed, small_backbone, trained_model, twin_of

ELSE = r"is for a base with these weights that computes something else with them \(structure \w{12}..., here \w{12}"
OTHER = (
    r"another base: ('.*' with weights '.*' and )?hash \w{12}\.\.\., and this is '.*' with weights '.*' and hash \w{12}"
)
NOT_COMPARED = "Whether the same is computed with them here was not compared, since"


@pytest.fixture(scope="module", name="base")
def _base():
    return small_backbone()


@pytest.fixture(scope="module", name="twin")
def _twin(base):
    twin = twin_of(base)
    assert twin.hash == base.hash and twin.structure != base.structure
    return twin


@pytest.fixture(scope="module", name="pack")
def _pack(base):
    return pack_of(trained_model(base), base)


@pytest.fixture(autouse=True)
def _said_again():
    structure_record._say.cache_clear()


def _older(pack):
    """Returns the pack as it was before the structure of bases was recorded."""
    return dataclasses.replace(pack, base_structure=None, base_answers=None)


def _without_structure(path):
    """Takes out of a JSON file what identifies the computation of a base."""
    content = json.loads(path.read_text())
    assert {"base_structure", "base_answers"} <= content.keys()
    del content["base_structure"], content["base_answers"]
    path.write_text(json.dumps(content))


def test_a_bank_takes_no_pack_of_a_twin(base, twin, pack, tmp_path):
    pack.save(tmp_path / "birds.task.safetensors")
    for source in (pack, tmp_path / "birds.task.safetensors", tmp_path):
        with pytest.raises(MisfitError, match=f"Task 'birds' {ELSE}.*another scaling of images"):
            TaskBank(twin).add(source)
        # The same network made anew is the same base.
        assert TaskBank(twin_of(base, 1 / 127.5)).add(source).names == ["birds"]
    with pytest.raises(MisfitError, match=ELSE):
        TaskPack.load(tmp_path / "birds.task.safetensors", BaseSpec.of(twin))


def test_packs_of_before_are_accepted_with_a_sentence(base, twin, pack, caplog):
    bank = TaskBank(base).add(pack)
    assert not caplog.messages
    bank.add(renamed(_older(pack), "old"))
    bank.remove("old")
    bank.add(renamed(_older(pack), "old"))
    TaskBank(twin).add(renamed(_older(pack), "other"))
    said = [
        f"Task {name!r} is for a base with these weights. {NOT_COMPARED} it was written before"
        for name in ("old", "other")
    ]
    assert [message.partition(" that was recorded")[0] for message in caplog.messages] == said


def test_answers_of_unknown_layers_are_compared(caplog):
    def base(factor):
        images = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, kernel_initializer="ones")(keras.layers.Lambda(lambda x: factor * x)(images))
        return Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="lambda"))

    first, other = base(0.5), base(0.6)
    pack = pack_of(trained_model(first), first)
    assert pack.base_answers is not None
    loaded = TaskPack.from_bytes(pack.to_bytes(), base=BaseSpec.of(base(1 / 2)))
    assert loaded.content_digest() == pack.content_digest()
    assert loaded.base_answers == pack.base_answers
    with pytest.raises(MisfitError, match="other answers to two images"):
        TaskBank(other).add(pack)
    assert not caplog.messages


def test_masks_do_not_start_from_a_pack_of_a_twin(base, twin, pack, tmp_path):
    pack.save(tmp_path / "birds.task.safetensors")
    method = Piggyback(PiggybackConfig(init_from=str(tmp_path / "birds.task.safetensors")))
    data = toy_tasks()["spots"]
    with pytest.raises(PackError, match=ELSE):
        with_start(method, twin, data, INPUTS, seed=0)
    assert with_start(method, base, data, INPUTS, seed=0).start.masks


def test_a_run_does_not_go_on_with_a_twin(base, twin, tmp_path, caplog):
    data = {"class_names": ["a", "b"]}
    check_found(tmp_path, base, data)
    check_found(tmp_path, base, data)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"base_hash": base.hash, "base_structure": base.structure.digest, "base_answers": None, **data}
    with pytest.raises(TrainingError, match=f"The run in '{re.escape(str(tmp_path))}' {ELSE}"):
        check_found(tmp_path, twin, data)
    with pytest.raises(TrainingError, match="class_names was"):
        check_found(tmp_path, base, {"class_names": ["a"]})
    with pytest.raises(TrainingError, match="base_hash was"):
        check_found(tmp_path, small_backbone(seed=1), data)
    assert not caplog.messages
    # A run of before goes on.
    _without_structure(tmp_path / "found.json")
    check_found(tmp_path, base, data)
    assert len(caplog.messages) == 1 and f"{NOT_COMPARED} it was written" in caplog.messages[0]
    (tmp_path / "found.json").write_text(json.dumps(found | {"base_structure": 7}))
    with pytest.raises(TrainingError, match="found.json is damaged"):
        check_found(tmp_path, base, data)


@pytest.mark.slow
def test_a_server_gets_no_pack_of_a_twin(base, twin, pack, tmp_path, caplog):
    with pytest.raises(PackError, match=ELSE):
        export_saved_model(twin, [pack], tmp_path / "none")
    first = export_saved_model(base, [pack], tmp_path / "served")
    foreign = pack_of(trained_model(twin, seed=1), twin, "fish")
    foreign.save(tmp_path / "fish")
    with pytest.raises(PackError, match=f"Task 'fish' {ELSE}"):
        add_tasks(first, [tmp_path / "fish"])
    other = small_backbone(seed=1)
    for sent, reason in (
        (foreign, ELSE),
        (renamed(pack_of(trained_model(other), other), "fish"), f"was trained on {OTHER}"),
        (dataclasses.replace(pack, task="fish", image_size=64), "takes images of 64 pixels"),
    ):
        sent.save(tmp_path / "sent")
        with pytest.raises(SentPackError, match=f"Task 'fish' {reason}.*The base here is that of the export '.*json'"):
            SentPack(str(tmp_path / "sent"), str(first))
    second = add_tasks(first, [renamed(pack, "fish")])
    assert read_export(second)[0].spec.structure == base.structure
    assert not caplog.messages
    # An export of before takes it, and its next version says no more than it did.
    _without_structure(first / "assets" / "export.json")
    third = add_tasks(first, [tmp_path / "fish"])
    assert read_export(third)[0].spec.structure is None
    assert len(caplog.messages) == 1
    assert (
        f"Task 'fish' is for a base with these weights. {NOT_COMPARED} what is here of the base" in caplog.messages[0]
    )


def test_whatever_was_made_of_other_weights_is_refused_in_one_sentence(base, pack, tmp_path):
    """Models and files for devices are asked in the tests of their designs, which write some."""
    other = small_backbone(seed=1)
    with pytest.raises(MisfitError, match=f"^Task 'birds' was trained on {OTHER}"):
        TaskBank(other).add(pack)
    model = {"design": "plain", "base_hash": base.hash}
    check_is_plain(model, tmp_path / "birds.tflite", base)
    with pytest.raises(MisfitError, match=f"^The model '.*birds.tflite' was made of {OTHER}"):
        check_is_plain(model, tmp_path / "birds.tflite", other)
    with pytest.raises(ExportError, match=f"^'base.tflite' was made of {OTHER}"):
        check_same_weights("'base.tflite' was made of", base.hash, other, ExportError)
    check_same_weights("'base.tflite' was made of", base.hash, base)


def test_a_device_gets_no_task_of_a_twin(base, twin, pack, tmp_path, caplog):
    with pytest.raises(PackError, match=ELSE):
        export_litert(twin, [pack], tmp_path / "none")
    export_litert(base, [pack], tmp_path / "device")
    file, own = tmp_path / "device" / "base.tflite", pack_of(trained_model(twin, seed=1), twin, "fish")
    with pytest.raises(ExportError, match=f"base.tflite' {ELSE}"):
        write.add_patches(twin, [own], file, tmp_path, LiteOptions())
    assert not list(tmp_path.glob("*.edge")) and not caplog.messages
    _without_structure(tmp_path / "device" / "manifest.json")
    write.add_patches(base, [renamed(pack, "again")], file, tmp_path, LiteOptions())
    assert (tmp_path / "again.edge").is_file()
    assert [NOT_COMPARED in message for message in caplog.messages] == [True]


def test_a_model_that_takes_masks_gets_no_task_of_a_twin(base, twin, pack, tmp_path):
    (inputs,) = export_inputs(base, [pack], tmp_path / "a", LiteOptions(design="input"))[1:]
    own = pack_of(trained_model(twin, seed=1), twin, "fish")
    with pytest.raises(PackError, match=f"The model '.*model.tflite' {ELSE}"):
        add_inputs(twin, [own], tmp_path / "a" / "model.tflite")
    assert add_inputs(base, [renamed(pack, "again")], tmp_path / "a" / "model.tflite")[0].is_file()
    # Nor are the inputs of a task of one of them those of a model of the other.
    export_inputs(twin, [own], tmp_path / "b", LiteOptions(design="input"))
    with pytest.raises(PackError, match="were made for another model"):
        StatelessModel(tmp_path / "b" / "model.tflite").set_task(inputs)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_model_of_before_that_takes_masks_takes_more_tasks(base, pack, tmp_path, caplog):
    model, _ = export_inputs(base, [pack], tmp_path / "a", LiteOptions(design="input"))
    found = read_model_description(model)
    description = {key: found[key] for key in ("design", "quantize")}
    layout = {key: value for key, value in found["layout"].items() if key != "base_structure"}
    digest = hashlib.sha256(json.dumps(layout, separators=(",", ":")).encode()).hexdigest()
    append_files(model, description | {"layout": layout, "digest": digest})
    (inputs,) = add_inputs(base, [renamed(pack, "again")], model)
    assert TaskInputs.load(inputs).description["layout"] == digest
    assert [NOT_COMPARED in message for message in caplog.messages] == [True]


def test_a_pack_says_what_its_base_computes(base, pack):
    assert pack.base_structure == base.structure.digest and pack.base_answers is None
    assert pack.content_digest() != _older(pack).content_digest()
    assert make_pack().base_structure is None
