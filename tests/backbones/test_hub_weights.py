"""Weights from a repository of the Hugging Face Hub, with a stand-in for it: what is downloaded, recorded and said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from piggyback_tf.backbones.networks.torchvision import resnet_layout
from piggyback_tf.commands.answers import UsageError
from piggyback_tf.commands.common import choose_base
from tests.hub_stand_in import TOKEN, running_hub
from tests.packs.helpers import make_pack

ROOT = Path(__file__).parents[2]
CONFIG = {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}
# huggingface_hub reads its environment when it is imported, hence a process of its own, for several requests at once.
PROGRAM = """
import json, sys
from piggyback_tf.backbones.registry import check_request
from piggyback_tf.commands.answers import UsageError
from piggyback_tf.commands.common import choose_base
from piggyback_tf.packs import TaskPack

answers = []
for request in json.loads(sys.argv[1]):
    try:
        if "pack" in request:
            answers.append(choose_base(TaskPack.load(request["pack"]), None, None))
        else:
            _, file, _ = check_request(request.get("name", "resnet50_torch"), request["weights"], None)
            answers.append([file.provenance, file.statistics.mean, file.path.name])
    except (ValueError, UsageError) as error:
        answers.append(str(error))
print(json.dumps([answers, [name for name in ("tensorflow", "keras") if name in sys.modules]]))
"""


def _files(config: object = CONFIG) -> dict[str, bytes]:
    names = [name for choices in resnet_layout("resnet50").layers.values() for name in choices]
    tensors = save({f"{name}.weight": np.zeros(1, "float32") for name in names})
    return {"model.safetensors": tensors, "config.json": json.dumps(config).encode()}


@pytest.fixture(name="ask")
def _ask(tmp_path):
    """A function that asks for weights, one after another, in a process that knows a stand-in for the Hub."""

    def ask(endpoint, *requests, **environment):
        names = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        fixed = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(requests)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **names, **fixed, **environment},
        )
        assert done.returncode == 0, done.stderr
        answers, loaded = json.loads(done.stdout)
        assert loaded == []
        return answers

    return ask


def test_weights_of_a_repository_are_downloaded_once_and_their_commit_is_recorded(ask, tmp_path):
    with running_hub() as hub:
        repository = hub.add("me/resnet", _files())
        first = repository.find("main")
        repository.commit("other scaling", _files({**CONFIG, "pretrained_cfg": {"mean": [0.1] * 3, "std": [1] * 3}}))
        second = repository.find("main")
        base = {"base_name": "resnet50_torch", "base_weights": f"hf://me/resnet@{first}", "image_size": 32}
        make_pack(eval_augment="resize(32,32)", **base).save(tmp_path / "a.safetensors")
        pack = {"pack": str(tmp_path / "a.safetensors")}
        answers = ask(
            hub.address,
            {"weights": "hf://me/resnet"},
            {"weights": f"hf://me/resnet@{first}"},
            {"weights": "hf://me/resnet/"},
            pack,
        )
        expected = [
            [f"hf://me/resnet@{second}", [0.1] * 3, "model.safetensors"],
            [f"hf://me/resnet@{first}", [0.5] * 3, "model.safetensors"],
        ]
        assert answers == [*expected, expected[0], ["resnet50_torch", f"hf://me/resnet@{first}"]]
        address = hub.address
    # The hub is gone. A commit that was downloaded is not asked for. For a branch, huggingface_hub would try for half a
    # minute if it may.
    assert ask(address, {"weights": f"hf://me/resnet@{first}"}, pack) == [expected[1], answers[3]]
    offline = ask(address, {"weights": "hf://me/resnet"}, {"weights": "hf://timm/resnet50.tv_in1k"}, HF_HUB_OFFLINE="1")
    assert offline[0] == expected[0]
    assert "'hf://timm/resnet50.tv_in1k' of 'resnet50_torch' could not be loaded: The Hub at " in offline[1]
    assert "'hf download timm/resnet50.tv_in1k' puts it there where there is a network" in offline[1]
    assert "weights='random' to accept an untrained network" in offline[1]


def test_a_pack_finds_the_tensors_that_a_command_names(tmp_path):
    for name, content in _files().items():
        (tmp_path / name).write_bytes(content)
    pack = make_pack(base_name="resnet50_torch", base_weights="model.safetensors", image_size=32)
    path = str(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="was trained on weights from the file 'model.safetensors'; say where it is"):
        choose_base(pack, None, None)
    assert choose_base(pack, None, path) == ("resnet50_torch", path)
    with pytest.raises(UsageError, match="'resnet50' takes no weights from tensors.*resnet50_torch"):
        choose_base(pack, "resnet50", path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="There is no 'config.json' beside the weights file"):
        choose_base(pack, None, path)


def test_repositories_that_have_no_such_weights(ask):
    with running_hub() as hub:
        hub.add("me/pickled", {"pytorch_model.bin": b"\x80\x04K\x01.", "config.json": _files()["config.json"]})
        hub.add("me/resnet", _files())
        hub.add("me/resnet101", _files({**CONFIG, "architecture": "resnet101"}))
        answers = ask(
            hub.address,
            {"weights": "hf://me/pickled"},
            {"weights": "hf://me/nothing"},
            {"weights": "hf://me/resnet@v2"},
            {"weights": "hf://me/resnet@%2e%2e%2fmain"},
            {"weights": "hf://me/resnet101"},
            {"weights": "hf://me/resnet", "name": "vgg16_bn"},
            {"weights": "hf://me/resnet", "name": "mobilenet_v2"},
            {"weights": "hf://me/resnet", "name": "wrn28_4"},
        )
    for answer, part in zip(
        answers,
        (
            "A file that was asked for is not in the repository 'me/pickled' (Entry not found). Such a repository "
            "holds model.safetensors and config.json, as timm's do; pickles, such as pytorch_model.bin, are not",
            "has no repository 'me/nothing' of a model",
            "There is no revision 'v2' in the repository 'me/resnet'.",
            "'hf://me/resnet@%2e%2e%2fmain': '../main' is no name of a branch, tag or commit.",
            "is of architecture 'resnet101', and 'resnet50_torch' takes weights of 'resnet50'.",
            "is of architecture 'resnet50', and 'vgg16_bn' takes weights of 'vgg16_bn'.",
            "'mobilenet_v2' takes no weights from tensors, as 'hf://me/resnet' holds them.",
            "'wrn28_4' takes no weights from tensors",
        ),
        strict=True,
    ):
        assert part in answer
