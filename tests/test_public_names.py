"""The names that `import piggyback_tf` gives, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

import piggyback_tf as pb


def test_importing_does_not_load_tensorflow():
    program = (
        "import sys, piggyback_tf as pb; pb.__version__; pb.TaskPack; pb.PackError; pb.DataError; pb.WeightsError; "
        "pb.list_backbones(); dir(pb); import piggyback_tf.evaluation; "
        "print([name for name in ('tensorflow', 'keras', 'matplotlib') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


@pytest.mark.parametrize("name", pb.__all__)
def test_every_public_name_is_there(name):
    assert getattr(pb, name) is not None
    assert name in dir(pb)


def test_names_are_those_of_the_folders():
    from piggyback_tf import masking, packs

    assert pb.mask is masking.mask
    assert pb.read_masks is masking.read_masks
    assert pb.TaskBank is packs.TaskBank
    assert issubclass(pb.PackError, ValueError)


def test_a_wrong_name_is_an_ordinary_error():
    for module in (pb, sys.modules["piggyback_tf.packs"]):
        with pytest.raises(AttributeError, match="has no attribute 'TaskPak'"):
            module.TaskPak  # noqa: B018
        assert not hasattr(module, "nothing")
    with pytest.raises(ImportError, match="cannot import name 'TaskPak'"):
        from piggyback_tf import TaskPak  # noqa: F401
