"""What binds the output folder of a run to its settings."""

import json

import pytest

from piggyback_tf.training import TrainingError, check_settings, run_folder


def test_other_settings_are_refused_once_there_is_something_to_lose(tmp_path):
    with run_folder(tmp_path) as folder:
        check_settings(folder, {"data": "folder:typo", "method": "dan"})
        check_settings(folder, {"classes": 2}, file="found.json", prefix="")
        for name in ("1_art/start.json", "tensorboard/events"):
            (folder / name).parent.mkdir()
            (folder / name).write_text("{}")
        with pytest.raises(TrainingError, match='--data was "folder:typo" and is "folder:right" now'):
            check_settings(folder, {"data": "folder:right", "method": "dan"})
    with run_folder(tmp_path) as folder:
        check_settings(folder, {"data": "folder:right", "method": "dan"})
        assert json.loads((folder / "settings.json").read_text())["data"] == "folder:right"
        assert not (folder / "found.json").exists()
        assert not (folder / "1_art" / "start.json").exists()
        (folder / "1_art" / "training_state.safetensors").write_text("")
    with run_folder(tmp_path) as folder:
        check_settings(folder, {"data": "folder:right", "method": "dan"})
        with pytest.raises(
            TrainingError, match='started with other settings: --data was "folder:right" and is "x" now'
        ):
            check_settings(folder, {"data": "x", "method": "dan"})


def test_settings_of_another_program_are_not_removed(tmp_path):
    (tmp_path / "settings.json").write_text('{"editor": 1}')
    for _ in range(2):
        with run_folder(tmp_path) as folder, pytest.raises(TrainingError, match="other settings"):
            check_settings(folder, {"method": "dan"})
    assert (tmp_path / "settings.json").read_text() == '{"editor": 1}'
