"""Every file in configs/ can be run or is part of one that can, and --helpshort shows what they are made of."""

import dataclasses
import re
from pathlib import Path

import pytest
from absl import flags

from piggyback_tf import flags as own_flags
from piggyback_tf.backbones import list_backbones
from piggyback_tf.backbones.registry import get_entry
from piggyback_tf.commands.reproduce_plan import TABLES
from piggyback_tf.data import data_kinds, output_size, parse_augment
from piggyback_tf.data.augment import RandomOperation
from piggyback_tf.data.tfds_builder import parse_options
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import parse_tasks
from piggyback_tf.training import InputConfig, RunConfig, TrainConfig
from tests.flag_values import defined_flags
from tests.forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
SEGMENTS = ("camvid_mobilenet_v2.flags", "voc_vgg16.flags")
RUNNABLE = sorted(path.name for path in CONFIGS.glob("*.flags") if path.name not in SEGMENTS)
SEQUENCES = sorted(path.name for path in (CONFIGS / "sequences").iterdir())
# Those of the Visual Decathlon are looked at in test_decathlon_configs.py.
FOLDERS = ("bases", "decathlon", "sequences")
SETS = ("cubs", "cars", "flowers", "wikiart", "sketch", "imagenet", "places365")
# Networks with the weights that the paper started from.
BACKBONES = {
    "vgg16": ("vgg16_torch", "hf://timm/vgg16.tv_in1k"),
    "vgg16_bn": ("vgg16_bn", "hf://timm/vgg16_bn.tv_in1k"),
    "resnet50": ("resnet50_torch", "hf://timm/resnet50.tv_in1k"),
    "densenet121": ("densenet121_torch", "hf://timm/densenet121.tv_in1k"),
}
# Sets that the paper has no row of on this network.
WITHOUT = {("imagenet", "vgg16_bn"), ("places365", "vgg16_bn")}
FLAGS = flags.FLAGS


@pytest.fixture(scope="module", autouse=True)
def _flags():
    with defined_flags():
        yield


def _read(name: str, monkeypatch) -> None:
    """Gives the flags the values of a file, as a command in the repository's folder does."""
    monkeypatch.chdir(ROOT)
    FLAGS.unparse_flags()
    assert FLAGS(["train.py", f"--flagfile=configs/{name}"]) == ["train.py"]


def _included(path: Path) -> set[str]:
    return set(re.findall(r"^--flagfile=configs/(\S+)$", path.read_text(), re.MULTILINE))


def test_every_row_of_the_table_has_a_file():
    pairs = {(data, backbone) for data in SETS for backbone in BACKBONES} - WITHOUT
    rows = {f"{data}_{backbone}.flags" for data, backbone in pairs} - {"flowers_vgg16.flags"}
    assert {*RUNNABLE} == rows | {"flowers.flags", "quickstart.flags"}


def test_every_other_file_is_part_of_a_run():
    in_folders = [f"{folder}/{path.name}" for folder in FOLDERS for path in (CONFIGS / folder).iterdir()]
    behind = {f"{file}.flags" for table in TABLES.values() for run in table.runs for file in run.files[1:]}
    reached, waiting = set(), [*RUNNABLE, *SEGMENTS, *in_folders, *behind]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += _included(CONFIGS / name) - reached
    # Those of clusters are no files of flags; test_cluster_configs.py looks at them.
    files = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*") if path.is_file()}
    assert reached == {str(path) for path in files if path.parts[0] != "cluster"}


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_file_says_how_it_is_run_and_can_be(name, monkeypatch):
    assert f"#   python train.py --flagfile=configs/{name}\n" in (CONFIGS / name).read_text()
    _read(name, monkeypatch)
    train = own_flags.read_config(TrainConfig)
    for method in (FLAGS.method, *FLAGS.baseline):
        assert METHODS[method](own_flags.read_config(METHODS[method].Config)).config is not None

    assert FLAGS.backbone in list_backbones()
    entry = get_entry(FLAGS.backbone)
    size = FLAGS.image_size or entry.image_size
    assert entry.min_size <= size <= (entry.max_size or size)
    assert FLAGS.weights is None or FLAGS.weights in entry.weights
    inputs = own_flags.read_config(InputConfig)
    assert not any(isinstance(operation, RandomOperation) for operation in parse_augment(inputs.augment_eval))
    for augment in (inputs.augment_train, inputs.augment_eval):
        # Stated, so that the file can be read without knowing what the defaults are.
        assert augment
        assert output_size(augment) == (size, size)

    stem = name.removesuffix(".flags")
    assert f"runs/{stem}" == FLAGS.output_dir
    if stem == "quickstart":
        return
    data, _, backbone = stem.partition("_")
    assert FLAGS.task == data and (FLAGS.backbone, FLAGS.weights) == BACKBONES[backbone or "vgg16"]
    assert (train.epochs, train.step_epochs) == ((20, 10) if data == "places365" else (30, 15))


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_file_of_label_maps_says_how_it_is_run_and_can_be(name, monkeypatch):
    text = (CONFIGS / name).read_text()
    assert f"#   python train.py --flagfile=configs/{name}\n" in text
    _read(name, monkeypatch)
    own_flags.read_config(TrainConfig)
    for method in (FLAGS.method, *FLAGS.baseline):
        config = METHODS[method](own_flags.read_config(METHODS[method].Config)).config
        assert "map" in config.problems and config.head == ("fcn32" if name == "voc_vgg16.flags" else "fpn")
    inputs = own_flags.read_config(InputConfig)
    # Images of any size end with one, that of the task.
    shape = output_size(inputs.augment_eval)
    assert shape == output_size(inputs.augment_train) and all(side % 32 == 0 for side in shape)
    assert not any(isinstance(operation, RandomOperation) for operation in parse_augment(inputs.augment_eval))
    assert FLAGS.weights in get_entry(FLAGS.backbone).weights
    assert FLAGS.output_dir == f"runs/{name.removesuffix('.flags')}"
    kind, _, argument = FLAGS.data.partition(":")
    assert kind == "segmentation" and re.fullmatch(r"data/[\w/]+(\?sbd=data/\w+)?", argument)
    source = next(path for path in (CONFIGS / name, *(CONFIGS / "data").iterdir()) if FLAGS.data in path.read_text())
    assert "https://" in source.read_text()


def test_the_papers_figures_stand_where_they_are_to_be_found_again():
    text = (CONFIGS / "voc_vgg16.flags").read_text()
    assert all(figure in text for figure in ("61.41", "61.08", "17 MB", "7.5 MB", "has not measured it"))


@pytest.mark.parametrize("name", RUNNABLE)
def test_data_specs_are_well_formed(name, monkeypatch):
    _read(name, monkeypatch)
    kind, _, argument = FLAGS.data.partition(":")
    assert kind in data_kinds()
    if kind == "folder":
        assert re.fullmatch(r"data/\w+", argument)
        # What the folder must hold, and where it comes from, is written where the spec is.
        source = next(path for path in (CONFIGS / "data").iterdir() if FLAGS.data in path.read_text())
        comment = " ".join(source.read_text().split("\n# "))
        assert "train/CLASS/IMAGE" in comment
        assert "test/CLASS/IMAGE" in comment
        assert "https://" in comment
    elif kind == "tfds":
        import tensorflow_datasets as tfds

        set_name, _, query = argument.partition("?")
        assert set_name in tfds.list_builders(with_community_datasets=False)
        assert set(parse_options(query, FLAGS.data)) == {"train", "test"}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_says_how_it_is_run_and_can_be(name, monkeypatch):
    assert f"#   python train.py --flagfile=configs/sequences/{name}\n" in (CONFIGS / "sequences" / name).read_text()
    _read(f"sequences/{name}", monkeypatch)
    kind = METHODS[FLAGS.method]
    own_flags.read_config(TrainConfig, kind.Config.recipe)
    tasks, inputs = parse_tasks(FLAGS.tasks), own_flags.read_config(InputConfig)
    assert len(tasks) > 1
    assert {spec.partition(":")[0] for spec in tasks.values()} <= set(data_kinds())
    entry = get_entry(FLAGS.backbone)
    size = FLAGS.image_size or entry.image_size
    assert output_size(inputs.for_size(size).augment_train) == (size, size)
    assert FLAGS.output_dir == f"runs/sequences/{name.removesuffix('.flags')}"


@pytest.mark.parametrize(
    ("one", "other"), [("paper_vgg16", "paper_reverse_vgg16"), ("sketch_art_textures", "textures_art_sketch")]
)
def test_the_reverse_of_a_sequence_has_the_same_tasks(one, other, monkeypatch):
    found = []
    for name in (one, other):
        _read(f"sequences/{name}.flags", monkeypatch)
        found.append(list(parse_tasks(FLAGS.tasks).items()))
    assert found[0] == found[1][::-1]


def test_the_papers_recipe_has_none_of_the_safeguards(monkeypatch):
    _read("cubs_resnet50.flags", monkeypatch)
    train, method = own_flags.read_config(TrainConfig), own_flags.read_config(METHODS["piggyback"].Config)
    assert (train.mask_optimizer, train.mask_lr, train.head_optimizer, train.head_lr) == ("adam", 1e-4, "adam", 1e-4)
    assert (train.schedule, train.step_decay, train.batch_size) == ("step", 0.1, 32)
    assert (train.warmup_steps, train.mask_trust, train.chance_epochs) == (0, 0, 0)
    assert train.mask_epsilon == train.adam_epsilon == 1e-8
    assert (method.mask_kind, method.mask_threshold, method.mask_init, method.mask_scale) == (
        "binary",
        5e-3,
        "constant",
        1e-2,
    )
    assert (method.mask_gradient_scaling, method.norm, method.head_dropout) == ("none", "frozen", 0.0)


def test_a_flag_behind_a_file_wins(monkeypatch):
    monkeypatch.chdir(ROOT)
    FLAGS.unparse_flags()
    FLAGS(["train.py", "--flagfile=configs/cubs_vgg16.flags", "--data=folder:/elsewhere", "--epochs=1"])
    assert (FLAGS.data, FLAGS.epochs, FLAGS.step_epochs) == ("folder:/elsewhere", 1, 15)


def test_helpshort_has_the_essentials_first_and_every_flag_but_those_of_other_methods_with_its_default():
    program = "import os, runpy, sys; os.environ['COLUMNS'] = '80'; sys.argv = ['train.py', '--helpshort']; "
    done = run_forked("-c", program + "runpy.run_path('train.py', run_name='__main__')")
    # The last is one that all commands with flags have.
    headings, printed = own_flags.HEADINGS | {"Answer": ["json"]}, done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^([A-Z].*):$", printed, re.MULTILINE) == [name for name in headings if name != own_flags.MORE]
    found = re.findall(r"^  --(?:\[no\])?(\w+): \S", printed, re.MULTILINE)
    assert found == [name for heading, names in headings.items() if heading != own_flags.MORE for name in names]
    assert found[:2] == ["data", "output_dir"]
    assert {"packnet_prune", "ewc_lambda"} <= {*headings[own_flags.MORE]}
    assert {"mask_kind", "norm", "head_dropout"} <= {*found}
    mask_lr = FLAGS["mask_lr"].default
    assert f"--mask_lr: Learning rate of the masks; 0: from the number of steps. [{mask_lr}]" in printed
    strategy = "multi_worker: all machines in TF_CONFIG. One of auto, none, mirrored, multi_worker. [auto]"
    assert strategy in " ".join(printed.split())
    assert len(printed.splitlines()) < 120
    assert max(map(len, printed.splitlines())) <= 120


def test_every_flag_stands_under_one_heading():
    listed = [name for names in own_flags.HEADINGS.values() for name in names]
    assert len(listed) == len({*listed})
    fields = {field.name for config in (RunConfig, TrainConfig, InputConfig) for field in dataclasses.fields(config)}
    fields |= {field.name for name in METHODS for field in dataclasses.fields(METHODS[name].Config)}
    assert fields <= {*listed}
