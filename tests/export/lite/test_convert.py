"""Conversions keep their temporary files where the next one finds what a killed one left."""

import tempfile

import pytest
import tensorflow as tf

from export.lite.convert import convert, convert_signatures
from export.lite.kinds import GraphKind
from export.shared.errors import ExportError
from piggyback_tf.head_spec import DENSE, HeadSpec
from tests.packs.helpers import small_backbone


def _convert():
    backbone = small_backbone()
    kind = GraphKind(HeadSpec(DENSE, 0), (backbone.image_size, backbone.image_size))
    return convert(backbone, kind, {}, "none")


def _convert_signatures():
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, [tf.TensorSpec([3], tf.float32, "x")], autograph=False)
    return convert_signatures(module, {"double": module.double.get_concrete_function()}, float16=False)


@pytest.mark.parametrize("make", [_convert, _convert_signatures], ids=["network", "signatures"])
def test_temporary_files_are_in_a_folder_that_is_known_by_its_name(make, tmp_path, monkeypatch):
    left = tmp_path / ".piggyback_tf-0123456789abcdef.tmp"
    left.mkdir()
    (left / ".lock").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refuse(*arguments, **options):
        pytest.fail("This is a temporary folder of which nobody knows when its maker was killed.")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    assert make()[4:8] == b"TFL3"
    # TensorFlow's autograph keeps a module there until the process ends.
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("__autograph_generated")] == []


@pytest.mark.parametrize("make", [_convert, _convert_signatures], ids=["network", "signatures"])
def test_a_full_disk_of_temporary_files_is_named(make, tmp_path, monkeypatch):
    def full(module, folder, **_):
        message = f"{folder}/variables/variables_temp/part-00000; No space left on device [Op:SaveV2]"
        raise tf.errors.ResourceExhaustedError(None, None, message)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(ExportError) as caught:
        make()
    assert str(caught.value) == f"{str(tmp_path)!r} cannot be written: No space left on device."
    assert not list(tmp_path.iterdir())
