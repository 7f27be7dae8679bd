"""Answers that need no Keras come without it: it takes seconds to load. And what is loaded says nothing of itself."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.forked import start_forked
from tests.packs.helpers import make_pack

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = ("saved_model", "serving", "litert", "verify")
TRAIN = ["train", "--data=digits", "--backbone=shapesnet"]
# Tells at its end whether Keras was loaded.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print([name for name in ("keras", "tensorflow", "tensorflow_datasets") if name in sys.modules]))
from piggyback_tf.__main__ import main
sys.argv[0] = "piggyback"
sys.exit(main(sys.argv[1:]))
"""
# Seconds; a command takes about 0.4 on an idle core, and 5 with Keras.
LIMIT = 1.5


def _run(*arguments: object, cwd: Path | None = None, before: Sequence[str] = ()) -> tuple[int, str, str, str, float]:
    """Returns status, stdout, stderr, what was loaded, and the processor's time, which others' work does not change."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(ROOT)
    start = os.times()
    done = subprocess.run(
        [*before, sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env=environment,
        check=False,
    )
    after = os.times()
    seconds = after.children_user - start.children_user + after.children_system - start.children_system
    *printed, loaded = done.stdout.splitlines()
    return done.returncode, "\n".join(printed), done.stderr, loaded, seconds


HELP = [
    *(["train", flag] for flag in ("--help", "--helpshort", "--helpfull")),
    *(["export", name, "--help"] for name in EXPORTS),
    ["export", "--help"],
    ["report", "--help"],
]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help(arguments):
    status, printed, errors, loaded, seconds = _run(*arguments)
    assert (status, errors, loaded) == (0, "", "[]")
    assert len(printed) > 100
    assert seconds < LIMIT


REFUSED = [
    (["train"], "What matters most:"),
    (["train", "--data=digits"], "--output_dir is missing: Folder of the results"),
    (["train", "--output_dir={tmp}/run"], "One of --data, for one task, and --tasks"),
    (["train", "--mask_lrr=1"], "There is no flag --mask_lrr. Did you mean --mask_lr?"),
    ([*TRAIN, "--epochs=many"], "--epochs=many"),
    ([*TRAIN, "--epochs=0"], "epochs must be an integer of at least 1. Received: --epochs=0."),
    ([*TRAIN, "--mask_kind=ternar"], "Received: --mask_kind='ternar'. Did you mean 'ternary' or 'binary'?"),
    ([*TRAIN, "--mask_kind=ternary", "--mask_threshold=0"], "a threshold above 0. Received: --mask_threshold=0.0."),
    ([*TRAIN, "--norm_statistics=mine"], "`norm_statistics` must be one of frozen, task."),
    ([*TRAIN, "--method=packnet", "--packnet_prune=1"], "`packnet_prune` must be in [0, 1)."),
    ([*TRAIN, "--method=joint"], "Method joint learns several tasks at once"),
    ([*TRAIN, "--baseline=piggyback"], "--baseline=piggyback is the --method itself"),
    ([*TRAIN, "--image_size=7"], "'shapesnet' takes images of"),
    ([*TRAIN, "--weights=imagnet"], "Backbone 'shapesnet' has no weights 'imagnet'"),
    ([*TRAIN, "--weights={tmp}/none.h5"], "There is no weights file"),
    ([*TRAIN, f"--weights={__file__}"], "must end in .weights.h5"),
    ([*TRAIN, "--backbone="], "--backbone= is empty, perhaps of a variable that is not set."),
    (["inspect", "{device}"], "is a folder, and one file is asked for. It has no packs."),
    (["inspect", "{tmp}"], "a.task.safetensors'."),
    ([*TRAIN, "--weights="], "--weights= is empty, perhaps of a variable that is not set."),
    ([*TRAIN, "--init_from="], "--init_from= is empty"),
    ([*TRAIN, "--cache_dir="], "--cache_dir= is empty"),
    (["cache", "--clear", "--cache_dir="], "--cache_dir= is empty"),
    (["predict", "{pack}", "{image}", f"--weights={__file__}"], "must end in .weights.h5"),
    ([*TRAIN, "--augment_train=resize(40,40)"], "gives images of 40x40 pixels, and the base takes 32x32. Change the"),
    ([*TRAIN, "--augment_eval=resise(32)"], "'resise'"),
    ([*TRAIN, "--augment_eval=resize(32,32)|flip"], "Only training may draw random numbers"),
    ([*TRAIN[:-1], "--backbone=shapenet"], "Did you mean 'shapesnet'"),
    ([*TRAIN[:1], *TRAIN[2:], "--data=digit"], "Unknown data kind 'digit'"),
    ([*TRAIN[:1], *TRAIN[2:], "--data=folder:/no/where"], "/no/where"),
    ([*TRAIN[:1], *TRAIN[2:], "--data=tfds:mnist", "--data_dir=gs://b/x"], "--data_dir=gs://b/x: this is a URL"),
    ([*TRAIN[:1], *TRAIN[2:], "--data=tfds:mnist", "--data_dir=/no/where"], "There is no folder '/no/where', which"),
    (["evaluate", "{pack}", "--data=tfds:mnist", "--data_dir=/no/where"], "There is no folder '/no/where', which"),
    ([*TRAIN, "--epochs=x"], "--epochs=x: this must be an integer, not 'x'."),
    ([*TRAIN, "--head_lr=x"], "--head_lr=x: this must be a number, not 'x'."),
    ([*TRAIN, "surplus"], "Unexpected arguments: surplus."),
    ([*TRAIN, "--tasks=a=digits"], "Give either --data, for one task, or --tasks, for several."),
    ([*TRAIN, "--seed=99999999999999999999"], "seed must be an integer of at most 4294967295."),
    ([*TRAIN, "--json=maybe"], "--json=maybe: this must be true or false, not 'maybe'."),
    (["train", "--flagfile={tmp}/none"], "/none': No such file or directory."),
    (["predict", "{pack}", "{image}", "--results="], "--results= is empty"),
    (["convert", "{pack}", "--output={image}"], "image: this file is there already. Name another one, or replace it"),
    (["export", "saved_model"], "What matters most:"),
    (["export", "saved_model", "--packs={pack}"], "--output is missing"),
    (["export", "saved_model", "--packs={pack}", "--output={tmp}/out", "--cache=pack"], "Did you mean 'packed'"),
    (["export", "saved_model", "--packs={tmp}/none", "--output={tmp}/out"], "none"),
    (["export", "saved_model", "--packs={pack}", "--add_to={tmp}/none"], "there is no such folder."),
    (["export", "litert", "--packs={pack}", "--output={tmp}/out", "--design=mine"], "`design` must be one of patch, "),
    (["export", "litert", "--packs={pack}", "--output={tmp}"], "this is there already"),
    (["export", "litert", "--packs={pack}", "--output={pack}/out"], "a.task.safetensors' is no folder."),
    (["export", "saved_model", "--packs={pack}", "--output={pack}/out"], "a.task.safetensors' is no folder."),
    (["export", "litert", "--packs={pack}", "--base={tmp}/none"], "there is no such file."),
    (["export", "litert", "--packs={pack}", "--output={tmp}/out", "--weights=none"], "there is no such file"),
    (["export", "saved_model", "--packs={pack}", "--output={tmp}"], "is no export, and holds something else: "),
    (["export", "serving", "{tmp}/none"], "there is no such folder."),
    (["export", "serving", "{tmp}", "--cpus=0"], "cpus must be an integer of at least 1. Received: --cpus=0."),
    (["export", "verify", "{tmp}/none", "--packs={pack}", "--images={tmp}"], "there is no such file or folder."),
    (["export", "verify", "{tmp}", "--packs={pack}", "--images={tmp}"], "there is no image file in this folder."),
    (["export", "verify", "{tmp}", "--packs={pack}"], "--images is missing"),
    (["farm", "--output_dir={tmp}/out"], "TABLE is missing: give it after the command's name."),
    (["export", "verify", "{device}", "--packs={pack}", "--images={tmp}"], "device/base.tflite'."),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_what_is_wrong_is_said_at_once(arguments, sentence, tmp_path):
    pack = tmp_path / "a.task.safetensors"
    make_pack(base_name="shapesnet", base_weights="shipped", image_size=32).save(pack)
    device, image = tmp_path / "device", tmp_path / "device" / "image"
    device.mkdir()
    Image.new("RGB", (9, 9)).save(image, "PNG")
    (device / "base.tflite").write_bytes(b"")
    if arguments[0] == "train" and len(arguments) > 2:
        arguments = [*arguments, f"--output_dir={tmp_path / 'run'}"]
    status, printed, errors, loaded, seconds = _run(
        *(argument.format(tmp=tmp_path, pack=pack, device=device, image=image) for argument in arguments)
    )
    assert (status, printed, loaded) == (2, "", "[]"), errors
    assert sentence in errors
    assert seconds < LIMIT
    if len(arguments) > 2:
        assert errors.startswith(f"piggyback {arguments[0]}")
        assert errors.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_folders_without_rights_are_refused_at_once(tmp_path):
    pack, closed = tmp_path / "a.task.safetensors", tmp_path / "closed"
    make_pack(base_name="shapesnet", base_weights="shipped", image_size=32).save(pack)
    closed.mkdir(0o555)
    # Root may write everywhere, so that the child gives up that right.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"] if os.geteuid() == 0 else []
    for *command, output in (
        ("merge", pack, closed / "merged.keras"),
        ("convert", pack, closed / "b.task.safetensors"),
        ("export", "litert", f"--packs={pack}", closed / "device"),
        ("export", "saved_model", f"--packs={pack}", closed / "served"),
    ):
        status, _, errors, loaded, seconds = _run(*command, f"--output={output}", before=drop)
        assert (status, loaded) == (2, "[]"), errors
        assert f"there is no right to write into '{closed}'." in errors
        assert seconds < LIMIT


def test_images_that_cannot_be_compared_are_all_told_before_the_base_is_loaded(tmp_path):
    make_pack(base_name="shapesnet", base_weights="shipped", image_size=32).save(tmp_path / "a.task.safetensors")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "link.png").symlink_to(tmp_path / "none")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    status, printed, errors, loaded, _ = _run(
        "export", "verify", tmp_path, f"--packs={tmp_path}", f"--images={tmp_path}"
    )
    assert (status, printed, loaded) == (2, "", "[]")
    assert errors.startswith(f"piggyback export verify: 3 files of --images={tmp_path} cannot be used:\n")
    assert all(f"{tmp_path}/{name}" in errors for name in ("empty.jpg", "text.png", "link.png"))
    assert "--skip_broken_images leaves them out" in errors


def test_the_first_lines_are_ones_own_and_stderr_is_empty(tmp_path):
    command = [*TRAIN, "--epochs=2", "--batch_size=64", "--baseline=classifier_only"]
    command.append(f"--output_dir={tmp_path / 'run'}")
    status, printed, errors, _, _ = _run(*command, cwd=tmp_path)
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[0].startswith("digits, 10 classes: train 1,295 images (0: 128, 1: 131, 2: 128, ")
    assert "; validation 143 images (0: 14, " in lines[0]
    assert "; test 359 images (0: 36, " in lines[0]
    assert lines[1].startswith("classifier_only trains ")
    trained = next(line for line in lines if line.startswith("piggyback trains"))
    assert trained == (
        "piggyback trains 213,010 parameters (mask 212,040, head 970) on shapesnet, in 2 epochs of 21 steps with up to "
        "64 images."
    )
    epochs = [line for line in lines if line.startswith("  epoch ")]
    assert [line.split(":")[0] for line in epochs] == ["  epoch 1/2", "  epoch 2/2"] * 2
    assert epochs[0].endswith(" left")
    # Again: from what is there, at once.
    status, again, errors, loaded, seconds = _run(*command, cwd=tmp_path)
    assert (status, loaded) == (0, "[]")
    assert again.splitlines() == lines[-6:]
    assert errors == f"The run in {tmp_path / 'run'} is complete; delete the folder to run it again.\n"
    assert seconds < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("export", ["saved_model", "litert --quantize=int8 --representative_data=digits"])
def test_exports_print_what_they_wrote_and_nothing_else(export, tmp_path):
    from piggyback_tf.backbones import load_backbone
    from tests.packs.helpers import pack_of, trained_model

    backbone, pack = load_backbone("shapesnet"), tmp_path / "a.task.safetensors"
    pack_of(trained_model(backbone, classes=2, kind="binary"), backbone, "a", 2).save(pack)
    status, printed, errors, _, _ = _run("export", *export.split(), f"--packs={pack}", f"--output={tmp_path / 'out'}")
    assert (status, errors) == (0, "")
    assert printed == str(tmp_path / "out" / "1" if export == "saved_model" else tmp_path / "out")
    if export == "saved_model":
        Image.new("RGB", (40, 40), (200, 10, 90)).save(tmp_path / "image.png")
        given = f"--packs={pack}", f"--images={tmp_path}"
        status, printed, errors, _, _ = _run("export", "verify", tmp_path / "out", *given)
        assert (status, printed.splitlines()[-1], errors) == (0, "equal to 1e-5", "")
        # A second version without the first one's task is what may be meant, or not.
        other = tmp_path / "b.task.safetensors"
        pack_of(trained_model(backbone, classes=2, kind="binary"), backbone, "b", 2).save(other)
        command = "export", "saved_model", f"--packs={other}", f"--output={tmp_path / 'out'}"
        status, printed, errors, _, _ = _run(*command)
        assert (status, printed) == (0, str(tmp_path / "out" / "2"))
        assert "Version 2 lacks tasks of the version before it: a." in errors and errors.count("\n") == 1


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path):
    command = [*TRAIN[1:], "--epochs=500", "--batch_size=256", "--chance_epochs=0", f"--output_dir={tmp_path / 'run'}"]
    output = tmp_path / "stdout", tmp_path / "stderr"
    process = start_forked("train.py", *command, output=output)
    while not (tmp_path / "run" / "training_state.safetensors").exists():
        assert process.is_alive(), output[1].read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert output[1].read_text() == "\ntrain.py: stopped. The same command goes on after the last completed epoch.\n"


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("runpy.run_module('piggyback_tf', run_name='__main__')", "python -m piggyback_tf"),
        ("runpy.run_path('train.py', run_name='__main__')", "train.py"),
    ],
)
def test_ctrl_c_while_modules_are_imported_is_answered_with_a_sentence(start, name):
    # Comes when NumPy, the first large module, is about to be imported.
    program = f"""
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
{start}
"""
    command = [sys.executable, "-c", program, "inspect", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"\n{name}: interrupted.\n")


def test_matplotlib_does_not_tell_that_it_cannot_write_into_the_users_folder():
    program = """
import logging
from piggyback_tf.quiet import plain_log
plain_log()
import matplotlib.pyplot
logging.getLogger("matplotlib").warning("Something else.")
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "XDG_"))}
    environment |= {"HOME": "/dev/null/nobody", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "Warning: Something else.\n")


def test_the_last_words_of_a_crash_arrive_without_the_chatter():
    program = """
import os, sys
from piggyback_tf.quiet import filtered_stderr
with filtered_stderr():
    os.write(2, b"I0000 00:00:1795894069.541793 20946 port.cc:153] oneDNN custom operations are on.\\n")
    print("of Python", file=sys.stderr)
    os.write(2, b"F0000 00:00:1795894069.541793 20946 check.cc:1] Check failed\\n")
    os.abort()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode < 0
    assert done.stderr == "of Python\nF0000 00:00:1795894069.541793 20946 check.cc:1] Check failed\n"
