"""A device sees the images of training, prepares them as the task says, and refuses what is no image."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.edge import piggyback_edge
from export.edge.piggyback_edge import EdgeError, main
from export.lite.folder import IMAGES_FILE
from export.lite.patch.manifest import manifest_bytes
from export.lite.patch.task_file import task_bytes
from piggyback_tf.data import BrokenImageError, DataError, decode_image, images, parse_augment
from piggyback_tf.data.pixel_range import check_pixels
from tests import image_files as made
from tests.export.edge.test_patcher import PATCHER
from tests.odd_image_files import odd_pngs, other_files

# Runs where there is nothing but both files, numpy and Pillow.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import piggyback_edge as edge
found, errors = {}, {}
for name, path in json.load(sys.stdin).items():
    try:
        found[name] = edge._load_image(path, (8, 8))[0]
    except (edge.EdgeError, ValueError) as error:
        errors[name] = str(error)
np.savez(sys.argv[2], **found)
packages = {module.partition('.')[0] for module in sys.modules}
print(json.dumps([errors, sorted(packages & {'piggyback_tf', 'export', 'tensorflow', 'keras'})]))
"""


@pytest.fixture(scope="module", name="programs")
def _programs(tmp_path_factory):
    """A folder with the two files of an export that are programs."""
    folder = tmp_path_factory.mktemp("programs")
    shutil.copyfile(PATCHER, folder / PATCHER.name)
    shutil.copyfile(images.__file__, folder / IMAGES_FILE)
    return folder


def test_image_files_have_the_pixels_of_training(programs, tmp_path):
    files = made.pngs() | made.jpegs() | made.cmyk_jpegs() | made.turned_files()
    files |= {name: file for name, (file, _) in made.profiled_files().items()}
    contents = {name: file.data for name, file in files.items()} | odd_pngs() | other_files()
    paths = {name: tmp_path / f"{index}.image" for index, name in enumerate(contents)}
    for name, data in contents.items():
        paths[name].write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", PROGRAM, programs, tmp_path / "found.npz"],
        input=json.dumps({name: str(path) for name, path in paths.items()}),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    errors, packages = json.loads(run.stdout)
    assert packages == []
    found = np.load(tmp_path / "found.npz")
    for name, data in contents.items():
        try:
            expected = decode_image(data, str(paths[name]))
        except BrokenImageError as error:
            assert errors[name] == str(error)
            continue
        np.testing.assert_array_equal(found[name][0], expected, err_msg=name)
    # Most are images.
    assert len(found.files) > 200 > 20 > len(errors) > 5


@pytest.mark.parametrize(
    "augment",
    [
        "",
        "resize(8, 8)",
        "resize(9)|central_crop(8)",
        " resize(size=20,width=30) | central_crop( size = 8 )|resize(8,8)",
    ],
)
@pytest.mark.parametrize("shape", [(8, 8), (40, 25), (9, 300)])
def test_images_are_prepared_as_in_training(augment, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = image
    for operation in parse_augment(augment):
        expected = operation.apply(expected)
    np.testing.assert_array_equal(piggyback_edge.prepare(image, augment), expected)


def _resample(image, size):
    """Resizes the first axis as docs/litert.md says."""
    scale = len(image) / size
    places = np.arange(len(image)) + 0.5
    weights = np.maximum(1 - np.abs(places - (np.arange(size)[:, None] + 0.5) * scale) / max(scale, 1), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.floor(np.tensordot(weights, image.astype(float), 1) + 0.5)


@pytest.mark.parametrize("shape", [(40, 25), (9, 70), (70, 9), (5, 5)])
def test_resizing_is_what_the_document_says(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for augment in ("resize(12,17)", "resize(11)"):
        found = piggyback_edge.prepare(image, augment)
        height, width = found.shape[:2]
        if augment == "resize(11)":
            assert (height, width) == tuple(max(round(side * 11 / min(shape)), 11) for side in shape)
        shrinks = shape[0] - height, shape[1] - width
        axes = (0, 1) if shrinks[0] > max(0, 2 * shrinks[1]) else (1, 0)
        expected = image
        for axis in axes:
            expected = np.moveaxis(_resample(np.moveaxis(expected, axis, 0), found.shape[axis]), 0, axis)
        # Pillow's weights have 22 bits.
        off = np.abs(found - expected)
        assert off.max() <= 1
        assert (off > 0).mean() < 0.02


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("flip", "prepares images with 'flip'; here are resize and central_crop"),
        ("resize(8)|random_crop(8)", r"with 'random_crop\(8\)'"),
        ("resize", "with 'resize'"),
        ("resize()", r"with 'resize\(\)'"),
        ("resize(0)", "resize"),
        ("resize(8.5)", "resize"),
        ("resize(True)", "resize"),
        ("resize(9000)", "resize"),
        ("resize(8,8,8)", "resize"),
        ("resize(8,size=8)", "resize"),
        ("resize(8,height=8)", "resize"),
        ("resize(width=8)", "resize"),
        ("central_crop(8,8)", "central_crop"),
        ("__import__('os')", "__import__"),
        ("resize(8)||resize(8)", "with ''"),
        ("(" * 5000, "prepares images with"),
        ("central_crop(41)", "the image has 40x25 pixels, too few"),
        ("central_crop(26)", "the image has 40x25 pixels, too few"),
        ("resize(8000)|central_crop(8)", "the image would have 12800x8000 pixels"),
    ],
)
def test_what_cannot_be_prepared_is_refused(augment, message):
    image = np.zeros((40, 25, 3), np.uint8)
    with pytest.raises(EdgeError, match=message):
        piggyback_edge.prepare(image, augment)
    # Nor does training take it, but for what draws random numbers.
    if "flip" not in augment and "random" not in augment:
        with pytest.raises((DataError, RecursionError)):
            for operation in parse_augment(augment):
                image = operation.apply(image)


IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "good"),
    [
        (IMAGE, True),
        (IMAGE.astype(np.int64), True),
        (IMAGE.astype(np.float16), True),
        (IMAGE.astype(np.float64), True),
        (np.zeros((8, 8, 3), np.float32), True),
        (IMAGE // 255, True),
        (IMAGE * np.float32(np.nan), False),
        (np.where(IMAGE > 200, np.inf, IMAGE), False),
        (IMAGE / 255, False),
        (np.round(IMAGE / 255), False),
        (IMAGE / 127.5 - 1, False),
        (IMAGE * 256.0, False),
        (IMAGE.astype(np.int16) - 128, False),
        (IMAGE.astype(np.uint16) * 257, False),
        (IMAGE > 100, False),
        (IMAGE.astype(np.complex64), False),
    ],
)
def test_impossible_pixels_are_refused_as_by_a_bank(image, good, tmp_path):
    np.save(tmp_path / "image.npy", image)
    if good:
        check_pixels(image)
        found = piggyback_edge._load_image(str(tmp_path / "image.npy"), (8, 8))[0]
        np.testing.assert_array_equal(found, image[None].astype(np.float32))
        return
    with pytest.raises(ValueError, match="Images must hold"):
        check_pixels(image)
    with pytest.raises(EdgeError):
        piggyback_edge.check_pixels(image)
    with pytest.raises(EdgeError, match=r"image.npy' (cannot be used|is no)"):
        piggyback_edge._load_image(str(tmp_path / "image.npy"), (8, 8))[0]


@pytest.fixture(name="predict")
def _predict(tmp_path, base, make_task, monkeypatch):
    """A function that runs the command `predict` on a file; returns the exit status and what the model was given."""
    given = []
    monkeypatch.setattr(
        piggyback_edge,
        "_interpreter",
        lambda data, threads: types.SimpleNamespace(
            get_input_details=lambda: [{"index": 3}],
            get_output_details=lambda: [{"index": 4}],
            set_tensor=lambda index, image: given.append(image),
            invoke=lambda: None,
            get_tensor=lambda index: np.full((1, 6), np.nan if given[-1][0, 0, 0, 0] == 77 else 1, np.float32),
        ),
    )
    (tmp_path / "base.tflite").write_bytes(base.data)
    (tmp_path / "manifest.bin").write_bytes(manifest_bytes(base.manifest))
    task = make_task(augment="resize(12)|central_crop(8)")
    (tmp_path / "birds.edge").write_bytes(task_bytes(task, base.manifest))

    def run(*paths):
        files = (str(tmp_path / name) for name in ("base.tflite", "birds.edge"))
        return main(["predict", *files, *map(str, paths)]), given

    return run


def test_predict_turns_and_prepares_an_image_file(predict, tmp_path, capsys):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif)
    status, given = predict(tmp_path / "photo.jpg")
    assert (status, len(given)) == (0, 1), capsys.readouterr().err
    expected = decode_image((tmp_path / "photo.jpg").read_bytes(), "photo")
    for operation in parse_augment("resize(12)|central_crop(8)"):
        expected = operation.apply(expected)
    np.testing.assert_array_equal(given[0][0], expected)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'photo.jpg'}: ")


def test_predict_gives_no_class_to_what_it_cannot_answer(predict, tmp_path, capsys):
    np.save(tmp_path / "scaled.npy", IMAGE / 255)
    np.save(tmp_path / "large.npy", np.zeros((9, 9, 3), np.uint8))
    np.save(tmp_path / "strange.npy", np.full((8, 8, 3), 77, np.uint8))
    (tmp_path / "text.png").write_text("no image")
    for name, message in {
        "scaled.npy": "as if scaled to [0, 1]",
        "large.npy": "its shape is [9, 9, 3]; the base takes [8, 8, 3]",
        "strange.npy": "the model returned numbers that are not finite",
        "text.png": "Broken image",
    }.items():
        status, _ = predict(tmp_path / name)
        output = capsys.readouterr()
        assert (status, output.out, output.err.count("\n")) == (2, "", 1)
        assert message in output.err


def test_an_image_without_an_answer_is_no_end_of_the_others(predict, tmp_path, capsys):
    np.save(tmp_path / "strange.npy", np.full((8, 8, 3), 77, np.uint8))
    np.save(tmp_path / "good.npy", np.full((8, 8, 3), 5, np.uint8))
    names = ["none.npy", "good.npy", "strange.npy", "good.npy"]
    status, given = predict(*(tmp_path / name for name in names))
    output = capsys.readouterr()
    assert (status, len(given)) == (2, 3)
    assert [line.split(":")[0] for line in output.out.splitlines()] == [str(tmp_path / "good.npy")] * 2
    missing, strange = output.err.splitlines()
    assert "none.npy" in missing
    assert "strange.npy" in strange


def test_image_files_need_pillow_and_the_module_beside(programs, tmp_path, predict):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    (tmp_path / "alone").mkdir()
    shutil.copyfile(PATCHER, tmp_path / "alone" / PATCHER.name)
    for folder, start in ((programs, "sys.modules['PIL'] = None; "), (tmp_path / "alone", "")):
        program = f"import sys; sys.path.insert(0, sys.argv[1]); {start}import piggyback_edge as edge; "
        program += "edge._interpreter = lambda *_: None; sys.exit(edge.main(sys.argv[2:]))"
        files = (str(tmp_path / name) for name in ("base.tflite", "birds.edge", "image.png"))
        command = [sys.executable, "-I", "-c", program, str(folder), "predict", *files]
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path("/"))
        assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
        assert "Image files need the package Pillow, and piggyback_images.py beside this program" in run.stderr


def test_an_export_answers_to_a_file_as_the_bank_does(patched, tmp_path):
    export = patched("none")
    pack = export.packs[0]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8
    photo.save(tmp_path / "photo.jpg", exif=exif, icc_profile=made.profile())
    files = ["base.tflite", f"{pack.task}.edge", str(tmp_path / "photo.jpg")]
    command = [sys.executable, "-I", PATCHER.name, "predict", *files]
    run = subprocess.run(command, capture_output=True, text=True, cwd=export.folder)
    assert run.returncode == 0, run.stderr
    image = decode_image((tmp_path / "photo.jpg").read_bytes(), "photo")
    for operation in parse_augment(pack.eval_augment):
        image = operation.apply(image)
    best = export.bank.top_k(image[None], task=pack.task)[0]
    assert run.stdout == f"{files[-1]}: " + ", ".join(f"{name} {score:.4f}" for name, score in best) + "\n"
