"""The page for the browser, from results by hand: what it shows, what it says is missing, and that nothing leaks."""

import base64
import dataclasses
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import load_data
from piggyback_tf.evaluation.answers import AnswerLog
from piggyback_tf.evaluation.page import pictures, read_subjects, write_page
from piggyback_tf.evaluation.page.charts import bar_chart, interval, line_chart
from piggyback_tf.evaluation.page.markup import element, table
from piggyback_tf.packs import TaskPack
from tests.evaluation.pages import EVIL, load, page_of, written
from tests.evaluation.run_folders import errors, sequence, write_sequence, write_single
from tests.packs.helpers import GOLDEN, make_pack, structured_pack


def test_a_pack_with_its_answers(tmp_path, pack):
    page, told, _ = page_of(tmp_path, pack)
    (one,) = told["tasks"]
    assert (one["task"], one["wrong_images"], one["shown_images"]) == ("birds", 4, 4)
    assert told["bytes"] == (tmp_path / "page.html").stat().st_size
    assert "4 of 6 images of the test split" in page.text
    images = page.of("img")
    assert len(images) == 4
    for attributes in images:
        kind, _, data = attributes["src"].partition(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (kind, image.format) == ("data:image/jpeg", "JPEG")
        assert max(image.size) == pictures.SIDE
        assert attributes["alt"].startswith("Image test/")
    # The surest of the wrong answers is the last image, of cats.
    assert re.search(r"✗ answer (.+?) 80 % ✓ truth cat 10 % 1\.png", page.text)
    assert "12.50 [3.50, 36.00]" in page.text
    assert any("Learning curves are not in a pack" in sentence for sentence in one["missing"])


def test_texts_of_others_are_texts(tmp_path, pack):
    page, _, subjects = page_of(tmp_path, pack)
    assert EVIL.replace("/", "|") in page.text
    assert "script" not in [tag for tag, _ in page.elements]
    evil = dataclasses.replace(subjects.tasks[0], task=EVIL, source=f'"><img src=x onerror=1>{EVIL}', label=EVIL)
    evil.pack = make_pack(task="birds", settings={EVIL: EVIL}, eval_augment=EVIL, base_name=EVIL)
    evil.settings = {EVIL: EVIL}
    evil.step = {"history": {"error": [1.0], "val_error": [2.0]}, "best_epoch": 1}
    evil.errors = {EVIL: {f"{EVIL}_error": 5.0}, "test": {f"{EVIL}_error": 3.0, "b_error": 4.0}}
    evil.zeros = {EVIL: 0.5, "\u202e\udce9": 0.1}
    subjects.tasks = [evil, dataclasses.replace(evil, label=f"{EVIL} 2")]
    subjects.sequences = {EVIL: sequence(EVIL, {EVIL: {EVIL: 3.0}})}
    subjects.left_out = {EVIL: {EVIL: {EVIL: [{"kind": EVIL, "place": EVIL}]}}}
    subjects.notes = [EVIL]
    page, _, _ = written(tmp_path, subjects, 3)
    assert not {"script", "b2"} & {tag for tag, _ in page.elements}
    assert page.source.count("<script") == 0
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in page.elements)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "\u202e" not in page.source
    assert r"\u202e\udce9" in page.text


def test_it_is_one_file_that_may_load_nothing(tmp_path, pack):
    page, _, _ = page_of(tmp_path, pack, write_run(tmp_path))
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ")[:3] == ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert "style" not in attributes
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    page_again, _, _ = page_of(tmp_path, pack, write_run(tmp_path))
    assert page_again.source == page.source


def test_people_who_cannot_see_it_can_read_it(tmp_path, pack):
    page, _, _ = page_of(tmp_path, pack, write_run(tmp_path))
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("h1")) == len(page.of("main")) == page.source.count("<head>") == 1
    assert re.search("<title>[^<]+</title><style>", page.source)
    assert len(page.of("caption")) == len(page.of("table")) > 3
    assert all(image["alt"] for image in page.of("img"))
    for drawing in page.of("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and drawing["aria-label"])
    # Every link leads to a part that there is.
    names = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [link["href"].removeprefix("#") for link in page.of("a")]
    assert links and set(links) <= names
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def write_run(tmp_path, **settings):
    """Writes a run of two methods with histories."""
    folder = tmp_path / "run"
    write_single(folder, "cubs", {"classifier_only": 40.0, "piggyback": 20.0}, **settings)
    metrics = json.loads((folder / "metrics.json").read_text())
    for step in metrics["methods"].values():
        step["history"] = {"error": [0.5, 0.25], "val_error": [0.5, float("nan")]}
        step["history"] |= {"cross_entropy": [2.0, 1.0], "val_cross_entropy": [2.5, 1.5]}
        step["best_epoch"] = 1
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_run_of_two_methods(tmp_path):
    page, told, _ = page_of(tmp_path, write_run(tmp_path))
    assert [one["task"] for one in told["tasks"]] == ["cubs, classifier_only", "cubs, piggyback"]
    assert "20.00 [19.00, 21.00]" in page.text
    assert "cubs, 2 methods" in page.text
    drawn = [drawing["aria-label"] for drawing in page.of("svg") if "by epoch" in drawing.get("aria-label", "")]
    assert len(drawn) == 2
    assert "cubs, classifier_only, training from 2 to 1" in drawn[1]
    assert len([line for line in page.of("polyline") if "dashed" in line["class"]]) == 4
    # This run is of before answers were recorded, which is said once with what to do.
    assert page.text.count("Its run recorded no answers to single images") == 2
    assert "piggyback evaluate PACK --data=SPEC --answers, or a new run" in page.text


def test_a_sequence(tmp_path):
    steps = {"cubs": {"cubs": 22}, "cars": {"cubs": 25.5, "cars": 15}}
    measured = {"average_error": 20.25, "forgetting": 3.5}
    run = write_sequence(tmp_path / "lwf", sequence("lwf", steps, measures=measured), packs=True)
    page, told, _ = page_of(tmp_path, run)
    assert [one["errors"]["test"]["top1_error"] for one in told["tasks"]] == [25.5, 15]
    assert "Test error of each task in percent after each step" in page.text
    assert "after cubs cars cubs 22.00 cars 25.50 15.00" in page.text
    assert "forgetting 3.50" in page.text
    assert "Overlap of masks" in page.text


def test_packs_of_all_formats_side_by_side(tmp_path):
    files = sorted(GOLDEN.glob("*.safetensors"))
    page, told, subjects = page_of(tmp_path, *files)
    assert len(told["tasks"]) == len(files) == len({one.label for one in subjects.tasks})
    assert subjects.problems == []
    assert "birds (binary.v1)" in page.text
    make_pack(problem="depth").save(tmp_path / "birds.task.safetensors")
    page, _, _ = page_of(tmp_path, tmp_path / "birds.task.safetensors")
    assert "Of tasks like this one, which find a 'depth', no answers" in page.text


def test_many_packs_and_what_their_masks_share(tmp_path):
    for seed in range(30):
        structured_pack(seed=seed, task=f"task {seed:02}").save(tmp_path / f"{seed:02}.task.safetensors")
    page, _, _ = page_of(tmp_path, tmp_path)
    assert page.text.startswith("30 tasks")
    matrix = page.text.split("Shared zeros of masks on small")[1]
    row = re.search(r"2 task 01 ((?:\S+ \[\S+\] ){29})", matrix)[1]
    packs = [TaskPack.load(tmp_path / f"{seed:02}.task.safetensors") for seed in (0, 1)]
    a, b = (np.concatenate([pack.mask(path).ravel() == 0 for path in pack.masks]) for pack in packs)
    share, p, q = (a & b).sum() / (a | b).sum(), a.mean(), b.mean()
    assert row.startswith(f"{100 * share:.1f} [{100 * p * q / (p + q - p * q):.1f}]")


def test_packs_on_two_bases_of_one_name_are_not_compared(tmp_path):
    for place, digest in enumerate(("ab", "cd", "cd")):
        structured_pack(task=f"t{place}", base_hash=digest * 32).save(tmp_path / f"{place}.task.safetensors")
    page, _, _ = page_of(tmp_path, tmp_path)
    assert page.text.count("Shared zeros of masks on") == 1
    assert "small (given, 8 px), cdcdcdcdcdcd" in page.text


def test_tasks_of_classes_and_of_pixels_side_by_side(tmp_path):
    pixels = {"mean_iou_error": 30.0, "mean_iou_error_low": 28.0, "mean_iou_error_high": 33.0, "images": 9}
    make_pack(task="roads", errors={"test": pixels}).save(tmp_path / "a.task.safetensors")
    page, _, _ = page_of(tmp_path, tmp_path / "a.task.safetensors")
    assert "test 100 less mean IoU %" in page.text and "30.00 [28.00, 33.00]" in page.text
    make_pack(errors={"test": {"top1_error": 12.0, "top5_error": 2.0}}).save(tmp_path / "b.task.safetensors")
    page, _, _ = page_of(tmp_path, tmp_path)
    assert "task method test error % 0 to 33 %" in page.text
    assert "test top-5 error %" in page.text
    assert "as a line of 100 less mean IoU %: the middle 95 % of a bootstrap" in page.text
    assert "as a line of top-1 error %: the 95 % Wilson score interval." in page.text


def test_packs_with_whatever_somebody_wrote(tmp_path):
    odd = {"test": {"_error_low": 1.0}, "": {"_error": 1e308, "b": 2}}
    make_pack(errors=odd, settings={"seed": "x", "val_fraction": [1]}).save(tmp_path / "a.task.safetensors")
    page, _, _ = page_of(tmp_path, tmp_path)
    assert "birds" in page.text


def test_what_cannot_be_shown_is_said(tmp_path, pack):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text("{}")
    (tmp_path / "bad.task.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "odd").mkdir()
    write_single(tmp_path / "odd", "cubs", {"piggyback": 20.0})
    (tmp_path / "odd" / "metrics.json").write_text('{"format": 2, "methods": {"piggyback": {"tasks": 5}}}')
    names = ("nothing", "other", "bad.task.safetensors", "odd", "nowhere")
    page, told, subjects = page_of(tmp_path, *(tmp_path / name for name in names), pack, pack)
    assert len(told["tasks"]) == 1
    for sentence, words in zip(
        subjects.problems,
        (
            "no settings.json in it, and no pack",
            "is of something else",
            "no task pack",
            "does not hold",
            "No such file",
        ),
        strict=True,
    ):
        assert words in sentence and sentence.endswith(".")
        assert sentence.replace("'", "") in page.text.replace("'", "")


def test_images_that_are_gone_or_changed_are_not_shown_as_what_was_measured(tmp_path, pack, photos):
    (photos / "test" / "cat" / "0.png").unlink()
    Image.new("RGB", (9, 9)).save(photos / "test" / "cat" / "1.png")
    page, told, _ = page_of(tmp_path, pack)
    assert told["tasks"][0]["shown_images"] == 4
    assert len(page.of("img")) == 2
    assert "2 of these images are no longer there" in page.text
    photos.rename(tmp_path / "moved")
    page, _, _ = page_of(tmp_path, pack)
    assert page.of("img") == []
    assert "The images themselves are not shown: There is no folder" in page.text


def test_validation_images_are_drawn_as_they_were_in_training(tmp_path, monkeypatch):
    drawn = {"seed": 5, "val_fraction": 0.2}
    data = load_data("digits", **drawn)
    log = AnswerLog("class", True)
    log.note(data.validation.labels, np.eye(10)[(data.validation.labels + 1) % 10])
    log.write(tmp_path / "birds.answers1.json.gz", data, "validation", task="birds", errors=errors(100.0, 9))
    head = {"kernel": np.zeros((4, 10), "float32"), "bias": np.zeros(10, "float32")}
    pack = make_pack(class_names=list(data.class_names), head=head, settings=drawn)
    pack.save(tmp_path / "birds.task.safetensors")
    page, told, subjects = page_of(tmp_path, tmp_path / "birds.task.safetensors")
    assert (told["tasks"][0]["wrong_images"], len(page.of("img"))) == (len(data.validation), 24)
    assert "no longer there" not in page.text
    asked = []
    monkeypatch.setattr(
        pictures, "load_data", lambda *given, **named: asked.append(named) or load_data(*given, **named)
    )
    write_page(tmp_path / "page.html", subjects, 1, data_dir="/data")
    assert asked == [{"data_dir": "/data", "raise_problems": False, **drawn}]


@pytest.mark.parametrize(("images", "shown"), [(0, 0), (2, 2), (100, 4)])
def test_how_many_images_are_shown(images, shown, tmp_path, pack):
    page, told, _ = page_of(tmp_path, pack, images=images)
    assert told["tasks"][0]["shown_images"] == len(page.of("img")) == shown
    assert (f"(--images={images})" in page.text) == (shown < 4)


def test_all_pictures_together_have_a_limit(tmp_path, pack, monkeypatch):
    page, _, _ = page_of(tmp_path, pack)
    size = max(len(image["src"]) for image in page.of("img")) + 200
    monkeypatch.setattr(pictures.Budget.__init__, "__defaults__", (2 * size,))
    page, told, _ = page_of(tmp_path, pack)
    assert told["tasks"][0]["shown_images"] == 4
    assert len(page.of("img")) == 2
    assert "the other answers are shown alone" in page.text


def test_a_kind_without_pictures_says_so_and_one_that_is_registered_is_shown(tmp_path, pack, monkeypatch):
    subjects = read_subjects([str(pack)], load)
    answers = subjects.tasks[0].answers
    subjects.tasks[0].answers = dataclasses.replace(answers, kind="depth", columns={"dice": [0.5] * 6})
    page, told, _ = written(tmp_path, subjects, 3)
    assert "Answers of the kind 'depth' have no pictures in this version." in page.text
    assert told["tasks"][0]["wrong_images"] is None

    def show(answers, place, picture):
        return pictures.figure(picture, [f"dice {answers.columns['dice'][place]}"], answers.images[place])

    monkeypatch.setitem(pictures.PICTURES._entries, "depth", pictures.PictureKind(lambda answers: [0, 3], show))
    page, told, _ = written(tmp_path, subjects, 3)
    assert len(page.of("img")) == 2
    assert page.text.count("dice 0.5") == 2


def test_images_of_several_classes_show_what_was_wrong(tmp_path, pack, photos):
    data = load_data(f"folder:{photos}")
    log, truth = AnswerLog("multilabel", False), np.array([[1, 1, 0]] * 3 + [[0, 0, 1]] * 3)
    logits = np.where(truth, 2.0, -2.0)
    logits[1] = [-3.0, 2.0, 1.0]
    logits[4, 0] = 0.5
    log.note(truth, logits)
    measured = {"mean_precision_error": 20.0, "images": 6, "average_precision": {"ant": 90.0, "cat": None, EVIL: "x"}}
    log.write(pack.parent / "birds.answers1.json.gz", data, "test", task="birds", errors=measured)
    page, told, subjects = page_of(tmp_path, pack)
    assert (told["tasks"][0]["wrong_images"], told["tasks"][0]["shown_images"]) == (2, 2)
    assert subjects.tasks[0].answers.columns["wrong"][1] == [[0, 0.0474], [2, 0.7311]]
    # The surest mistake first: a class that was missed, then one that is wrong.
    names = [re.escape(name) for name in data.class_names]
    first = rf"✓ truth {names[0]} 5 % ✗ answer {names[2]} 73 % 1\.png"
    assert re.search(rf"{first} .*✗ answer {names[0]} 62 % 0\.png", page.text)
    assert re.search(r"average precision % by class .* ant 90\.00 cat - ", page.text)
    assert page.source.count("<script") == 0


def test_tiny_images_keep_their_pixels(tmp_path):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    data = re.search(r"base64,([^\"]+)", pictures.thumbnail(pixels, "a"))[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


def test_answers_of_other_classes_or_damaged_ones_are_not_shown(tmp_path, pack):
    make_pack().save(pack)
    page, told, _ = page_of(tmp_path, pack)
    assert "are for other classes than the task's" in page.text
    assert told["tasks"][0]["wrong_images"] is None
    (pack.parent / "birds.answers1.json.gz").write_bytes(b"x")
    page, _, _ = page_of(tmp_path, pack)
    assert "Its answers to single images cannot be read" in page.text


def test_elements_and_tables():
    assert element("p", "a<b", None, ["&", element("br")], class_='x"y', aria_label=1, hidden=True, id=None) == (
        '<p class="x&quot;y" aria-label="1" hidden>a&lt;b&amp;<br></p>'
    )
    made = table("c", ["a", "b"], [["x", "1"], ["y", element("td", 2)]])
    assert '<tr><th scope="row">x</th><td class="n">1</td></tr><tr><th scope="row">y</th><td>2</td></tr>' in made


def test_charts_of_odd_values():
    nan = float("nan")
    assert "polyline" not in line_chart("t", "", [("a", "c0", [nan, nan], False)], {})
    chart = line_chart("t", "%", [("a", "c0", [nan, 3.0, nan, 2.0, 1.0], False)], {"c0": 9})
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 1, "a single epoch is a point, and there is no ninth"
    assert "NaN" not in chart and "nan," not in chart
    assert bar_chart("t", "c0", {"a": 0.0}, 0.0).count("<rect") == 1
    assert interval(0.0, None, None, 1.0).count("<line") == 1
