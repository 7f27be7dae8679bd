"""push and pull, and hf:// paths, with a stand-in for the Hugging Face Hub."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from piggyback_tf.evaluation.model_card import BEGIN, END
from piggyback_tf.packs import TaskPack
from tests.hub_stand_in import TOKEN, running_hub
from tests.packs.helpers import make_pack

ROOT = Path(__file__).parents[2]
# huggingface_hub reads its environment when it is imported, hence a process of its own, for several commands at once.
PROGRAM = """
import contextlib, io, json, sys
from piggyback_tf.__main__ import main

runs = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    runs.append([status, out.getvalue().splitlines(), err.getvalue().splitlines()])
print(json.dumps([runs, [name for name in ("tensorflow", "keras") if name in sys.modules]]))
"""


@dataclasses.dataclass
class Run:
    """What came out of a command."""

    status: int
    out: list[str]
    err: list[str]


@pytest.fixture(name="hub")
def _hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(name="run")
def _run(hub, tmp_path):
    """A function that runs commands, one after another, against the stand-in."""

    def run(*commands, **environment):
        names = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        # The protocol of the Hub's newer storage is not that of plain files; with it off, all goes over HTTP.
        fixed = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([[str(part) for part in command] for command in commands])],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **names, **fixed, **environment},
        )
        assert (result.returncode, result.stderr) == (0, "")
        runs, loaded = json.loads(result.stdout)
        assert loaded == []
        return [Run(*values) for values in runs]

    return run


@pytest.fixture(name="packs")
def _packs(tmp_path):
    """The files of two tasks, whose names are not those of the tasks."""
    make_pack().save(tmp_path / "a.safetensors")
    make_pack("none", task="fish and chips", norm={}, errors={}).save(tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def _card(hub, name="me/packs", revision="main"):
    return hub.repositories[name].files(revision)["README.md"].decode()


def test_push_and_pull(hub, run, packs, tmp_path):
    one, two = packs
    out = tmp_path / "new" / "folder"
    pushed, again, pulled, some = run(
        ["push", one, "--repo=me/packs"],
        ["push", two, "--repo=me/packs", "--message=Fish"],
        ["pull", "--repo=me/packs", f"--output_dir={out}"],
        ["pull", "fish and chips", "--repo=me/packs", f"--output_dir={tmp_path / 'some'}"],
    )
    repository = hub.repositories["me/packs"]
    assert not repository.private
    assert repository.messages == ["initial commit", "Add 'birds'", "Fish"]
    assert repository.files() == {
        ".gitattributes": b"",
        "birds.task.safetensors": one.read_bytes(),
        "fish and chips.task.safetensors": two.read_bytes(),
        "README.md": _card(hub).encode(),
    }
    assert (pushed.status, pushed.err) == (0, [])
    assert pushed.out[:2] == ["birds.task.safetensors: 1.5 kB", "README.md: lists 1 task"]
    assert pushed.out[2].startswith(f"{hub.address}/me/packs/commit/")
    # The pack that was there before is listed too.
    assert again.out[1] == "README.md: lists 2 tasks"
    assert "\n| birds " in _card(hub)
    assert "\n| fish and chips " in _card(hub)
    assert (pulled.status, pulled.err) == (0, [])
    assert [line.split("  ")[0] for line in pulled.out[2:]] == ["birds", "fish and chips"]
    assert pulled.out[2].endswith(f"  {out / 'birds.task.safetensors'}")
    assert (out / "birds.task.safetensors").read_bytes() == one.read_bytes()
    assert (out / "fish and chips.task.safetensors").read_bytes() == two.read_bytes()
    assert len(list(out.iterdir())) == 2
    assert some.status == 0
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["fish and chips.task.safetensors"]


def test_answers_as_json(hub, run, packs, tmp_path):
    one, two = packs
    pushed, pulled = run(
        ["push", one, two, "--repo=me/packs", "--json"],
        ["pull", "--repo=me/packs", f"--output_dir={tmp_path / 'out'}", "--json"],
    )
    assert (pushed.status, pushed.err, pulled.status, pulled.err) == (0, [], 0, [])
    answer = json.loads("\n".join(pushed.out))
    names = ["birds.task.safetensors", "fish and chips.task.safetensors"]
    assert answer["files"] == [
        {"file": names[0], "task": "birds", "bytes": one.stat().st_size},
        {"file": names[1], "task": "fish and chips", "bytes": two.stat().st_size},
    ]
    assert answer["listed"] == names
    assert answer["commit"].startswith(f"{hub.address}/me/packs/commit/")
    birds, fish = json.loads("\n".join(pulled.out))
    assert birds["file"] == str(tmp_path / "out" / names[0])
    assert (birds["task"], fish["task"], birds["classes"]) == ("birds", "fish and chips", ["wren", "rook", "tüvö"])
    assert (birds["base"]["hash"], birds["errors"]["test"]["top1_error"], fish["errors"]) == ("ab" * 32, 12.5, {})


def test_what_has_not_changed_is_not_committed_again(hub, run, packs):
    first, second = run(["push", *packs, "--repo=me/packs"], ["push", *packs, "--repo=me/packs"])
    assert (first.status, first.out[2]) == (0, "README.md: lists 2 tasks")
    assert (second.status, second.out) == (0, first.out)
    assert len(hub.repositories["me/packs"].commits) == 2


def test_private_repositories_and_branches(hub, run, packs, tmp_path):
    one, _ = packs
    hub.add("me/public", {})
    pushed, refused, pulled = run(
        ["push", one, "--repo=me/packs", "--private", "--revision=v2/trial"],
        ["push", one, "--repo=me/public", "--private"],
        ["pull", "--repo=me/packs", "--revision=v2/trial", f"--output_dir={tmp_path / 'out'}"],
    )
    assert (pushed.status, pulled.status) == (0, 0)
    repository = hub.repositories["me/packs"]
    assert repository.private
    assert list(repository.files()) == [".gitattributes"]
    assert "birds.task.safetensors" in repository.files("v2/trial")
    assert (tmp_path / "out" / "birds.task.safetensors").read_bytes() == one.read_bytes()
    assert refused.status == 2
    assert "'me/public' exists and is public" in refused.err[0]
    assert len(hub.repositories["me/public"].commits) == 1


def test_hf_paths(hub, run, packs, tmp_path):
    one, _ = packs
    repository = hub.add("me/packs", {})
    repository.branches["trial"] = repository.branches["main"]
    url = "hf://me/packs@trial/birds.task.safetensors"
    missing, converted, inspected, compared = run(
        ["inspect", url],
        ["convert", one, f"--output={url}", "--codec=bits", "--float16"],
        # It was missing before in the same process.
        ["inspect", "--json", url],
        ["compare", url, one],
    )
    assert missing.err == [f"python -m piggyback_tf inspect: There is no file {url!r}."]
    assert (converted.status, converted.err) == (0, [])
    assert repository.files("trial")["birds.task.safetensors"] == make_pack().astype("float16").to_bytes("bits")
    assert list(repository.files()) == [".gitattributes"]
    (found,) = json.loads("\n".join(inspected.out))
    assert found["content_digest"] == make_pack().astype("float16").content_digest()
    assert compared.status == 0


def test_a_card_of_somebody_else_is_left_alone(hub, run, packs):
    one, two = packs
    repository = hub.add("me/packs", {"README.md": b"# Mine\n"})
    (refused,) = run(["push", one, "--repo=me/packs"])
    assert refused.status == 2
    assert refused.err[0].startswith(
        "python -m piggyback_tf push: README.md of 'me/packs' cannot be filled in: it was not written by this command."
    )
    assert refused.err[1:] == [BEGIN, END]
    assert repository.messages == ["initial commit"]
    repository.commit("markers", {"README.md": f"---\nlicense: mit\n---\n# Mine\n{BEGIN}\n{END}\nThanks\n".encode()})
    (filled,) = run(["push", one, two, "--repo=me/packs"])
    assert filled.status == 0
    assert "license: mit\n" in _card(hub)
    assert f"# Mine\n{BEGIN}\n" in _card(hub)
    assert _card(hub).endswith(f"{END}\nThanks\n")
    assert "\n| birds " in _card(hub)
    repository.commit("broken", {"README.md": b"\xff"})
    (refused,) = run(["push", one, "--repo=me/packs"])
    assert "README.md of 'me/packs' cannot be filled in: 'utf-8' codec" in refused.err[0]


def test_a_broken_pack_in_the_repository(hub, run, packs, tmp_path):
    one, two = packs
    hub.add("me/packs", {"bad.task.safetensors": b"damaged", "birds.task.safetensors": one.read_bytes()})
    pulled, pushed = run(
        ["pull", "--repo=me/packs", f"--output_dir={tmp_path / 'out'}"], ["push", two, "--repo=me/packs"]
    )
    assert pulled.status == 2
    assert pulled.err[0].startswith("python -m piggyback_tf pull: The file 'hf://me/packs/bad.task.safetensors' is no")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["birds.task.safetensors"]
    assert TaskPack.load(tmp_path / "out" / "birds.task.safetensors").task == "birds"
    assert pushed.status == 0
    assert pushed.err[0].startswith("python -m piggyback_tf push: In the repository: The file 'bad.task.safetensors'")
    assert "| bad.task.safetensors | cannot be read " in _card(hub)


def test_a_file_longer_than_any_pack_is_not_downloaded(hub, run, packs, tmp_path):
    data = packs[0].read_bytes()
    hub.add("me/packs", {"birds.task.safetensors": data, "long.task.safetensors": data})
    hub.sizes["long.task.safetensors"] = 1 << 40
    (pulled,) = run(["pull", "--repo=me/packs", f"--output_dir={tmp_path / 'out'}"])
    assert pulled.status == 2
    assert "pull: The file 'long.task.safetensors' has 1,099,511,627,776 bytes, and a task pack has" in pulled.err[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["birds.task.safetensors"]


@pytest.mark.parametrize("folder", ["../", "/tmp/", "a/../../", "..\\", "a/", "c:"])
def test_names_in_a_listing_do_not_lead_out_of_the_folder(hub, run, packs, tmp_path, folder):
    name = f"{folder}evil.task.safetensors"
    hub.add("me/packs", {"birds.task.safetensors": packs[0].read_bytes()})
    hub.extra_names = [name]
    out = tmp_path / "out"
    out.mkdir()
    pulled, pushed = run(["pull", "--repo=me/packs", f"--output_dir={out}"], ["push", packs[1], "--repo=me/packs"])
    for refused in (pulled, pushed):
        assert refused.status == 2
        assert f"The repository 'me/packs' lists a file {name!r}." in refused.err[0]
    assert list(out.iterdir()) == []
    assert not list(tmp_path.rglob("*evil*"))
    assert len(hub.repositories["me/packs"].commits) == 1


def test_names_of_tasks_that_a_repository_cannot_hold_or_a_terminal_show(hub, run, tmp_path):
    for number, task in enumerate(["c:birds", "a\x9b1m"]):
        make_pack(task=task).save(tmp_path / str(number))
    refused, pushed, pulled = run(
        ["push", tmp_path / "0", "--repo=me/other"],
        ["push", tmp_path / "1", "--repo=me/packs"],
        ["pull", "nothing", "--repo=me/packs"],
    )
    assert (refused.status, pushed.status, pulled.status) == (2, 0, 2)
    assert refused.err[0].endswith("must not begin with a letter and a colon, as drives do. Received: 'c:birds'.")
    assert list(hub.repositories) == ["me/packs"]
    assert pushed.out[0].startswith(r"'a\x9b1m.task.safetensors': ")
    assert r"Valid: 'a\x9b1m'" in pulled.err[0]


def test_packs_in_folders_are_reached_by_their_path_only(hub, run, packs, tmp_path):
    data = packs[0].read_bytes()
    hub.add("me/packs", {"birds.task.safetensors": data, "old/birds.task.safetensors": data})
    pulled, copied = run(
        ["pull", "--repo=me/packs", f"--output_dir={tmp_path / 'out'}"],
        ["convert", "hf://me/packs/old/birds.task.safetensors", f"--output={tmp_path / 'old'}"],
    )
    assert (pulled.status, copied.status) == (0, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["birds.task.safetensors"]
    assert (tmp_path / "old").read_bytes() == data


def test_what_is_not_there_is_said(hub, run, packs, tmp_path):
    hub.add("me/packs", {"birds.task.safetensors": packs[0].read_bytes()})
    hub.add("me/empty", {})
    hub.add("me/secret", {"birds.task.safetensors": packs[0].read_bytes()}, private=True)
    out = f"--output_dir={tmp_path / 'out'}"
    answers = run(
        ["pull", "--repo=me/nothing", out],
        ["pull", "--repo=me/packs", "--revision=nothing", out],
        ["pull", "bird", "--repo=me/packs", out],
        ["pull", "--repo=me/empty", out],
        ["push", packs[0], "--repo=you/packs"],
        ["inspect", "hf://me/nothing/birds.task.safetensors"],
    )
    for answer, message in zip(
        answers,
        [
            f"The Hub at {hub.address} has no repository 'me/nothing' of a model, or it is private; in that case, set",
            "There is no revision 'nothing' in the repository 'me/packs'.",
            "In the repository 'me/packs': Unknown task 'bird'. Did you mean 'birds'? Valid: birds.",
            "The repository 'me/empty' has no packs: no file in its top folder ends in .task.safetensors.",
            f"The Hub at {hub.address} does not allow this with the repository 'you/packs' (You don't have the rights",
            "There is no file 'hf://me/nothing/birds.task.safetensors': me/nothing/birds.task.safetensors (repos",
        ],
        strict=True,
    ):
        assert (answer.status, answer.out, len(answer.err)) == (2, [], 1)
        assert message in answer.err[0]
    secret, public, push = run(
        ["pull", "--repo=me/secret", out],
        ["pull", "--repo=me/packs", out],
        ["push", packs[0], "--repo=me/packs"],
        HF_TOKEN="",
    )
    assert "has no repository 'me/secret' of a model, or it is private" in secret.err[0]
    assert public.status == 0
    assert "does not allow this with the repository 'me/packs' (Forbidden: you must use a write token" in push.err[0]
    (wrong,) = run(["pull", "--repo=me/packs", out], HF_TOKEN="hf_wrong")
    assert "(Invalid credentials in Authorization header); set HF_TOKEN to a token" in wrong.err[0]


def test_without_a_network(run, packs):
    answers = run(
        ["pull", "--repo=me/packs"],
        ["push", packs[0], "--repo=me/packs"],
        ["inspect", "hf://me/packs/x"],
        # Nothing listens on the port of discarding.
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    for answer in answers:
        assert (answer.status, answer.out, len(answer.err)) == (2, [], 1)
        assert answer.err[0].endswith("Connection refused.")
    assert "pull: The Hub at http://127.0.0.1:9 could not be used: " in answers[0].err[0]


def test_somebody_else_pushes_meanwhile(hub, run, packs):
    repository = hub.add("me/packs", {})
    hub.before_commit = lambda: repository.commit("theirs", {"other": b""})
    (refused,) = run(["push", packs[0], "--repo=me/packs"])
    assert refused.status == 2
    assert refused.err == [
        "python -m piggyback_tf push: Somebody else changed the repository 'me/packs' meanwhile; run the command again."
    ]
    assert repository.messages == ["initial commit", "theirs"]
