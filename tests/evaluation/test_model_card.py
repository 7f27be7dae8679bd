"""The model card of a repository of packs."""

import numpy as np
import pytest
import yaml

from piggyback_tf.evaluation.model_card import BEGIN, END, CardError, PackFile, model_card
from piggyback_tf.head_spec import HeadSpec
from tests.packs.helpers import make_pack


def _file(size=1234, **changes):
    pack = make_pack(**changes)
    return PackFile(f"{pack.task}.task.safetensors", size, pack)


def _parts(card):
    """Returns the YAML and the text of a card."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def _row(card, task):
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {task} ")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_new_card():
    known = _file(task="fish", base_name="mobilenet_v2", base_weights="imagenet", image_size=96, seed=1, size=10**6)
    front, text = _parts(model_card("me/packs", [known, _file(task="plain", kind="none", norm={}, errors={})]))
    assert front == {
        "library_name": "piggyback_tf",
        "pipeline_tag": "image-classification",
        "tags": ["piggyback", "task-pack", "mobilenet_v2", "small"],
        "model-index": [
            {
                "name": "packs",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"type": "fish", "name": "fish, 16 test images", "split": "test"},
                        "metrics": [{"type": "accuracy", "name": "Top-1 accuracy", "value": 0.875}],
                    }
                ],
            }
        ],
    }
    assert text.startswith(f"\n# packs\n\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\n")
    zeros = f"{100 * make_pack(seed=1).zeros_total:.2f}"
    base = "mobilenet_v2 (imagenet, 96 px)"
    assert _row(text, "fish") == ["fish", base, "ab" * 6, "3", "12.50 [3.50, 36.00]", zeros, "1.0 MB"]
    assert _row(text, "plain") == ["plain", "small (given, 8 px)", "ab" * 6, "3", "-", "-", "1.2 kB"]
    assert "python -m piggyback_tf pull --repo me/packs --output_dir packs\n" in text
    assert "backbone = pb.load_backbone('mobilenet_v2', weights='imagenet', image_size=96)\n" in text
    assert "bank = pb.TaskBank(backbone).add('packs/fish.task.safetensors')\n" in text


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ({"base_name": "small"}, "pb.Backbone.from_model(model)  # small, as the task's author has it"),
        (
            {"base_name": "resnet50", "base_weights": "it's.h5"},
            "pb.load_backbone('resnet50', weights=\"FOLDER/it's.h5\", image_size=8)",
        ),
        (
            {"base_name": "resnet50", "base_weights": "random", "settings": {"seed": 7}},
            "pb.load_backbone('resnet50', weights='random', image_size=8, seed=7)",
        ),
        (
            {"base_name": "resnet50_torch", "base_weights": "hf://timm/resnet50.tv_in1k@ab12"},
            "pb.load_backbone('resnet50_torch', weights='hf://timm/resnet50.tv_in1k@ab12', image_size=8)",
        ),
    ],
)
def test_how_the_base_is_loaded(base, line):
    card = model_card("me/packs", [_file(**base)])
    assert f"\nbackbone = {line}\n" in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_what_the_user_wrote_is_kept():
    first = model_card("me/packs", [_file()])
    edited = first.replace("# packs", "# Birds\n\nOur birds.").replace("tags:\n", "license: mit\ntags:\n- ours\n")
    edited = edited.replace("model-index:\n", "model-index:\n- name: other\n  results: []\n") + "\n## Thanks\n"
    front, text = _parts(model_card("me/packs", [_file(errors={}), _file(task="fish")], edited))
    assert front["license"] == "mit"
    assert front["tags"] == ["ours", "piggyback", "task-pack", "small"]
    assert [entry["name"] for entry in front["model-index"]] == ["other", "packs"]
    assert [result["dataset"]["type"] for result in front["model-index"][1]["results"]] == ["fish"]
    assert text.startswith(f"\n# Birds\n\nOur birds.\n\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\n\n## Thanks\n")
    assert _row(text, "fish")
    again = model_card("me/packs", [_file(errors={}), _file(task="fish")], model_card("me/packs", [_file()], edited))
    assert _parts(again) == (front, text)


def test_a_card_of_nothing_but_yaml_is_filled():
    front, text = _parts(model_card("me/packs", [_file()], "---\nlicense: mit\n---\n"))
    assert front["license"] == "mit"
    assert text.startswith("\n# packs\n")


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("# Mine\n", "was not written by this command. Put these two lines into it"),
        (f"# Mine\n{END}\n{BEGIN}\n", "was not written by this command"),
        (f"# Mine\n{BEGIN}\n{END}\n{END}\n", "was not written by this command"),
        ("---\ntags: [\n---\n", "the YAML in front of it cannot be read"),
        ("---\n- a\n---\n", "the YAML in front of it cannot be read"),
    ],
)
def test_other_cards_are_refused(existing, message):
    with pytest.raises(CardError, match=message):
        model_card("me/packs", [_file()], existing)


def test_names_cannot_change_the_card():
    task = f"a|b {END} <script> [x](y)"
    files = [_file(task=task, base_name=f"n\n{END}\n```\n\x1b[31m"), PackFile("bad.task.safetensors", 3, None)]
    card = model_card("me/packs", files)
    assert card.count(f"\n{END}\n") == 1
    front, text = _parts(card)
    assert "<script>" not in text.split("```")[0]
    assert "\x1b" not in card
    assert _row(text, "bad.task.safetensors")[1] == "cannot be read"
    (line,) = [line for line in text.splitlines() if line.startswith(r"| a\|b &lt;!-- ")]
    assert r"&lt;script&gt; \[x\](y) | n\\n&lt;!-- " in line
    assert r"\\x1b\[31m (given, 8 px) |" in line
    compile(text.split("```python\n")[1].split("```\n")[0], "card", "exec")
    assert model_card("me/packs", files, card) == card


def test_a_card_says_what_each_pack_finds():
    def measured(name):
        return {"test": {name: 25.0, f"{name}_low": 20.0, f"{name}_high": 30.0, "images": 16}}

    spec = HeadSpec("fpn", 3, 4, (16, 24))
    head = {"logits/bias": np.zeros(3, np.float32)}
    segments = {"problem": "map", "head_spec": spec, "head": head, "eval_augment": "resize(16,24)"}
    files = [
        _file(task="roads", **segments, errors=measured("mean_iou_error")),
        _file(task="scenes", problem="multilabel", errors=measured("mean_precision_error")),
        _file(task="depths", **segments | {"problem": "depth"}, errors=measured("depth_error")),
    ]
    front, text = _parts(model_card("me/packs", files))
    results = {(one["task"]["type"], *sorted(map(str, one["metrics"][0].values()))) for one in _results(front)}
    assert results == {
        ("image-segmentation", "0.75", "Mean IoU", "mean_iou"),
        ("image-classification", "0.75", "Mean average precision", "mean_average_precision"),
    }
    assert front["pipeline_tag"] == "image-classification", "the most frequent; of a problem that nobody knows, too"
    bootstrap = "with middle 95 % of a bootstrap over images, which takes them to be independent"
    assert (
        f"*Test error*: 100 less mean IoU, {bootstrap}; 100 less mean average precision, {bootstrap}; depth_err" in text
    )
    assert "labels = bank.predict(images, task='roads')  # images: [N, 16, 24, 3]" in text
    assert "not measured. *Zeros*" in model_card("me/packs", [_file(errors={})])
    assert _parts(model_card("me/packs", files[:1]))[0]["pipeline_tag"] == "image-segmentation"


def _results(front):
    return front["model-index"][0]["results"]
