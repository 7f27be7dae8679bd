"""What a run learns with follows from its flags and its methods' recipes, and is what the run records."""

import logging
from pathlib import Path

import pytest
from absl import flags

from piggyback_tf import flags as own_flags
from piggyback_tf.files import PathError
from piggyback_tf.settings import CONFIGS
from piggyback_tf.training import TrainConfig
from tests.flag_values import defined_flags


@pytest.fixture(scope="module", name="defined")
def _defined():
    with defined_flags() as parse:
        yield parse


@pytest.fixture(name="parse")
def _parse(defined):
    return lambda *arguments: defined("--output_dir=x", *arguments)


def test_paths_are_of_this_machine_and_not_empty(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parse("--data_dir=~/tfds")
    assert own_flags.given_path("data_dir") == Path("/home/me/tfds")
    for given, reason in (("", "is empty"), ("gs://x", "is a URL")):
        parse(f"--data_dir={given}")
        with pytest.raises(PathError, match=f"--data_dir={given}.* {reason}"):
            own_flags.given_path("data_dir")
    parse()
    assert own_flags.given_path("data_dir") is None


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].recipe])
def test_a_recipe_counts_where_a_flag_is_not_given_and_is_recorded(name, parse):
    recipe = CONFIGS[name].recipe
    given = {"head_lr": 1e-4, "schedule": "cosine"}  # As the flags are without.
    parse()
    by_recipe, piggyback = own_flags.settings(name), own_flags.settings("piggyback")
    assert {setting: by_recipe[setting] for setting in recipe} == dict(recipe)
    both = by_recipe.keys() & piggyback.keys() - {"method"}
    assert {setting for setting in both if by_recipe[setting] != piggyback[setting]} <= set(recipe)
    parse(*(f"--{setting}={value}" for setting, value in given.items()))
    by_flags = own_flags.settings(name)
    train = own_flags.read_config(TrainConfig, recipe)
    for setting, value in (dict(recipe) | given).items():
        assert by_flags[setting] == getattr(train, setting) == value


def test_a_run_records_in_what_its_baselines_differ(parse):
    parse()
    assert own_flags.settings_of_run("piggyback", ["classifier_only"]) == own_flags.settings("piggyback")
    found = own_flags.settings_of_run("finetune", ["piggyback", "packnet"])
    own, packnet = own_flags.settings("finetune"), own_flags.settings("packnet")
    differing = {setting: value for setting, value in packnet.items() if own.get(setting) != value}
    assert {"packnet_prune", "schedule", "weights_lr"} <= differing.keys()
    assert found["baseline_settings"]["packnet"] == differing
    assert {"mask_lr", "mask_kind"} <= found.pop("baseline_settings")["piggyback"].keys()
    assert found == own
    parse("--weights_lr=1e-4")
    assert "weights_lr" not in own_flags.settings_of_run("finetune", ["packnet"])["baseline_settings"]["packnet"]


@pytest.mark.parametrize("flag", ["--init_from=a.task.safetensors", "--sparsity_weight=0.5"])
def test_other_methods_refuse_settings_beyond_the_paper(flag, parse):
    parse(flag)
    name = flag[2:].partition("=")[0]
    with pytest.raises(flags.IllegalFlagValueError, match=f"--{name} goes with --method=piggyback.*--method=finetune"):
        own_flags.check_unused(["classifier_only", "finetune"])
    own_flags.check_unused(["finetune", "piggyback"])
    config = own_flags.read_config(CONFIGS["piggyback"])
    assert (config.init_from or str(config.sparsity_weight)) == flag.partition("=")[2]


def test_settings_of_methods_that_do_not_run_are_warned_of(parse, caplog):
    parse("--ewc_lambda=3", "--norm=task")
    with caplog.at_level(logging.WARNING, "absl"):
        own_flags.check_unused(["ewc"])
        assert not caplog.messages
        own_flags.check_unused(["packnet", "hat"])
    assert sorted(message.partition(":")[0] for message in caplog.messages) == [
        "--ewc_lambda changes nothing",
        "--norm changes nothing",
    ]
    assert all(message.endswith("not of packnet, hat.") for message in caplog.messages)


def test_rates_of_what_no_method_trains_are_warned_of(parse, caplog):
    parse("--mask_lr=1e-3", "--head_lr=1e-3", "--warmup_steps=3")
    with caplog.at_level(logging.WARNING, "absl"):
        own_flags.check_unused(["lora", "piggyback"])
        assert not caplog.messages
        own_flags.check_unused(["lora"])
    assert [message.partition(":")[0] for message in caplog.messages] == ["--mask_lr changes nothing"]


def test_help_names_the_methods_with_recipes(parse):
    parse()
    assert "agem, hat, packnet, pathnet, residual_adapters have their own optimisers" in flags.FLAGS["method"].help
