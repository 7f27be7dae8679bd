"""The folder of an export: what is in it, how it is written, and how tasks are added to it."""

import contextlib
import dataclasses
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.saved_model.loader_impl import parse_saved_model

from export.saved_model import add_tasks, export_saved_model
from export.servable import write
from export.servable.additions import BATCHING_FILE
from export.servable.folder import find_version, new_version, next_version, read_description
from export.servable.options import ExportOptions
from export.servable.read import read_export
from export.servable.task_tables import TaskTables
from export.servable.unpacked_kernels import choose_cache, memory_needed
from export.shared.errors import ExportError
from piggyback_tf.data import DataError
from piggyback_tf.packs import PackError
from tests.export.helpers import encode, picture
from tests.packs.helpers import pack_of, renamed, trained_model

IMAGES = np.random.default_rng(2).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def _graphs(folder):
    graph = parse_saved_model(str(folder)).meta_graphs[0].graph_def
    return [list(graph.node), *(list(function.node_def) for function in graph.library.function)]


def test_only_stock_operations(small):
    for folder in (small.packed, small.unpacked, small.packed.parent / "with_mask" / "1"):
        used = {node.op for nodes in _graphs(folder) for node in nodes}
        assert {"Conv2D", "BitwiseAnd", "Bitcast", "StatefulPartitionedCall"} <= used
        # An operation of another library is unknown here, as it would be to a server.
        assert not {name for name in used if not hasattr(tf.raw_ops, name)} - {"Placeholder"}
        # These are TensorFlow's, and need Python or a compiler.
        assert not {name for name in used if name in ("PyFunc", "EagerPyFunc", "PyFuncStateless") or "Xla" in name}


def test_the_forward_pass_is_in_the_graph_once(small):
    convolutions = [node.name for nodes in _graphs(small.packed) for node in nodes if node.op == "Conv2D"]
    expected = [
        node.name for nodes in _graphs(small.packed / "assets/network") for node in nodes if node.op == "Conv2D"
    ]
    assert len(convolutions) == len(expected) > 0


def test_signatures_are_readable(small):
    signatures = small.loaded().signatures
    found = {
        name: [{key: (spec.dtype.name, spec.shape.as_list()) for key, spec in part.items()} for part in parts]
        for name, parts in ((n, (s.structured_input_signature[1], s.structured_outputs)) for n, s in signatures.items())
    }
    images, answer = ("uint8", [None, 8, 8, 3]), {"class_id": ("int32", [None]), "task_ok": ("bool", [None])}
    answer["probabilities"] = ("float32", [None, 7])
    assert found == {
        "serving_default": [{"images": images, "task": ("int32", [None])}, answer],
        "by_name": [{"images": images, "task": ("string", [None])}, answer],
        "encoded": [
            {"image_bytes": ("string", [None]), "task": ("string", [None])},
            {
                "labels": ("string", [None, 5]),
                "scores": ("float32", [None, 5]),
                "task_ok": ("bool", [None]),
                "image_ok": ("bool", [None]),
            },
        ],
    }


def test_masks_and_heads_take_no_more_than_their_bits(small):
    base, tables, _ = read_export(small.packed)
    masks = [2 if pack.mask_kind == "ternary" else 1 for pack in small.packs]
    assert tables.planes.shape == (sum(masks), base.layout.mask_bytes)
    assert tables.heads.nbytes == sum(4 * 10 * len(pack.class_names) for pack in small.packs)
    assert len(tables.norms) == 1 + sum(bool(pack.norm) for pack in small.packs)
    description = json.loads((small.packed / "assets" / "export.json").read_text())
    assert [entry["content_digest"] for entry in description["tasks"]] == [p.content_digest() for p in small.packs]


@pytest.fixture(scope="module", name="added")
def _added(small, tmp_path_factory):
    """The export of the first three tasks, and one to which the others were added."""
    folder = tmp_path_factory.mktemp("added")
    first = export_saved_model(small.backbone, small.packs[:3], folder, ExportOptions(cache="unpacked"))
    # As `export.serving` does.
    (first / BATCHING_FILE).write_text("max_batch_size { value: 4 }\n")
    return first, add_tasks(first, small.packs[3:])


def test_both_servables_share_the_files_of_their_variables(small, added):
    for first in (small.packed, *added):
        second = first.parent / "with_mask" / first.name / "variables"
        files = sorted(path.name for path in second.iterdir())
        assert files == sorted(path.name for path in (first / "variables").iterdir())
        assert all((second / name).samefile(first / "variables" / name) for name in files)


def test_added_tasks_answer_and_the_old_ones_are_the_same_to_the_bit(small, added):
    assert [path.name for path in added] == ["1", "2"]
    models = [tf.saved_model.load(str(path)).signatures["serving_default"] for path in added]
    tasks = np.array([2, 0, 1, 1, 0, 2], np.int32)
    old, new = (model(images=tf.constant(IMAGES), task=tf.constant(tasks)) for model in models)
    width = old["probabilities"].shape[1]
    assert new["probabilities"].shape[1] > width
    np.testing.assert_array_equal(new["probabilities"][:, :width], old["probabilities"])
    for task, pack in enumerate(small.packs):
        found = models[1](images=tf.constant(IMAGES), task=tf.fill([len(IMAGES)], task))["probabilities"].numpy()
        expected = small.bank.predict(IMAGES, task=pack.task)
        np.testing.assert_allclose(found[:, : expected.shape[1]], expected, rtol=0, atol=1e-5)


def test_an_export_that_was_added_to_holds_what_one_made_at_once_does(small, added):
    whole = read_export(small.packed)[1]
    grown, options = read_export(added[1])[1:]
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(getattr(grown, name), array, err_msg=name)
    assert (grown.preparations, grown.details) == (whole.preparations, whole.details)
    assert options.cache == "unpacked"
    assert [read_description(path)["kernels"] for path in (small.packed, added[1])] == ["packed", "unpacked"]


def test_nothing_is_left_of_an_export_that_failed(small, tmp_path, added):
    with pytest.raises(PackError, match="two tasks named 'binary'"):
        export_saved_model(small.backbone, [small.packs[0]] * 2, tmp_path)
    with pytest.raises(PackError, match="two tasks named 'binary'"):
        add_tasks(added[1], [small.packs[0]], tmp_path)
    other = dataclasses.replace(small.packs[0], base_hash="cd" * 32)
    with pytest.raises(PackError, match="trained on another base"):
        add_tasks(added[1], [other], tmp_path)
    with pytest.raises(DataError, match="cannot be exported"):
        add_tasks(added[1], [dataclasses.replace(renamed(small.packs[0], "new"), eval_augment="flip")], tmp_path)
    with pytest.raises(ExportError, match="at least one task"):
        export_saved_model(small.backbone, [], tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match="version 2 already"):
        add_tasks(added[0], [renamed(small.packs[0], "new")], version=2)
    assert not list(added[0].parent.glob(".*"))


def test_of_two_that_add_tasks_at_a_time_the_later_one_is_refused(small, tmp_path, monkeypatch):
    shutil.copytree(small.packed, tmp_path / "1")

    def read(source):
        # Here the other one is done.
        (tmp_path / "2").mkdir()
        return read_export(source)

    monkeypatch.setattr(write, "read_export", read)
    with pytest.raises(ExportError, match="There is a version 2 already"):
        add_tasks(tmp_path, [renamed(small.packs[0], "new")])
    with pytest.raises(ExportError, match="There is a version 3 already"), new_version(tmp_path, 3):
        (tmp_path / "with_mask" / "3").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "with_mask"]


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path):
    left = tmp_path / ".piggyback_tf-0123456789abcdef.tmp"
    (left / "main").mkdir(parents=True)
    (left / ".lock").touch()
    with contextlib.suppress(KeyError), new_version(tmp_path, 1) as (first, _):
        assert not left.exists()
        with contextlib.suppress(KeyError), new_version(tmp_path, 2):
            raise KeyError
        assert first.parent.is_dir()
        raise KeyError
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_left_when_the_disk_is_full(small, tmp_path, monkeypatch):
    def full(module, folder, **_):
        # Word for word, of TensorFlow 2.21.
        said = "{{function_node __wrapped__SaveV2_dtypes_16_device_/job:localhost/replica:0/task:0/device:CPU:0}} "
        said += f"{folder}/variables/variables_temp/part-00000-of-00001.data-00000-of-00001.tempstate29324"
        raise tf.errors.ResourceExhaustedError(None, None, f"{said}; No space left on device [Op:SaveV2]")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(ExportError) as caught:
        export_saved_model(small.backbone, small.packs[:1], tmp_path / "out")
    assert str(caught.value) == f"{str(tmp_path / 'out')!r} cannot be written: No space left on device."
    assert not list(tmp_path.iterdir())


def test_a_version_may_be_given_from_within(small, monkeypatch):
    monkeypatch.chdir(small.packed)
    monkeypatch.setattr(write, "_write", lambda *arguments: (arguments[4], arguments[-1]))
    assert add_tasks(".", [renamed(small.packs[0], "new")]) == (small.packed.parent, small.packed)


def test_the_second_servable_is_there_before_the_first_is_listed(tmp_path, monkeypatch):
    """A server that sees the version in the folder finds both."""
    seen, replace = [], Path.replace

    def watched(path, target):
        done = replace(path, target)
        seen.append([(tmp_path / name).is_dir() for name in ("with_mask/1", "1")])
        return done

    with new_version(tmp_path, 1) as folders:
        for folder in folders:
            folder.mkdir()
        monkeypatch.setattr(Path, "replace", watched)
    assert seen == [[True, False], [True, True]]


def test_a_first_servable_that_cannot_be_renamed_leaves_nothing(tmp_path, monkeypatch):
    replace = Path.replace

    def failing(path, target):
        if target == tmp_path / "1":
            raise OSError("no room")
        return replace(path, target)

    with pytest.raises(OSError, match="no room"), new_version(tmp_path, 1) as folders:
        for folder in folders:
            folder.mkdir()
        monkeypatch.setattr(Path, "replace", failing)
    assert not list(tmp_path.iterdir())


def test_a_server_finds_what_it_reads_while_it_loads_a_new_version(added):
    assert (added[1] / BATCHING_FILE).read_bytes() == (added[0] / BATCHING_FILE).read_bytes()
    assert not (added[1].parent / "with_mask" / added[1].name / BATCHING_FILE).exists()


def test_versions_are_counted_and_found(added, tmp_path):
    folder = added[0].parent
    assert next_version(folder) == 3
    assert find_version(folder) == added[1]
    assert find_version(added[0]) == added[0]
    assert next_version(tmp_path / "new") == 1
    with pytest.raises(ExportError, match="is no export"):
        find_version(tmp_path)


def test_a_damaged_export_is_refused(small, tmp_path):
    copy = tmp_path / "1"
    for path in small.packed.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(small.packed)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    read_export(copy)
    variables = next(copy.glob("variables/variables.data*"))
    variables.write_bytes(variables.read_bytes()[:1000])
    with pytest.raises(ExportError, match="is no whole export"):
        read_export(copy)
    (copy / "assets/export.json").write_text('{"format": 4}')
    with pytest.raises(ExportError, match="format 4"):
        read_export(copy)


def _of_names(tables, count):
    """Returns tables as of so many tasks."""
    names = np.array([f"task {index}".encode() for index in range(count)], object)
    return TaskTables.restore({**tables.arrays(), "names": names}, tables.to_json())


def test_only_few_tasks_are_unpacked_unless_that_is_asked_for(small):
    """Of a hundred tasks on a small base each call was hardly faster, and loading took 11 s in the place of 0.7."""
    base, tables, _ = read_export(small.packed)

    def chosen(cache, count):
        return choose_cache(cache, 4096, base.layout, _of_names(tables, count))

    assert [chosen("auto", count) for count in (1, 4, 5, 100)] == ["unpacked"] * 2 + ["packed"] * 2
    assert [chosen("unpacked", count) for count in (1, 100)] == ["unpacked"] * 2


def test_the_cache_is_chosen_by_the_limit_of_memory(small):
    tables = _of_names(read_export(small.packed)[1], 3)
    layout = types.SimpleNamespace(kernels=types.SimpleNamespace(length=10**6), rest=types.SimpleNamespace(length=10))
    need = memory_needed(layout, tables)
    assert need["unpacked"] - need["packed"] == len(tables.names) * 4 * 10**6
    limit = -(-need["unpacked"] // 2**20)
    assert choose_cache("auto", limit, layout, tables) == choose_cache("unpacked", limit, layout, tables) == "unpacked"
    assert choose_cache("auto", limit - 1, layout, tables) == "packed"
    assert choose_cache("packed", limit, layout, tables) == "packed"
    with pytest.raises(ValueError, match=f"take {limit} MiB of memory, and --memory_limit is {limit - 1} MiB. With"):
        choose_cache("unpacked", limit - 1, layout, tables)
    with pytest.raises(ValueError, match="3 tasks with packed kernels take"):
        choose_cache("auto", 1, layout, tables)


@pytest.fixture(scope="module", name="odd")
def _odd(small, tmp_path_factory):
    """The signatures of an export that decodes small files alone, with a task of unusual names behind the others."""
    pack = pack_of(trained_model(small.backbone, classes=2), small.backbone, "Vögel 鳥", 2)
    pack = dataclasses.replace(pack, class_names=["Zaunkönig", ""])
    options = ExportOptions(max_image_pixels=400)
    folder = export_saved_model(small.backbone, [*small.packs, pack], tmp_path_factory.mktemp("odd"), options)
    return tf.saved_model.load(str(folder)).signatures


def test_larger_files_than_the_option_says_are_flagged(small, odd):
    files = [encode(picture(*sides), kind) for kind in ("JPEG", "PNG") for sides in ((20, 20), (20, 21), (10, 40))]
    task = small.packs[0].task
    found = odd["encoded"](image_bytes=tf.constant(files), task=tf.constant([task] * 6))
    assert found["image_ok"].numpy().tolist() == [True, False, True] * 2
    # Nothing else changes.
    whole = small.loaded().signatures["encoded"]
    expected = whole(image_bytes=tf.constant(files), task=tf.constant([task] * 6))
    good = found["image_ok"].numpy()
    np.testing.assert_allclose(found["scores"].numpy()[good], expected["scores"].numpy()[good], rtol=0, atol=1e-6)
    assert expected["image_ok"].numpy().all()


@pytest.mark.parametrize(
    "field, value",
    [("cache", "both"), ("memory_limit", 0), ("top_k", 0), ("image_dtype", "float16")]
    + [("max_image_pixels", 0), ("max_image_pixels", 10**8)],
)
def test_options_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        ExportOptions(**{field: value})


def test_names_and_classes_may_be_any_text(odd):
    found = odd["by_name"](images=tf.constant(IMAGES), task=tf.constant(["Vögel 鳥"] * 5 + ["Vogel"]))
    assert found["task_ok"].numpy().tolist() == [True] * 5 + [False]
