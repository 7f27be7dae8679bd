"""What a training tells, by a clock that tests set."""

import pytest

from piggyback_tf.training import progress
from piggyback_tf.training.progress import Progress, duration

LOGS = {"loss": 0.5, "error": 0.125, "val_loss": 0.25, "val_error": 0.0625}


@pytest.fixture(name="clock")
def _clock(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _run(clock, *, live=False, epochs=4, first_epoch=0, steps=6, batch=2.0):
    """Goes through a training whose first step takes a minute more, and whose validation takes three seconds."""
    told = Progress(
        "some method",
        {"mask": 3000, "head": 21},
        "a network",
        epochs=epochs,
        first_epoch=first_epoch,
        steps=steps,
        validation_steps=3,
        batch_size=8,
        live=live,
    )
    told.on_train_begin()
    for epoch in range(first_epoch, epochs):
        told.on_epoch_begin(epoch)
        for step in range(steps):
            clock.now += batch + (60 if epoch == first_epoch and step == 0 else 0)
            told.on_train_batch_end(step, {})
        clock.now += 3
        told.on_epoch_end(epoch, LOGS)


def test_the_time_is_expected_from_steps_and_left_from_epochs(clock, capsys):
    _run(clock)
    lines = capsys.readouterr().out.splitlines()
    values = "loss 0.5, error 12.50 %; validation: loss 0.25, error 6.25 %;"
    assert lines == [
        "some method trains 3,021 parameters (mask 3,000, head 21) on a network, in 4 epochs of 6 steps with up to 8 "
        "images.",
        # Known after four steps: 4 epochs of 6 steps and 3 batches at a third, without the four.
        "This takes about 48 s, at 2.00 s a step.",
        # Without the minute and the first step.
        f"  epoch 1/4: {values} 75 s, 39 s left",
        f"  epoch 2/4: {values} 15 s, 30 s left",
        f"  epoch 3/4: {values} 15 s, 15 s left",
        f"  epoch 4/4: {values} 15 s, the last",
    ]


def test_a_training_that_goes_on_counts_what_is_left(clock, capsys):
    _run(clock, epochs=10, first_epoch=8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("on a network, in the last 2 of 10 epochs of 6 steps with up to 8 images.")
    assert lines[1] == "This takes about 20 s, at 2.00 s a step."
    assert [line.partition(":")[0] for line in lines[2:]] == ["  epoch  9/10", "  epoch 10/10"]


def test_what_is_over_before_it_can_be_known_is_not_guessed(clock, capsys):
    _run(clock, epochs=1, steps=1, batch=0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("in 1 epoch of 1 step with up to 8 images.")
    assert lines[1].startswith("  epoch 1/1: ")


def test_on_a_terminal_a_line_counts_steps_and_is_written_over(clock, capsys):
    _run(clock, live=True)
    printed = capsys.readouterr().out
    parts = printed.replace("\n", "\r").split("\r")
    assert "  epoch 2/4: step 5 of 6, 2 s to its end" in [part.rstrip() for part in parts]
    # Each line covers the one before.
    assert all(len(part) >= 78 for part in parts if part)
    assert "step" not in printed.splitlines()[-1].split("\r")[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (0.97, "1 s"),
        (59.6, "60 s"),
        (150, "2 min"),
        (5900, "98 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
