"""What several machines cannot do together is refused before anything is loaded or waited for."""

import pytest

from tests.run_command import run_command
from tests.training.workers import free_ports, tf_config

TRAIN = ("train", "--data=digits", "--backbone=shapesnet")
CONFIG = tf_config([1234, 1235], 0)


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        (["--strategy=multi_worker"], "", "--strategy=multi_worker needs TF_CONFIG, which is not set. Example: "),
        (["--strategy=multi_worker", "--method=den"], CONFIG, ": it has not been tried. These do:"),
        (["--strategy=multi_worker", "--method=lora"], CONFIG, "Method lora does not train with"),
        (["--strategy=multi_worker", "--norm=task", "--norm_statistics=task"], CONFIG, "statistics of its own images"),
        (["--strategy=multi_worker", "--batch_size=33"], CONFIG, "must be a multiple of the 2 workers. Received: 33."),
        (["--mask_gradients=bfloat16"], CONFIG, "--mask_gradients=bfloat16 goes with --strategy=multi_worker: one"),
        (["--worker_timeout=3"], CONFIG, "--worker_timeout goes with --strategy=multi_worker."),
    ],
)
def test_what_does_not_go_together_is_a_sentence(flags, config, message, tmp_path):
    status, _, said, loaded = run_command(*TRAIN, *flags, f"--output_dir={tmp_path}/run", TF_CONFIG=config)
    assert (status, loaded) == (2, False)
    assert message in said


def test_a_worker_that_does_not_come_is_named(tmp_path):
    """At once, without TensorFlow; the folder of the run is as it was."""
    first, second = free_ports(2)
    flags = ("--strategy=multi_worker", "--worker_timeout=1", f"--output_dir={tmp_path}/run")
    status, _, said, loaded = run_command(*TRAIN, *flags, TF_CONFIG=tf_config([first, second], 0))
    assert (status, loaded) == (2, False)
    assert f"Worker 1 (localhost:{second}) did not come within 1 seconds." in said
    status, _, said, _ = run_command(*TRAIN, *flags, TF_CONFIG=tf_config([first, second], 1))
    assert status == 2
    assert f"The chief (localhost:{first}) was not reached within 1 seconds" in said
