"""The client's command line."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.deployment import client as client_module
from export.deployment.client import Client, ClientError, main
from tests.export.helpers import ROOT, encode, picture
from tests.export.serving.conftest import WITH_SECOND, free_port


@pytest.fixture(name="ask")
def _ask(server, client, capsys):
    """Runs a command against the server; returns the exit status, the lines of stdout as objects, and stderr."""
    kind, port = (
        ("--url=http://127.0.0.1:", server.rest) if client.protocol == "rest" else ("--grpc=localhost:", server.grpc)
    )

    def ask(command, *arguments):
        status = main([command, f"{kind}{port}", *map(str, arguments)])
        output = capsys.readouterr()
        return status, [json.loads(line) for line in output.out.splitlines()], output.err

    return ask


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for index, kind in enumerate(("jpeg", "png", "jpeg", "png", "jpeg")):
        path = folder / ("more" if index > 2 else "") / f"{index}.{kind}"
        path.write_bytes(encode(picture(12 + index, 14, seed=index), kind.upper()))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_in_batches(ask, folder, small):
    status, lines, said = ask("predict", folder, "--task=binary", "--batch_size=2", "--in_flight=3")
    assert status == 0
    # Nothing is left out in silence.
    assert said == f"client.py: Passed over in {str(folder)!r}: 1 files of 6, which are no .jpg, .jpeg, .png.\n"
    assert [line["path"] for line in lines] == sorted(str(path) for path in folder.rglob("*.*g"))
    classes = small.bank.info("binary")["class_names"]
    for line in lines:
        assert sorted(line["labels"]) == sorted(classes)
        assert sum(line["scores"]) == pytest.approx(1, abs=1e-5)
        assert line["scores"] == sorted(line["scores"], reverse=True)


def test_what_cannot_be_answered_is_flagged_and_not_the_end(ask, folder, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no JPEG")
    good = folder / "0.jpeg"
    listed = f"{good}\tternary\n{tmp_path}/broken.jpg\n{tmp_path}/missing.jpg\n\n{good}\tfish\n{good}\n"
    (tmp_path / "list.txt").write_text(listed)
    status, lines, _ = ask("predict", f"--list={tmp_path}/list.txt", "--task=binary", "--batch_size=2")
    assert status == 1
    assert [line["task"] for line in lines] == ["ternary", "binary", "binary", "fish", "binary"]
    assert [(line["task_ok"], line["image_ok"]) for line in lines] == [
        (True, True),
        (True, False),
        (None, False),
        (False, True),
        (True, True),
    ]
    assert [len(line["labels"]) > 0 for line in lines] == [True, False, False, False, True]
    assert lines[2]["error"] == "cannot be read: No such file or directory"


@pytest.mark.parametrize("server", WITH_SECOND, indirect=True)
def test_a_pack_that_the_server_does_not_have(ask, folder, small, served, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no JPEG")
    for pack in small.packs[2:4]:
        path = tmp_path / "new.task.safetensors"
        pack.save(path)
        _, expected, _ = ask("predict", folder, f"--task={pack.task}")
        status, lines, _ = ask(
            "predict", folder, tmp_path / "broken.jpg", f"--pack={path}", f"--export={served['piggyback']}/2"
        )
        assert status == 1
        assert not lines.pop()["image_ok"]
        for line, other in zip(lines, expected, strict=True):
            assert line["labels"] == other["labels"]
            assert line["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.mark.parametrize("server", WITH_SECOND, indirect=True)
def test_a_pack_answers_for_its_own_task_and_images_that_it_can_prepare(ask, folder, small, served, tmp_path):
    path, square = tmp_path / "new.task.safetensors", tmp_path / "square.png"
    square.write_bytes(encode(picture(20, 20), "PNG"))
    # The ratio of the sides stays.
    dataclasses.replace(small.packs[0], eval_augment="resize(8)").save(path)
    sent = [f"--pack={path}", f"--export={served['piggyback']}/1"]
    status, lines, _ = ask("predict", folder / "0.jpeg", square, *sent)
    assert (status, [line["image_ok"] for line in lines]) == (1, [False, True])
    (tmp_path / "list.txt").write_text(f"{square}\n{square}\tternary\n")
    status, lines, errors = ask("predict", f"--list={tmp_path}/list.txt", *sent)
    assert (status, lines) == (2, [])
    assert "names the task 'ternary', and --pack sends 'binary'" in errors


def test_a_list_may_hold_what_is_no_path(ask, folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"a\0b\n{folder}/0.jpeg\n")
    status, lines, _ = ask("predict", f"--list={tmp_path}/list.txt", "--task=binary")
    assert (status, [line["image_ok"] for line in lines]) == (1, [False, True])
    assert lines[0]["error"] == "cannot be read: embedded null byte"


def test_what_a_server_answers_sends_no_commands_to_a_terminal(capsys, monkeypatch):
    def refuse(*_):
        raise ClientError("a\x1b[2J\nb\0c Ü")

    monkeypatch.setattr(Client, "status", refuse)
    assert main(["status", "--url=http://a"]) == 2
    assert capsys.readouterr().err == "client.py: a\\x1b[2J b\\x00c Ü\n"


def test_the_output_may_be_closed_early(folder):
    program = (
        "from export.deployment import client; client.Client.classify_files = lambda *_: "
        "[{'task_ok': True, 'image_ok': True}]; raise SystemExit(client.main())"
    )
    arguments = ["predict", "--url=http://a", "--task=binary", "--batch_size=1", *[str(folder / "0.jpeg")] * 2000]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_cannot_be_written(folder):
    program = (
        "from export.deployment import client; client.Client.listed = lambda *_: [('birds', ['wren'], 'encoded')]; "
        "raise SystemExit(client.main())"
    )
    command = [sys.executable, "-c", program, "tasks", "--url=http://a"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (2, "client.py: The output cannot be written: No space left on device.\n")


def test_ctrl_c_is_no_stack_trace_and_waits_for_no_server(folder):
    path = Path(client_module.__file__)
    command = [sys.executable, path, "predict", f"--url=http://127.0.0.1:{free_port()}", "--task=a", folder / "0.jpeg"]
    began = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert "does not answer yet" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "client.py: interrupted.\n"
    assert process.returncode == 130
    # It would be asked for a minute.
    assert time.monotonic() - began < 30


def test_tasks_and_versions_are_listed(ask, small, server):
    assert ask("status")[:2] == (0, [{"version": v, "state": "AVAILABLE", "error": ""} for v in (1, 2)])
    assert ask("status", "--label=stable")[1] == [{"version": 1, "state": "AVAILABLE", "error": ""}]
    if not (server.real and server.batching):
        status, lines, _ = ask("tasks")
        assert (status, {line["task"]: line["classes"] for line in lines}) == (
            0,
            {pack.task: pack.class_names for pack in small.packs},
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict"], "There are no images"),
        (["predict", "{folder}"], "No task is given for '{folder}/0.jpeg': use --task=NAME"),
        (["predict", "{folder}/notes.txt", "--task=binary", "--version=9"], "refused the request"),
        (["predict", "{empty}", "--task=binary"], "has no file .jpg, .jpeg, .png"),
        (["predict", "--list={folder}/none", "--task=binary"], "--list={folder}/none cannot be read"),
        (["predict", "{folder}", "--pack=x"], "--pack and --export belong together"),
        (["predict", "{folder}", "--task=binary", "--export={folder}"], "--pack and --export belong together"),
        (["predict", "{folder}", "--task=a", "--pack=x", "--export={folder}"], "Give --task or --pack"),
        (["predict", "{folder}", "--task=\udcff"], "'\\udcff' cannot be sent: it is not UTF-8"),
        (["predict", "{folder}", "--task=binary", "--label="], "The label of the version is empty"),
        (["predict", "{folder}", "--pack={folder}/x.task.safetensors", "--export={folder}"], "x.task.safetensors"),
        (["tasks", "--model=unheard_of"], "refused the request"),
    ],
)
def test_what_is_wrong_is_one_sentence(ask, folder, tmp_path, arguments, message):
    places = {"folder": folder, "empty": tmp_path}
    status, lines, errors = ask(*(argument.format(**places) for argument in arguments))
    assert (status, lines) == (2, [])
    assert errors.startswith("client.py: ")
    assert len(errors.splitlines()) == 1
    assert message.format(**places) in errors


def test_no_server_is_another_status(capsys, folder):
    port = free_port()
    assert main(["predict", f"--url=http://127.0.0.1:{port}", "--task=a", "--deadline=0.5", str(folder)]) == 3
    waiting, last = capsys.readouterr().err.splitlines()
    assert waiting.startswith(f"client.py: http://127.0.0.1:{port} does not answer yet (")
    assert "did not answer within 0.5 s" in last


@pytest.mark.parametrize("arguments", [[], ["predict"], ["predict", "--url=http://a", "--batch_size=0"]])
def test_a_command_line_that_is_not_valid(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
