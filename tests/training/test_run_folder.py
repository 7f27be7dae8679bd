"""What binds the output folder of a run to its settings."""

import json

import pytest

from piggyback_tf.file_names import ALONE_FOLDER, START_FILE, folder_of_method, folders_of
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


def test_files_of_other_people_and_runs_stay(tmp_path):
    """A folder of runs is named by mistake, in which somebody keeps files, and another run has just begun."""
    with run_folder(tmp_path) as folder:
        check_settings(folder, {"data": "folder:typo", "method": "dan"})
    others = (".notes.2024.tmp", "sub/.draft.v2.tmp.txt", "sub/settings.json", "1_run/start.json")
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "1_run" / ".lock").write_text("4711")
    own = tmp_path / "2_mine" / ".piggyback_tf-0123456789abcdef.tmp"
    (own / "of a killed writer").mkdir(parents=True)
    with run_folder(tmp_path):
        assert all((tmp_path / name).exists() for name in others)
        assert not own.exists()


def _folders_of_a_run(folder):
    """Returns all folders to which a run of two methods and two tasks writes."""
    found = []
    for baseline in (True, False):
        own = folder_of_method(folder, "pnn", baseline=baseline)
        for place in (own, own / ALONE_FOLDER):
            found += [own, *folders_of(place, ["art", "fish"]).values()]
    return list(dict.fromkeys(found))


def test_what_a_killed_run_left_goes_from_each_of_its_folders(tmp_path):
    left = [folder / ".piggyback_tf-0123456789abcdef.tmp" for folder in _folders_of_a_run(tmp_path)]
    assert tmp_path / "baselines" / "pnn" / "1_art" in [folder.parent for folder in left] and len(left) == 10
    started = [folder.parent / START_FILE for folder in left]
    for folder, start in zip(left, started, strict=True):
        (folder / "of a killed writer").mkdir(parents=True)
        start.write_text("{}")
    (tmp_path / "metrics.json").write_text("{}")
    with run_folder(tmp_path):
        assert not [folder for folder in left if folder.exists()]
        assert all(start.exists() for start in started)
    (tmp_path / "metrics.json").unlink()
    # Where nothing was trained, what was found out before goes, too.
    (tmp_path / "settings.json").write_text('{"method": "pnn"}')
    with run_folder(tmp_path):
        assert not [start for start in started if start.exists()]


def test_tasks_of_another_run_in_a_folder_named_as_a_baseline_stay(tmp_path):
    with run_folder(tmp_path) as folder:
        check_settings(folder, {"data": "folder:typo", "method": "dan"})
    with run_folder(tmp_path / "baselines" / "other"):
        starts = [folder / START_FILE for folder in _folders_of_a_run(tmp_path / "baselines" / "other")]
        for start in starts:
            start.parent.mkdir(parents=True, exist_ok=True)
            start.write_text("{}")
        linked = tmp_path / "1_link"
        linked.symlink_to(starts[0].parent)
        with run_folder(tmp_path) as folder:
            assert not (folder / "settings.json").exists()
        assert all(start.exists() for start in starts)


def test_another_run_that_has_just_begun_in_a_folder_of_runs_goes_on(tmp_path):
    other = tmp_path / "1_other"
    with run_folder(tmp_path) as folder:
        check_settings(folder, {"data": "folder:typo", "method": "dan"})
    with run_folder(other):
        check_settings(other, {"data": "folder:right", "method": "dan"})
        check_settings(other, {"pack": None}, file="start.json")
        before = {path.name for path in other.iterdir()}
        with run_folder(tmp_path) as folder:
            assert not (folder / "settings.json").exists()
        assert {path.name for path in other.iterdir()} == before


def test_a_lock_that_is_none_of_ours_is_left_as_it_is(tmp_path):
    (tmp_path / ".lock").write_text("yarn lockfile v1")
    with pytest.raises(TrainingError, match="lock' is no lock of this package"), run_folder(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "yarn lockfile v1"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "--output_dir= is empty, perhaps of a variable that is not set"),
        ("gs://bucket/run", "--output_dir=gs://bucket/run: this is a URL, and only files and folders of this machine"),
        ("file/run", "The folder 'file/run' cannot be made: 'file' is no folder"),
        ("caf\udce9", r"The name of the output folder 'caf\\xe9' is not in UTF-8"),
        ("/dev/null", "The folder '/dev/null' cannot be made: '/dev/null' is no folder"),
    ],
)
def test_what_is_no_folder_is_refused_and_nothing_is_written(path, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=reason), run_folder(path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_users_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with run_folder("~/runs/one") as folder:
        assert folder == tmp_path / "runs" / "one"
        assert folder.is_dir()


def test_settings_that_are_no_text_are_refused_at_the_start(tmp_path):
    with pytest.raises(TrainingError, match=r"--data must be text in UTF-8.*caf\\udce9"):
        check_settings(tmp_path, {"method": "dan", "data": "folder:/caf\udce9"})
    assert not list(tmp_path.iterdir())
