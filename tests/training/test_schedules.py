"""Learning rates over the steps of a training, and that of masks."""

import numpy as np
import pytest

from piggyback_tf.masking import MaskConfig
from piggyback_tf.training import WarmupSchedule, mask_rate


def test_cosine_schedule_with_warmup():
    rate = WarmupSchedule(0.5, "cosine", total_steps=100, warmup_steps=10)
    assert float(rate(0)) == pytest.approx(0.05)
    assert float(rate(9)) == pytest.approx(0.5 * (1 + np.cos(np.pi * 0.09)) / 2)
    assert float(rate(50)) == pytest.approx(0.25)
    assert float(rate(100)) == pytest.approx(0, abs=1e-9)


def test_step_schedule_is_the_papers():
    rate = WarmupSchedule(1e-4, "step", total_steps=300, step_length=150, step_decay=0.1)
    np.testing.assert_allclose([float(rate(step)) for step in (0, 149, 150, 299)], [1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_constant_schedule_and_config_round_trip():
    rate = WarmupSchedule(0.2, "constant", total_steps=10, first_step=3)
    assert [float(rate(step)) for step in (2, 3, 7)] == pytest.approx([0, 0.2, 0.2])
    assert WarmupSchedule.from_config(rate.get_config()).get_config() == rate.get_config()


def test_the_rate_follows_from_the_way_to_the_threshold():
    assert mask_rate(MaskConfig(), 1000) == pytest.approx(1.6e-4)
    assert mask_rate(MaskConfig(scale=2e-2), 1000) == pytest.approx(4.8e-4)
    assert mask_rate(MaskConfig(scale=5e-3), 1000) > 0
