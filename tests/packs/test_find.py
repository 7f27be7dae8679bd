"""The files that a command line means by packs."""

from pathlib import Path

import pytest
from absl import flags

from piggyback_tf.flags import MoreFlag
from piggyback_tf.packs import PackError
from piggyback_tf.packs.find import find_packs


def test_files_folders_and_patterns_are_found_in_their_order(tmp_path):
    paths = [str(tmp_path / f"{name}.task.safetensors") for name in ("birds", "cars", "a")]
    for path in (*paths, tmp_path / "notes.txt"):
        Path(path).touch()
    assert find_packs([str(tmp_path)]) == find_packs([f"{tmp_path}/*.safetensors"]) == sorted(paths)
    assert find_packs([paths[2], paths[0]]) == [paths[2], paths[0]]
    assert find_packs(["hf://me/birds.task.safetensors"]) == ["hf://me/birds.task.safetensors"]


def test_the_users_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a.task.safetensors"
    path.touch()
    for source in ("~", "~/a.task.safetensors", "~/*.safetensors"):
        assert find_packs([source]) == [str(path)]


@pytest.mark.parametrize(
    "sources, message",
    [
        (["{}/empty"], "^--packs=.*/empty: the folder has no file"),
        (["{}/x*"], "^--packs=.*as a pattern it matches nothing"),
        ([], "names no pack"),
    ],
)
def test_a_source_that_stands_for_no_file_is_named(tmp_path, sources, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackError, match=message):
        find_packs([source.format(tmp_path) for source in sources])


def test_a_name_with_a_comma_is_put_in_quotes_and_a_flag_that_is_given_again_adds(tmp_path):
    paths = [str(tmp_path / f"{name}.task.safetensors") for name in ("a,b", "c", "d")]
    for path in paths:
        Path(path).touch()
    values = flags.FlagValues()
    flags.DEFINE_flag(MoreFlag("packs", None, "Packs."), values)
    # The message names the cure, and the cure works.
    values(["export", f"--packs={paths[0]},{paths[1]}"])
    with pytest.raises(PackError, match="A name with a comma is put in quotes: '--packs=\"a,b.task.safetensors\"'"):
        find_packs(values.packs)
    values["packs"].unparse()
    values(["export", f'--packs="{paths[0]}",{paths[1]}', f"--packs={paths[2]}"])
    assert find_packs(values.packs) == paths
