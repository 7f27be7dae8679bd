"""Where exports are written to: as it is given, and nowhere by mistake."""

import errno
import os
from pathlib import Path

import pytest

from export.lite.folder import new_folder
from export.shared.errors import ExportError
from tests.forked import ROOT, run_forked


@pytest.mark.parametrize("module", ["saved_model", "litert", "serving", "verify"])
def test_an_empty_path_is_refused_and_nothing_is_written(module, tmp_path):
    """As a variable of a shell leaves it that is not set."""
    (tmp_path / "a.task.safetensors").touch()
    given = {
        "serving": ["folder", "--output="],
        "verify": ["folder", "--packs=a.task.safetensors", "--images="],
    }.get(module, ["--packs=a.task.safetensors", "--output="])
    program = (
        "import os, runpy, sys; sys.path.insert(0, sys.argv[1]); os.chdir(sys.argv[2]); del sys.argv[1:3]; "
        f"runpy.run_module('export.{module}', run_name='__main__', alter_sys=True)"
    )
    done = run_forked("-c", program, ROOT, tmp_path, *given)
    assert done.returncode == 2
    assert f"{given[-1].removesuffix('=') if module == 'verify' else given[-1]} is" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.task.safetensors"]


def test_a_device_folder_appears_whole_and_what_a_killed_export_left_goes(tmp_path):
    left = tmp_path / ".piggyback_tf-0123456789abcdef.tmp"
    (left / "device").mkdir(parents=True)
    (left / ".lock").touch()
    (tmp_path / "link").symlink_to(tmp_path / "device")
    mask = os.umask(0o027)
    try:
        with new_folder(tmp_path / "link") as folder:
            assert not left.exists()
            (folder / "base.tflite").touch()
            assert not (tmp_path / "device").exists()
    finally:
        os.umask(mask)
    assert [path.name for path in (tmp_path / "device").iterdir()] == ["base.tflite"]
    assert (tmp_path / "device").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "link"]
    with pytest.raises(ExportError, match="this is there already"), new_folder(tmp_path / "device"):
        pass


def test_a_device_folder_that_fails_leaves_nothing_and_takes_no_place(tmp_path, monkeypatch):
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "b" / "device") as folder:
        (folder / "base.tflite").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())
    # A full disk: Python's error of a write names no file, or the temporary one, and others name their own.
    for named, path in ((True, None), (True, ".piggyback_tf-0123456789abcdef.tmp/x"), (False, "images/x.png")):
        with pytest.raises(OSError) as caught, new_folder(tmp_path / "device"):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        assert caught.value.filename == (str(tmp_path / "device") if named else path)
    # As it was given, which is what its user knows it by.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught, new_folder(Path("device")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == "device"
    # Somebody else wrote there meanwhile.
    with pytest.raises(ExportError, match="this is there already"), new_folder(tmp_path / "device"):
        (tmp_path / "device").mkdir()
        (tmp_path / "device" / "base.tflite").write_text("other")
    assert [path.name for path in tmp_path.iterdir()] == ["device"]
    assert (tmp_path / "device" / "base.tflite").read_text() == "other"
