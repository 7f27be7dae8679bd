"""What is written beside an export for a server."""

import json
import shutil
import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export.deployment import owned_files
from export.deployment.memory import ServerMemory, memory_of
from export.deployment.options import ServingOptions
from export.saved_model import add_tasks
from export.servable.additions import WARMUP_FILE, carry_over
from export.servable.options import MAX_PIXELS
from export.servable.read import read_export
from export.servable.unpacked_kernels import memory_needed
from export.serving import write_deployment
from export.shared.errors import ExportError
from tests.export.helpers import BATCH, ROOT, replay
from tests.packs.helpers import renamed

NAMES = [
    "models.config",
    "batching_parameters.txt",
    "monitoring.config",
    "docker-compose.yml",
    "kubernetes.yaml",
    "client.py",
]
# The fields of BatchingParameters in TensorFlow Serving's session_bundle_config.proto that are wrapped numbers.
WRAPPED = {
    "Int64Value": ["max_batch_size", "max_execution_batch_size", "batch_timeout_micros"]
    + ["max_enqueued_batches", "num_batch_threads"],
    "StringValue": ["thread_pool_name"],
    "BoolValue": ["enable_large_batch_splitting"],
}


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _models(folder):
    config = text_format.Parse((folder / "models.config").read_text(), ModelServerConfig())
    return list(config.model_config_list.config)


def _batching_parameters(text):
    """Parses text of a message of which no Python package has the definition."""
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="p", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    for kind, names in WRAPPED.items():
        for name in names:
            message.field.add(
                name=name, number=len(message.field) + 1, type=11, label=1, type_name=f".google.protobuf.{kind}"
            )
    message.field.add(name="pad_variable_length_inputs", number=20, type=8, label=1)
    message.field.add(name="allowed_batch_sizes", number=21, type=3, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    found = text_format.Parse(
        text, message_factory.GetMessageClass(pool.FindMessageTypeByName("p.BatchingParameters"))()
    )
    return {field.name: getattr(value, "value", value) for field, value in found.ListFields()}


def test_a_server_finds_both_servables(exports):
    models = _models(exports / "packed" / "deployment")
    assert [model.name for model in models] == ["piggyback", "piggyback_with_mask"]
    for model in models:
        assert model.model_platform == "tensorflow"
        assert model.model_version_policy.latest.num_versions == 1
        folder = exports / "packed" / model.base_path.removeprefix("/models/piggyback").lstrip("/")
        # A server loads whatever lies below the base path under a number.
        versions = [path for path in folder.iterdir() if path.name.isdigit()]
        assert versions
        assert all((path / "saved_model.pb").is_file() for path in versions)


def test_only_the_first_servable_is_batched(exports):
    first, second = exports / "packed" / "1", exports / "packed" / "with_mask" / "1"
    assert not (second / "batching_params.pbtxt").exists()
    assert _batching_parameters((first / "batching_params.pbtxt").read_text()) == {
        "max_batch_size": 8 * BATCH,
        "enable_large_batch_splitting": True,
        "max_execution_batch_size": BATCH,
        "batch_timeout_micros": 1000,
        "max_enqueued_batches": 64,
    }
    shared = _batching_parameters((exports / "packed/deployment/batching_parameters.txt").read_text())
    assert shared == {"num_batch_threads": 2, "thread_pool_name": "batching"}


def test_an_export_is_read_as_before(exports, small):
    for name in ("packed", "unpacked"):
        before, after = read_export(getattr(small, name)), read_export(exports / name / "1")
        assert after[1].to_json() == before[1].to_json()


def test_memory_is_that_of_the_arrays(small):
    def need(folder, loaded=1, **options):
        return memory_of([folder], ServingOptions(**options), loaded)

    base, tables, _ = read_export(small.packed)
    arrays = memory_needed(base.layout, tables)
    packed, unpacked = need(small.packed), need(small.unpacked)
    assert unpacked.arrays - packed.arrays == arrays["unpacked"] - arrays["packed"]
    assert packed.arrays > arrays["packed"] + 4 * base.layout.kernels.length
    assert need(small.packed, cpus=8).working == 2 * packed.working
    mega = 2**20
    # One image of the largest size must not be enough to have a server killed.
    assert packed.decoding == 4 * MAX_PIXELS * 12
    assert ServerMemory(100 * mega, 50 * mega, 30 * mega, 2).request == 512 + 2 * 100 + 50
    assert ServerMemory(100 * mega, 50 * mega, 30 * mega, 2).limit == (512 + 3 * 100 + 50 + 30) * 5 / 4


def test_memory_is_that_of_the_kernels_as_they_were_written(export):
    path = export / "1/assets/export.json"
    content = json.loads(path.read_text()) | {"kernels": "packed"}
    content["options"]["cache"] = "auto"
    found = {}
    # Earlier versions unpacked whatever fits, and did not write it down.
    for kernels in ("packed", "unpacked", None):
        content["kernels"] = kernels
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
        found[kernels] = memory_of([export / "1"], ServingOptions(), 1).arrays
    assert found["packed"] < found["unpacked"] == found[None]


def test_memory_follows_the_largest_image_that_is_decoded(export):
    """Three megabytes of arrays had a limit of 5.8 GB."""
    path, found = export / "1/assets/export.json", {}
    content = json.loads(path.read_text())
    # Exports of earlier versions do not have the option.
    for pixels in (MAX_PIXELS, 12_000_000, None):
        content["options"] = {name: v for name, v in content["options"].items() if name != "max_image_pixels"}
        content["options"] |= {} if pixels is None else {"max_image_pixels": pixels}
        path.write_text(json.dumps(content))
        found[pixels] = memory_of([export / "1"], ServingOptions(), 1)
    assert found[None] == found[MAX_PIXELS]
    assert found[12_000_000].decoding == 4 * 12_000_000 * 12
    assert found[12_000_000].limit < 1400 < 5000 < found[None].limit


@pytest.mark.parametrize(
    "labels, loaded", [({}, 1), ({"stable": 3}, 2), ({"canary": 3, "stable": 2}, 3), ({"stable": 1}, 4)]
)
def test_labelled_versions_stay_loaded_while_one_more_comes(export, labels, loaded):
    write_deployment(export, options=ServingOptions(**labels))
    for model in _models(export / "deployment"):
        assert dict(model.version_labels) == labels
        assert model.model_version_policy.latest.num_versions == loaded


def test_what_was_written_is_replaced_and_what_was_edited_is_not(export):
    first = write_deployment(export)
    assert sorted(path.name for path in first if path.parent.name == "deployment") == sorted(NAMES)
    before = _files(export)
    assert write_deployment(export) == []
    assert _files(export) == before
    changed = write_deployment(export, options=ServingOptions(stable=3))
    # The other file says how much memory there is, which a small export does not change.
    assert {path.name for path in changed} - {"docker-compose.yml"} == {"models.config", "kubernetes.yaml"}
    edited = export / "2" / "batching_params.pbtxt"
    edited.write_text("max_batch_size { value: 7 }\n")
    before = _files(export)
    with pytest.raises(ExportError, match="2/batching_params.pbtxt' was not written by this command, or was changed"):
        write_deployment(export, options=ServingOptions(max_batch_size=16))
    assert _files(export) == before
    write_deployment(export, options=ServingOptions(max_batch_size=16), overwrite=True)
    assert _batching_parameters(edited.read_text())["max_execution_batch_size"] == 16


def test_a_deployment_may_be_written_to_a_second_place(export, tmp_path):
    """The files in the versions are those of the last call, wherever it wrote the others."""
    first, second = (ServingOptions(max_batch_size=size) for size in (32, 8))
    write_deployment(export, options=first)
    for options, output in ((second, tmp_path / "out"), (first, None), (second, export / "../export/deployment")):
        write_deployment(export, output, options)
        found = _batching_parameters((export / "2" / "batching_params.pbtxt").read_text())
        assert found["max_execution_batch_size"] == options.max_batch_size
    # As earlier versions remembered it: in the folder of the deployment alone.
    record, older = export / ".written.json", export / "deployment/.written.json"
    old = {f"../{name}": digest for name, digest in json.loads(record.read_text()).items()}
    older.write_text(json.dumps(json.loads(older.read_text()) | old))
    record.unlink()
    write_deployment(export, tmp_path / "third", first)
    (export / "2" / "batching_params.pbtxt").write_text("edited\n")
    with pytest.raises(ExportError, match="2/batching_params.pbtxt' was not written by this command"):
        write_deployment(export, tmp_path / "fourth", second)
    assert not (tmp_path / "fourth").exists()


def test_warm_up_requests_of_others_are_kept(export):
    path = export / "1" / WARMUP_FILE
    path.parent.mkdir()
    path.write_bytes(b"recorded")
    with pytest.raises(ExportError, match="replace it with --overwrite"):
        write_deployment(export)
    assert path.read_bytes() == b"recorded"
    assert not (export / "deployment").exists()


def test_nothing_is_left_when_the_disk_is_full(export, monkeypatch):
    before, real = _files(export), owned_files.atomic_file

    def full(path):
        if path.name == "client.py":
            raise OSError("No space left on device")
        return real(path)

    monkeypatch.setattr(owned_files, "atomic_file", full)
    with pytest.raises(OSError, match="No space"):
        write_deployment(export)
    assert _files(export) == before
    assert not (export / "deployment").exists()
    assert not (export / "3" / "assets.extra").exists()


def test_a_version_that_grows_out_of_another_has_what_was_added(export):
    write_deployment(export)
    added = [WARMUP_FILE, "batching_params.pbtxt"]
    for name in added:
        (export / "3" / name).unlink()
    (export / "with_mask/3" / WARMUP_FILE).unlink()
    carry_over(export / "1", export / "3", export / "with_mask/3")
    for name in added:
        assert (export / "3" / name).read_bytes() == (export / "1" / name).read_bytes()
    assert (export / "with_mask/3" / WARMUP_FILE).is_file()
    assert not (export / "with_mask/3/batching_params.pbtxt").exists()
    # Images of another type: the requests would fail, and with them the loading.
    path = export / "2/assets/export.json"
    path.write_text(path.read_text().replace('"uint8"', '"float32"'))
    (export / "2" / WARMUP_FILE).unlink()
    carry_over(export / "1", export / "2", export / "with_mask/2")
    assert not (export / "2" / WARMUP_FILE).exists()


@pytest.mark.slow
def test_a_deployment_is_brought_up_to_date_after_tasks_were_added(small, tmp_path):
    shutil.copytree(small.packed.parent, tmp_path / "export")
    write_deployment(tmp_path / "export", options=ServingOptions(stable=1))
    added = add_tasks(tmp_path / "export", [renamed(small.packs[0], "new")])
    before = (added / WARMUP_FILE).read_bytes()
    write_deployment(tmp_path / "export", options=ServingOptions(stable=1, canary=2))
    assert (added / WARMUP_FILE).read_bytes() != before
    for signature, _, outputs in replay(added):
        assert signature == "encoded" or (outputs["class_id"].numpy() >= 0).all()
    (added / WARMUP_FILE).write_bytes(b"recorded")
    with pytest.raises(ExportError, match="2/assets.extra/.*was not written by this command, or was changed"):
        write_deployment(tmp_path / "export")


def test_what_is_no_whole_export_is_refused(export, tmp_path):
    for folder, message in (
        (tmp_path, "is no export"),
        (export / "2", "is one version of an export; give the folder"),
    ):
        with pytest.raises(ExportError, match=message):
            write_deployment(folder)
    with pytest.raises(ExportError, match="--canary=7: there is no version 7; there are 1, 2, 3"):
        write_deployment(export, options=ServingOptions(canary=7))
    shutil.rmtree(export / "with_mask" / "2")
    with pytest.raises(ExportError, match="there is no folder .*with_mask/2'"):
        write_deployment(export)
    (export / "with_mask" / "2").mkdir()
    with pytest.raises(ExportError, match="with_mask/2' is no whole SavedModel"):
        write_deployment(export)
    (export / "with_mask" / "8").mkdir()
    with pytest.raises(ExportError, match="with_mask/8' stands alone"):
        write_deployment(export)
    (export / "with_mask" / "8").rmdir()
    (export / "9").mkdir()
    with pytest.raises(ExportError, match="9' is no export, or is damaged"):
        write_deployment(export)
    assert not list(export.rglob(".*"))


@pytest.mark.parametrize(
    "field, value",
    [("name", "a/b"), ("name", "1a"), ("name", "a" * 41), ("image", "a b"), ("cpus", 0), ("stable", -1)],
)
def test_options_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        ServingOptions(**{field: value})


@pytest.mark.slow
def test_the_command_prints_the_files_or_one_sentence(export):
    def run(*arguments):
        command = [sys.executable, "-m", "export.serving", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    good = run(export, "--stable=2", "--max_batch_size=2")
    assert good.returncode == 0, good.stderr
    assert sorted(good.stdout.split()) == sorted(
        [str(export / "deployment" / name) for name in NAMES]
        + [str(export / version / name) for version in "123" for name in (WARMUP_FILE, "batching_params.pbtxt")]
        + [str(export / "with_mask" / version / WARMUP_FILE) for version in "123"]
    )
    # What has changed is written again.
    again = run(export, "--stable=2", "--max_batch_size=4", "--json")
    written = json.loads(again.stdout)["files"]
    assert str(export / "1" / "batching_params.pbtxt") in written
    assert set(written) < set(good.stdout.split())
    for bad in (run(export, "--stable=8"), run(export, "--cpus=0"), run(export / "none")):
        assert (bad.returncode, bad.stdout) == (2, "")
        assert "Traceback" not in bad.stderr
    assert "export.serving: --stable=8: there is no version 8" in run(export, "--stable=8").stderr
