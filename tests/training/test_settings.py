"""What runs record of their settings, and that a record says the same when methods and settings are added."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest

from piggyback_tf import flags as own_flags
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.sequences import run_sequence
from piggyback_tf.settings import CONFIGS, RETIRED, NormConfig, RunConfig, option, settings_of
from piggyback_tf.settings import run as settings_module
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, check_settings, complete, complete_run
from tests.evaluation.run_folders import cells_of, table_of, write_single
from tests.flag_values import defined_flags
from tests.methods.toy import toy_backbone, toy_settings, toy_tasks
from tests.packs.helpers import make_pack

# Records of the first version, which held every flag of every method, and the flags they were made with.
FLAT = json.loads((Path(__file__).parent / "flat_records.json").read_text())
COMMANDS = {
    # A flag that is given holds for baselines too, whatever their recipe has.
    "single": ["--data=digits", "--baseline=finetune", "--baseline=packnet", "--mask_lr=4e-3", "--head_dropout=0.3"]
    + ["--warmup_steps=100"],
    "sequence": ["--tasks=a=digits,b=digits", "--method=hat", "--hat_mean=2"],
    "classifier_only": ["--data=digits", "--method=classifier_only"],
}
# What all runs did before there was a choice, where the default is otherwise now.
BEFORE = {"mask_trust": 0.0, "head_init": "glorot"}


@pytest.fixture(name="record")
def _record():
    """Returns a function from flags to what a run with them records."""

    def record(*arguments, backbone="shapesnet"):
        with defined_flags() as parse:
            parse("--output_dir=x", f"--backbone={backbone}", *arguments)
            flags = own_flags.flags.FLAGS
            return json.loads(json.dumps(own_flags.settings_of_run(flags.method, flags.baseline)))

    return record


def _as_recorded(name):
    """Returns flags that give every setting the value of a record, so that changed defaults do not matter."""
    given = {setting.partition("=")[0][2:] for setting in COMMANDS[name]} | {"method", "backbone", "baseline", "tasks"}
    by_recipe = set().union(*FLAT[name].get("baseline_settings", {}).values())
    return COMMANDS[name] + [
        f"--{setting}={value}"
        for setting, value in (FLAT[name] | BEFORE).items()
        if setting not in given | by_recipe | {"baseline_settings", "data"} and value not in (None, [])
    ]


@pytest.fixture(name="grow")
def _grow(monkeypatch):
    """Returns a function that adds a method with settings of its own, and a setting to everything that has some."""

    @dataclasses.dataclass(frozen=True)
    class SamplerConfig(NormConfig):
        sampler_rate: float = option(0.5, "A rate.")
        sampler_kind: str = option("even", "A kind.")

    def grown(config, **fields):
        fields = [(name, type(field.default), field) for name, field in fields.items()]
        return dataclasses.make_dataclass(f"Grown{config.__name__}", fields, bases=(config,), frozen=True)

    def grow():
        piggyback = grown(CONFIGS["piggyback"], sampled=option(False, "Whether.", before=False))
        monkeypatch.setitem(CONFIGS._entries, "sampler", SamplerConfig)
        monkeypatch.setitem(CONFIGS._entries, "piggyback", piggyback)
        grown_configs = {
            "RunConfig": grown(RunConfig, problem=option("classes", "What.", before="classes")),
            "TrainConfig": grown(TrainConfig, head_start=option("zeros", "Where heads start.", before="random")),
            "InputConfig": grown(InputConfig, input_order=option(0, "Which.", before=0)),
        }
        for name, config in grown_configs.items():
            monkeypatch.setattr(settings_module, name, config)
            monkeypatch.setattr(own_flags, name, config)

    return grow


def _of_folder(folder, settings):
    """Returns a folder in which something was trained with settings."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


# ----------------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("method", METHODS.names())
def test_settings_of_the_training_the_input_and_the_own_method_are_recorded(method, record):
    given = ["--mask_lr=1e-3", "--weights_lr=1e-3", "--adapter_lr=1e-3", "--ewc_lambda=3"]
    names = record("--data=digits", f"--method={method}", *given).keys()
    assert {"data", "backbone", "seed", "mixed_precision", "epochs", "head_lr", "augment_train"} <= names
    fields = dataclasses.fields(METHODS[method].Config)
    own = {field.name for field in fields if field.metadata["before"] != field.default}
    foreign = {field.name for name in METHODS for field in dataclasses.fields(METHODS[name].Config)} - own
    assert own <= names
    assert not foreign & names
    for group in ("mask", "weights", "adapter"):
        assert (f"{group}_lr" in names) == (group in CONFIGS[method].trains)
    assert ("mask_trust" in names) == ("mask" in CONFIGS[method].trains)
    assert ("warmup_steps" in names) == (CONFIGS[method].trains != ("head",))
    assert not {"chance_epochs", "cache", "cache_dir", "output_dir", "task_agnostic", "verbose"} & names


def test_settings_that_are_added_say_what_was_before():
    """Without, records and digests of packs change, and old runs are taken for what is the default now."""
    methods = (
        "classifier_only dan ewc finetune finetune_sequential hat joint lwf packnet piggyback pnn residual_adapters"
    )
    configs = [RunConfig, TrainConfig, InputConfig, *(METHODS[name].Config for name in methods.split())]
    fields = {field.name: field.metadata for config in configs for field in dataclasses.fields(config)}
    added = {name for name in fields.keys() - FLAT["single"].keys() if fields[name]["recorded"]}
    assert {name for name in added if fields[name]["before"] is dataclasses.MISSING} == set()


def test_before_is_of_the_type_of_the_default():
    with pytest.raises(TypeError, match="`before` must be a float, as the default is. Received: 0."):
        option(0.5, "A rate.", before=0)


# ------------------------------------------------------------------------------------------------- records of all flags


@pytest.mark.parametrize("name", FLAT)
def test_runs_that_recorded_all_flags_go_on(name, record, tmp_path):
    now = record(*_as_recorded(name))
    assert len(now) < len(FLAT[name])
    folder = _of_folder(tmp_path, FLAT[name])
    check_settings(folder, now, complete=complete_run)
    check_settings(_of_folder(tmp_path, now), FLAT[name], complete=complete_run)
    for foreign in ("lwf_weight", "pnn_scale"):
        check_settings(_of_folder(tmp_path, FLAT[name] | {foreign: 99.0}), now, complete=complete_run)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("single", ["head_init", "head_lr", "mask_trust"]),
        ("sequence", ["head_init", "warmup_steps"]),
        ("classifier_only", ["head_init", "head_lr"]),
    ],
)
def test_runs_that_recorded_other_defaults_are_refused_by_name(name, changed, record, tmp_path):
    folder = _of_folder(tmp_path, FLAT[name])
    with pytest.raises(TrainingError) as refused:
        check_settings(folder, record(*COMMANDS[name]), complete=complete_run)
    assert re.findall(r"--(\w+) was", str(refused.value)) == changed
    assert '--head_init was "glorot" and is "auto" now' in str(refused.value)


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("single", "--mask_lr=1e-3", "settings: --mask_lr was 0.004 and is 0.001 now. Use"),
        ("single", "--seed=3", "settings: --seed was 0 and is 3 now. Use"),
        (
            "single",
            "--packnet_prune=0.5",
            "settings: --packnet_prune of packnet was 0.75 and is 0.5 now. Use",
        ),
        (
            "single",
            "--weights_lr=0.5",
            "settings: --weights_lr of finetune was 0.0001 and is 0.5 now; "
            "--weights_lr of packnet was 0.001 and is 0.5 now. Use",
        ),
        ("single", "--baseline=dan", r'--baseline was \["finetune", "packnet"\] and is .*, "dan"\] now'),
        ("sequence", "--hat_mean=1", "settings: --hat_mean was 2.0 and is 1.0 now. Use"),
        ("classifier_only", "--head_lr=1", "settings: --head_lr was 0.001 and is 1.0 now. Use"),
        ("classifier_only", "--method=piggyback", '--method was "classifier_only" and is "piggyback" now'),
    ],
)
def test_other_settings_are_refused_by_name(name, flag, message, record, tmp_path):
    """Whether the record is of the first version or of this one."""
    for number, earlier in enumerate((FLAT[name], record(*_as_recorded(name)))):
        folder = _of_folder(tmp_path / str(number), earlier)
        with pytest.raises(TrainingError, match=message):
            check_settings(folder, record(*_as_recorded(name), flag), complete=complete_run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "is damaged"),
        ({"method": "dan", "baseline": 3}, "is damaged"),
        ({"method": "dan", "baseline": ["hat"], "baseline_settings": 3}, "is damaged"),
        ({"editor": 1}, "--editor was 1 and is not set now"),
        ({"method": "hat", "of_a_later_version": 1}, "--of_a_later_version was 1 and is not set now"),
    ],
)
def test_what_is_no_record_is_refused_in_a_sentence(settings, message, record, tmp_path):
    with pytest.raises(TrainingError, match=message):
        check_settings(_of_folder(tmp_path, settings), record("--data=digits"), complete=complete_run)


# ---------------------------------------------------------------------------------------- what is added changes nothing


def test_a_new_method_and_new_settings_change_no_record_and_no_digest(record, grow):
    commands = [[*_as_recorded(name), "--head_dropout=0.3"] for name in FLAT]
    before = [record(*command) for command in commands]
    digests = [make_pack(settings=settings).content_digest() for settings in before]
    grow()
    after = [record(*command, "--head_start=random") for command in commands]
    assert after == before
    assert [make_pack(settings=settings).content_digest() for settings in after] == digests
    assert record("--data=digits", "--method=sampler")["sampler_rate"] == 0.5


def test_the_packs_of_a_sequence_are_as_before(record, grow, tmp_path):
    """The whole way: trained, written, read."""
    task, digests = {"spots": toy_tasks()["spots"]}, []
    for name in ("before", "after"):
        arguments = ["--data=digits", *(["--head_start=random"] if name == "after" else [])]
        settings = dataclasses.replace(toy_settings("piggyback", epochs=1), settings=record(*arguments))
        (tmp_path / name).mkdir()
        run_sequence(tmp_path / name, toy_backbone(), task, settings)
        digests.append(TaskPack.load(tmp_path / name / "1_spots" / "spots.task.safetensors").content_digest())
        grow()
    assert digests[0] == digests[1]


def test_how_images_are_read_is_recorded_where_pixels_are_other_ones(record, tmp_path):
    exact, fast = record("--data=folder:x"), record("--data=folder:x", "--input=fast")
    assert exact == record("--data=folder:x", "--input=exact") and "input" not in exact
    assert fast == exact | {"input": "fast"}
    assert make_pack(settings=fast).content_digest() != make_pack(settings=exact).content_digest()
    for before, after, was, now in ((exact, fast, "exact", "fast"), (fast, exact, "fast", "exact")):
        folder = _of_folder(tmp_path / was, before)
        check_settings(folder, dict(before), complete=complete_run)
        with pytest.raises(TrainingError, match=f'--input was "{was}" and is "{now}" now'):
            check_settings(folder, after, complete=complete_run)


@pytest.mark.parametrize("name", FLAT)
def test_old_folders_go_on_where_settings_were_added(name, record, grow, tmp_path):
    command = _as_recorded(name)
    flat, own = _of_folder(tmp_path / "flat", FLAT[name]), _of_folder(tmp_path / "own", record(*command))
    grow()
    for folder in (flat, own):
        check_settings(folder, record(*command, "--head_start=random"), complete=complete_run)
        # What is the default now is not what was before there was a choice.
        with pytest.raises(TrainingError, match='settings: --head_start was "random" and is "zeros" now. Use'):
            check_settings(folder, record(*command), complete=complete_run)
        with pytest.raises(TrainingError, match='settings: --problem was "classes" and is "boxes" now. Use'):
            check_settings(folder, record(*command, "--head_start=random", "--problem=boxes"), complete=complete_run)


def test_a_baseline_whose_recipe_has_a_new_setting_is_read_as_it_was_recorded(record, grow, tmp_path, monkeypatch):
    grow()
    recipe = CONFIGS["packnet"].recipe
    for main, baseline in (("packnet", "piggyback"), ("piggyback", "packnet")):
        for packnet, piggyback in (("zeros", "random"), ("random", "zeros"), ("random", "random")):
            monkeypatch.setattr(CONFIGS["packnet"], "recipe", {**recipe, "head_start": packnet})
            monkeypatch.setattr(CONFIGS["piggyback"], "recipe", {"head_start": piggyback})
            found = record("--data=digits", f"--method={main}", f"--baseline={baseline}")
            assert complete(found, "packnet")["head_start"] == packnet
            assert complete(found, "piggyback")["head_start"] == piggyback
            check_settings(_of_folder(tmp_path, found), dict(found), complete=complete_run)


def test_tables_are_as_they_were(record, grow, tmp_path):
    """A run that recorded all flags, one that recorded its own, and one after more was added are three seeds."""
    command = ["--mask_init=constant", "--data=cubs"]

    def write(name, seed, settings):
        settings = {key: value for key, value in settings.items() if key not in ("seed", "task", "method", "baseline")}
        results = {"classifier_only": 40.0 + seed, "piggyback": 20.0 + seed}
        return write_single(tmp_path / name, "cubs", results, seed=seed, **settings)

    flat = FLAT["single"] | {"epochs": 30, "hat_mean": 3.0, "backbone": "vgg16"}
    del flat["baseline_settings"]
    own = {name: value for name, value in (flat | BEFORE).items() if name in settings_of("piggyback")}
    flags = [f"--{name}={value}" for name, value in own.items() if value not in (None, [])]
    flags = [flag for flag in flags if not flag.startswith(("--data", "--method", "--backbone", "--baseline"))]
    runs = [write("flat", 0, flat), write("own", 1, record(*command, *flags, backbone="vgg16"))]
    expected = {"classifier_only/": "40.50 ± 0.71", "piggyback/": "20.50 ± 0.71"}
    assert {name: row["cubs %"] for name, row in cells_of(table_of("survey", *runs)).items()} == expected
    grow()
    assert {name: row["cubs %"] for name, row in cells_of(table_of("survey", *runs)).items()} == expected
    runs.append(write("later", 2, record(*command, *flags, "--head_start=random", backbone="vgg16")))
    expected = {"classifier_only/": "41.00 ± 1.00", "piggyback/": "21.00 ± 1.00"}
    assert {name: row["cubs %"] for name, row in cells_of(table_of("survey", *runs)).items()} == expected
    runs.append(write("other", 2, record(*command, *flags, backbone="vgg16")))
    assert {name: row["cubs %"] for name, row in cells_of(table_of("survey", *runs[:2], runs[-1])).items()} == {
        "classifier_only (head_start=random)/": "40.50 ± 0.71",
        "classifier_only (head_start=zeros)/": "42.00",
        "piggyback (head_start=random)/": "20.50 ± 0.71",
        "piggyback (head_start=zeros)/": "22.00",
    }


# -------------------------------------------------------------------------------------------------------------- retired


def test_a_retired_flag_warns_and_is_in_no_record(record, monkeypatch, tmp_path, caplog):
    before = record("--data=digits")
    old = _of_folder(tmp_path, before | {"old_rate": 0.1, "old_switch": True})
    monkeypatch.setitem(RETIRED, "old_rate", (float, "Set --mask_lr instead."))
    monkeypatch.setitem(RETIRED, "old_switch", (bool, "It is always on."))
    given = ["--old_rate=3", "--noold_switch"]
    assert record("--data=digits", *given) == before
    check_settings(old, before, complete=complete_run)
    with defined_flags() as parse, caplog.at_level(logging.WARNING, "absl"):
        parse("--output_dir=x")
        own_flags.check_unused(["piggyback"])
        assert not caplog.messages
        parse("--output_dir=x", "--old_rate", "3", "--noold_switch")
        own_flags.check_unused(["piggyback"])
    assert caplog.messages == [
        "--old_rate does nothing any more. Set --mask_lr instead.",
        "--old_switch does nothing any more. It is always on.",
    ]


def test_of_a_method_that_is_not_known_every_setting_stays():
    record = {"method": "strange", "strange_rate": 1, "epochs": 3, "ewc_lambda": 2.0}
    found = complete(record, "strange")
    assert record.items() <= found.items()
    assert found["schedule"] == "cosine" and "mask_lr" in found
    assert complete_run(record) == record
