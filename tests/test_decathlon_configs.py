"""The files of the Visual Decathlon in configs/: what they say, and that each trains on what the real builder makes."""

import json
from pathlib import Path

import pytest
from absl import flags

from piggyback_tf import flags as own_flags
from piggyback_tf.data import load_data, output_size
from piggyback_tf.evaluation.decathlon import BASE_DOMAIN, DOMAINS, PUBLISHED
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.sequences import parse_tasks
from piggyback_tf.training import InputConfig, TrainConfig
from tests.decathlon_kit import prepare_domains, prepare_imagenet64, write_devkit
from tests.flag_values import defined_flags
from tests.forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
UPRIGHT = ("gtsrb", "omniglot", "svhn")
BASES = ("decathlon", "decathlon_imagenet64")
FLAGS = flags.FLAGS


@pytest.fixture(scope="module", autouse=True)
def _flags():
    with defined_flags():
        yield


def _read(name: str, monkeypatch) -> str:
    """Gives the flags the values of a file, and returns its text."""
    monkeypatch.chdir(ROOT)
    FLAGS.unparse_flags()
    assert FLAGS(["train.py", f"--flagfile=configs/{name}"]) == ["train.py"]
    return (CONFIGS / name).read_text()


def _spec(domain: str) -> str:
    return f"tfds:visual_domain_decathlon/{domain}?train=train&test=validation"


def test_there_is_a_file_for_each_set():
    assert {path.name for path in (CONFIGS / "decathlon").iterdir()} == {f"{domain}.flags" for domain in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_set_is_trained_as_in_the_paper(domain, monkeypatch):
    text = _read(f"decathlon/{domain}.flags", monkeypatch)
    train, inputs = own_flags.read_config(TrainConfig), own_flags.read_config(InputConfig)
    assert (FLAGS.data, FLAGS.task) == (_spec(domain), domain)
    assert (FLAGS.backbone, FLAGS.image_size) == ("wrn28_4", 64)
    assert FLAGS.weights == f"runs/bases/decathlon/{BASE_DOMAIN}.keras"
    assert FLAGS.method == ("classifier_only" if domain == BASE_DOMAIN else "piggyback")
    assert (train.epochs, train.step_epochs, train.schedule, train.step_decay) == (60, 45, "step", 0.1)
    assert (train.mask_optimizer, train.mask_lr, train.mask_epsilon) == ("adam", 1e-4, 1e-8)
    assert (train.mask_trust, train.warmup_steps, train.batch_size) == (0, 0, 32)
    crop = "central_crop(64)" if domain in UPRIGHT else "random_crop(64)|flip"
    assert inputs.augment_train == f"resize(72)|{crop}" and inputs.augment_eval == "resize(72)|central_crop(64)"
    assert FLAGS.output_dir == f"runs/decathlon/{domain}"
    assert f"#   python train.py --flagfile=configs/decathlon/{domain}.flags\n" in text
    errors = {row.title: f"{row.errors[domain]:.2f} %" for row in PUBLISHED}
    assert (
        f"# The paper reports top-1 errors of {errors['Piggyback']} (piggyback), {errors['Feature']} (classifier only) "
        f"and {errors['Finetune']} (individual networks).\n" in text
    )


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_a_network_of_its_own(name, monkeypatch):
    text = _read(f"bases/{name}.flags", monkeypatch)
    assert f"#   python train.py --flagfile=configs/bases/{name}.flags\n" in text
    config = own_flags.read_config(METHODS["finetune"].Config)
    assert (FLAGS.method, FLAGS.weights, FLAGS.backbone, FLAGS.task) == ("finetune", "random", "wrn28_4", BASE_DOMAIN)
    assert (config.norm, config.norm_statistics) == ("task", "task")
    assert output_size(own_flags.read_config(InputConfig).augment_train) == (64, 64)
    assert FLAGS.output_dir == f"runs/bases/{name}"
    assert f"{FLAGS.output_dir}/{BASE_DOMAIN}.keras" in text


def test_the_sequence_has_the_nine_other_sets_without_flips(monkeypatch):
    _read("sequences/decathlon.flags", monkeypatch)
    nine = [domain for domain in DOMAINS if domain != BASE_DOMAIN]
    assert list(parse_tasks(FLAGS.tasks).items()) == [(domain, _spec(domain)) for domain in nine]
    train, inputs = own_flags.read_config(TrainConfig), own_flags.read_config(InputConfig)
    assert (train.epochs, train.step_epochs) == (60, 45)
    assert inputs.augment_train == "resize(72)|random_crop(64)"


@pytest.fixture(scope="module", name="prepared")
def _prepared(tmp_path_factory):
    """The folder of the prepared sets."""
    folder = tmp_path_factory.mktemp("decathlon")
    data_dir = folder / "tfds"
    write_devkit(folder)
    prepare_domains(folder, data_dir)
    prepare_imagenet64(folder, data_dir)
    return data_dir


@pytest.fixture(scope="module", name="base")
def _base(prepared, tmp_path_factory):
    """The folder of a base, trained by its file."""
    folder = tmp_path_factory.mktemp("base")
    _train("bases/decathlon", prepared, folder)
    return folder


def _train(name: str, data_dir: Path, folder: Path, *flags: str) -> dict:
    """Trains two steps of what a file says, and returns what was measured."""
    done = run_forked(
        "train.py",
        f"--flagfile=configs/{name}.flags",
        f"--data_dir={data_dir}",
        f"--output_dir={folder}",
        "--epochs=1",
        "--batch_size=18",
        "--verbose=0",
        "--notensorboard",
        "--cache=none",
        *flags,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "metrics.json").read_text())["methods"]


@pytest.mark.slow
def test_the_builder_hides_the_labels_of_the_test_images_alone(prepared):
    data = load_data(_spec("dtd"), data_dir=str(prepared))
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 4, 6]
    assert len(data.class_names) == 47
    assert set(data.test.labels.tolist()) == {0, 1}
    # The class is the place among the categories of the kit, whatever their numbers are.
    bright = [data.test.read(index).mean() > 90 for index in range(6)]
    assert data.test.labels.tolist() == [int(one) for one in bright]


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_a_base_trains_two_steps_and_is_measured(name, prepared, base, tmp_path):
    folder = base if name == "decathlon" else tmp_path
    found = _train(f"bases/{name}", prepared, folder)["finetune"]
    assert found["steps"][0]["errors"][BASE_DOMAIN]["images"] == 6
    assert (folder / f"{BASE_DOMAIN}.keras").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_set_trains_two_steps_and_is_measured(domain, prepared, base, tmp_path):
    weights = f"--weights={base / BASE_DOMAIN}.keras"
    (found,) = _train(f"decathlon/{domain}", prepared, tmp_path, weights).values()
    assert found["steps"][0]["errors"][domain]["images"] == 6
    pack = TaskPack.load(tmp_path / f"{domain}.task.safetensors")
    assert pack.base_name == "wrn28_4" and pack.base_weights == f"{BASE_DOMAIN}.keras"
    assert pack.settings["epochs"] == 1 and bool(pack.masks) == (domain != BASE_DOMAIN)


@pytest.mark.slow
def test_the_sequence_trains_and_is_measured(prepared, base, tmp_path):
    found = _train("sequences/decathlon", prepared, tmp_path, f"--weights={base / BASE_DOMAIN}.keras")["piggyback"]
    assert set(found["steps"][-1]["errors"]) == {*DOMAINS} - {BASE_DOMAIN}
