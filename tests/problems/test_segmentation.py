"""Segmentation: its loss, its measures, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.data import Original, parse_augment
from piggyback_tf.data.geometry import VOID
from piggyback_tf.problems.segmentation import MeanIoUError, PixelCrossEntropy, Segmentation

CLASSES = ("road", "tree", "sky", "nowhere")


def made(seed: int = 0, images: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Returns label maps with some pixels of no class, of all but the last class, and logits that are often right."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (images, 10, 14)).astype(np.uint8)
    logits = random.normal(size=(*labels.shape, 4)).astype(np.float32)
    logits[..., 3] = -9
    np.put_along_axis(logits, labels[..., None], np.take_along_axis(logits, labels[..., None], -1) + 1.5, -1)
    labels[random.random(labels.shape) < 0.2] = VOID
    return labels, logits


def test_the_error_is_that_of_keras():
    labels, logits = made()
    problem = Segmentation(CLASSES, (10, 14))
    metric = keras.metrics.MeanIoU(4, ignore_class=VOID, sparse_y_pred=True)
    metric.update_state(labels.astype(np.int32), logits.argmax(-1))
    counts = np.concatenate([problem.count(logits[:4], labels[:4]), problem.count(logits[4:], labels[4:])])
    assert counts.shape == (6, 4, 4) and counts.sum() == (labels != VOID).sum()
    assert problem.measured(counts)["mean_iou_error"] == pytest.approx(100 - 100 * float(metric.result()), abs=1e-4)
    # Of an epoch, as the training has it.
    own = MeanIoUError(4)
    for part in (slice(0, 4), slice(4, 6)):
        own.update_state(labels[part], logits[part])
    assert 100 * float(own.result()) == pytest.approx(problem.measured(counts)["mean_iou_error"], abs=1e-4)


def test_what_keras_drops_in_silence_is_refused():
    labels, logits = made()
    problem, strange = Segmentation(CLASSES, (10, 14)), labels.copy()
    strange[0, 0, :4] = 4
    metric = keras.metrics.MeanIoU(4, ignore_class=VOID, sparse_y_pred=True)
    with pytest.raises(ValueError, match="below 4, or 255. Received: 4"):
        problem.count(logits, strange)
    try:
        metric.update_state(strange.astype(np.int32), logits.argmax(-1))
    except tf.errors.InvalidArgumentError:
        pass  # Of some versions it is said there, too.
    else:
        assert float(metric.total_cm.numpy().sum()) < (strange != VOID).sum()
    answers = logits.argmax(-1).astype(np.uint8)
    answers[1, 2, 3] = 7
    with pytest.raises(ValueError, match="answers must hold classes below 4. Received: 0 to 7"):
        problem.count(answers, labels)


def test_measures_of_each_class():
    labels, logits = made()
    problem = Segmentation(CLASSES, (10, 14))
    measures = problem.measured(problem.count(logits, labels))
    known, answers = labels != VOID, logits.argmax(-1)
    for number, name in enumerate(CLASSES[:3]):
        truth, found = (labels == number) & known, (answers == number) & known
        assert measures["iou"][name] == pytest.approx(100 * (truth & found).sum() / (truth | found).sum())
    # It is in no image and no answer: no part of the mean.
    assert measures["iou"]["nowhere"] is None
    assert measures["pixel_accuracy"] == pytest.approx(100 * (answers == labels)[known].mean())


def test_the_loss_of_an_image_is_the_mean_over_its_pixels_that_count():
    labels, logits = made()
    labels[2] = VOID
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = []
    for truth, scores in zip(labels, log_probabilities, strict=True):
        known = truth != VOID
        expected.append(
            -np.take_along_axis(scores[known], truth[known][:, None].astype(int), 1).mean() if known.any() else 0
        )
    assert PixelCrossEntropy("none")(labels, logits).numpy() == pytest.approx(expected, rel=1e-5)
    assert float(PixelCrossEntropy()(labels, logits)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_pixels_of_no_class_have_no_gradient():
    labels, logits = made()
    with tf.GradientTape() as tape:
        logits = tf.Variable(logits)
        loss = PixelCrossEntropy()(labels, logits)
    gradient = tape.gradient(loss, logits).numpy()
    assert not gradient[labels == VOID].any() and np.abs(gradient[labels != VOID]).sum(-1).all()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda labels, logits: (labels, logits[..., :3]), r"must be (\[B, H, W, 4\]|label maps)"),
        (lambda labels, logits: (labels[:, :9], logits), r"must be (\[B, H, W, 4\]|label maps)"),
        (lambda labels, logits: (np.where(labels == 2, 4, labels), logits), "below 4, or 255. Received: 4"),
        (lambda labels, logits: (labels, np.where(logits > 2, np.nan, logits)), "must not be NaN"),
    ],
)
def test_what_cannot_be_judged_is_refused(spoil, sentence):
    labels, logits = spoil(*made())
    with pytest.raises(ValueError, match=sentence):
        Segmentation(CLASSES, (10, 14)).count(logits, labels)


def test_originals_are_judged_at_their_own_size():
    labels, logits = made()
    problem, operations = Segmentation(CLASSES, (10, 14)), parse_augment("resize(10,14)")
    maps = [np.kron(truth, np.ones((3, 2), np.uint8)) for truth in labels]
    originals = [Original(truth.shape, truth) for truth in maps]
    counts = problem.count_originals(logits, labels, originals, operations)
    assert np.array_equal(counts, 6 * problem.count(logits, labels))
    # A label that is gone when the image is small counts.
    maps[0][0, 0] = (maps[0][0, 0] + 1) % 3 if maps[0][0, 0] != VOID else 0
    assert not np.array_equal(problem.count_originals(logits, labels, originals, operations)[0], counts[0])


def test_the_interval_holds_the_error_and_shrinks_with_images():
    widths = []
    for images in (6, 60):
        labels, logits = made(images=images)
        problem = Segmentation(CLASSES, (10, 14))
        found = problem.measured(problem.count(logits, labels))
        assert found["mean_iou_error_low"] < found["mean_iou_error"] < found["mean_iou_error_high"]
        assert found["images"] == images
        widths.append(found["mean_iou_error_high"] - found["mean_iou_error_low"])
    assert widths[1] < 0.5 * widths[0]
    with pytest.raises(ValueError, match="no images"):
        Segmentation(CLASSES, (10, 14)).measured(np.zeros((0, 4, 4), np.int32))
