"""Boxes: which points answer for them, the loss, what is answered, and how it is judged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Original, boxes_at_own_size, parse_augment
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems import PROBLEMS, HeadStart, WayBack, add_head, network_for, read_spec
from piggyback_tf.problems.box_measures import EvaluatedBoxes
from piggyback_tf.problems.box_metric import BoxPrecisionError
from piggyback_tf.problems.detection import MOST, OVERLAP, point_loss, points_of
from piggyback_tf.problems.heads.fcos import PRIOR
from piggyback_tf.problems.points import assign, giou, point_centres

NAMES = ("cat", "dog", "bird")
SHAPE, GRID = (32, 64), (4, 8)
POINTS, STRIDE = point_centres(GRID, (8, 8)), (8.0, 8.0)


def problem():
    return PROBLEMS["boxes"](NAMES, SHAPE)


def targets(*rows, most=4):
    """Returns the target of one image, `[1, most, 6]`."""
    found = np.zeros([1, most, 6], np.float32)
    found[..., 4] = -1
    found[0, : len(rows)] = np.reshape(rows, [-1, 6])
    return found


def says(*answers):
    """Returns what a head says that finds boxes, each at one point: row, column, class, logit, and four sides."""
    outputs = np.full([1, *GRID, len(NAMES) + 4], -20, np.float32)
    for row, column, number, logit, *sides in answers:
        outputs[0, row, column, number] = logit
        strides = np.array(sides) / 8
        outputs[0, row, column, -4:] = np.where(strides < 1, np.log(strides), strides - 1)
    return outputs


# --------------------------------------------------------------------------------------------------------------- points


def assigned(*rows):
    found = assign(tf.constant(targets(*rows)), POINTS, STRIDE, len(NAMES))
    return tuple(part.numpy()[0].reshape(*GRID, -1) for part in found)


def test_points_in_a_box_and_near_its_middle_answer_for_it():
    classes, counts, boxes, positive = assigned([0, 0, 32, 64, 1, 0])
    assert positive[..., 0].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]] * 4
    assert np.array_equal(classes[..., 1], positive[..., 0]) and classes.sum() == 16 and counts.all()
    assert boxes[1, 3].tolist() == [0, 0, 32, 64]


def test_of_two_boxes_a_point_answers_for_the_smaller_one_whatever_their_order():
    large, small = [0, 0, 32, 32, 0, 0], [8, 8, 20, 20, 2, 0]
    for rows in ([large, small], [small, large]):
        classes, _, boxes, _ = assigned(*rows)
        assert classes[1, 1].tolist() == [0, 0, 1] and boxes[1, 1].tolist() == small[:4]
        assert classes[2, 2].tolist() == [1, 0, 0], "the large one keeps the points that the small one has not"


def test_a_box_between_all_points_has_the_nearest_one():
    _, _, boxes, positive = assigned([0.5, 0.5, 2, 2, 0, 0], [30, 62, 32, 64, 1, 0])
    assert positive.sum() == 2 and boxes[0, 0].tolist() == [0.5, 0.5, 2, 2] and boxes[3, 7].tolist() == [30, 62, 32, 64]


def test_an_ignored_box_is_no_target_and_its_class_is_not_asked_for_in_it():
    classes, counts, _, positive = assigned([0, 0, 16, 16, 0, 1], [0, 8, 16, 32, 1, 0])
    assert not classes[..., 0].any(), "it is no target"
    assert counts[..., 0].tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]] * 2 + [[1] * 8] * 2
    assert counts[..., 1:].all(), "other classes are asked for everywhere"
    assert positive.any()


def test_nothing_is_to_be_found_where_there_is_no_box():
    classes, counts, _, positive = assigned()
    assert not classes.any() and not positive.any() and counts.all()


# ----------------------------------------------------------------------------------------------------------------- loss


def test_generalised_intersection_over_union():
    box = np.array([0, 0, 2, 2], np.float32)
    others = np.array([[0, 0, 2, 2], [0, 1, 2, 3], [0, 2, 2, 4], [0, 4, 2, 6]], np.float32)
    # Equal; half common; side by side; as much between them as each covers, a third of the hull.
    np.testing.assert_allclose(giou(box, others), [1, 1 / 3, 0, -1 / 3], atol=1e-6)


def test_the_loss_of_an_image_is_the_same_in_any_batch_and_zero_for_what_is_right():
    wanted = targets([0, 0, 16, 16, 1, 0])
    right = says(*[(row, column, 1, 20.0, 8 * row + 4, 8 * column + 4, 12 - 8 * row, 12 - 8 * column)
                   for row in (0, 1) for column in (0, 1)])  # fmt: skip
    wrong, nothing = says((3, 3, 0, 20.0, 8, 8, 8, 8)), says()
    found = [float(point_loss(wanted, outputs, SHAPE)[0]) for outputs in (right, wrong, nothing)]
    assert found[0] == pytest.approx(0, abs=1e-5) and found[1] > found[2] > 1
    batch = point_loss(np.concatenate([wanted] * 3), np.concatenate([right, wrong, nothing]), SHAPE)
    np.testing.assert_allclose(batch, found, rtol=1e-5)
    assert float(point_loss(targets(), nothing, SHAPE)[0]) == pytest.approx(0, abs=1e-5)


def test_what_is_said_in_an_ignored_box_costs_nothing():
    ignored, empty = targets([0, 0, 16, 16, 0, 1]), targets()
    there, elsewhere = says((0, 1, 0, 5.0, 4, 4, 4, 4)), says((3, 7, 0, 5.0, 4, 4, 4, 4))
    other_class = says((0, 1, 1, 5.0, 4, 4, 4, 4))
    assert float(point_loss(ignored, there, SHAPE)[0]) == pytest.approx(0, abs=1e-5)
    for outputs in (elsewhere, other_class):
        assert float(point_loss(ignored, outputs, SHAPE)[0]) == float(point_loss(empty, outputs, SHAPE)[0]) > 1


# ----------------------------------------------------------------------------------------------------------------- head


def backbone(norm=True):
    images = x = keras.Input((32, 32, 3))
    for place in range(4):
        x = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu", name=f"conv_{place}")(x)
    return Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)), image_size=32)


def test_a_head_follows_from_its_spec_and_its_seed():
    base, spec = backbone(), HeadSpec("fcos", 3, 8, (40, 61))
    assert HeadSpec.from_json(spec.to_json()) == spec
    network, endpoints = network_for(base, spec)
    assert [each.stride for each in endpoints] == [8, 16]
    models = [add_head(network.model, spec, HeadStart(seed=seed), endpoints) for seed in (1, 1, 2)]
    assert read_spec(models[0]) == spec
    assert models[0].output_shape == (None, 8, 8, 7), "of 64x64 pixels, with those that are missing"
    weights = [np.concatenate([w.numpy().ravel() for w in model.get_layer("head").weights]) for model in models]
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])
    found = points_of(models[0](np.zeros([1, 40, 61, 3])), (40, 61))
    np.testing.assert_allclose(tf.sigmoid(found.logits), PRIOR, rtol=1e-4)
    sides = found.boxes[..., 2:] - found.boxes[..., :2]
    np.testing.assert_allclose(sides, 16, rtol=1e-4), "a stride to each side"


def test_one_class_is_enough():
    base, spec = backbone(), HeadSpec("fcos", 1, 8, (32, 32))
    network, endpoints = network_for(base, spec)
    assert add_head(network.model, spec, endpoints=endpoints).output_shape == (None, 4, 4, 5)
    with pytest.raises(ValueError, match="'fpn' needs at least 2 classes. Received: 1"):
        add_head(network.model, HeadSpec("fpn", 1, 8, (32, 32)), endpoints=endpoints)


# -------------------------------------------------------------------------------------------------------------- answers


def test_answers_are_boxes_the_surest_first_and_as_many_as_are_declared():
    logits = says((1, 1, 0, 1.0, 8, 8, 4, 4), (1, 2, 0, 3.0, 8, 16, 4, 4), (3, 7, 2, 2.0, 4, 4, 40, 40))
    answers = problem().answer(logits)
    for name, spec in problem().answers.items():
        assert answers[name].dtype == spec.dtype and tuple(answers[name].shape) == (1, *spec.shape), name
    assert answers["count"].numpy().tolist() == [3]
    assert answers["classes"].numpy()[0, :4].tolist() == [0, 2, 0, -1]
    np.testing.assert_allclose(answers["scores"][0, :4], [0.9526, 0.8808, 0.7311, 0], atol=1e-4)
    np.testing.assert_allclose(
        answers["boxes"][0, :4], [[4, 4, 16, 24], [24, 56, 32, 64], [4, 4, 16, 16], [0] * 4], atol=1e-3
    )
    packed = problem().predicted(answers).numpy()
    assert packed.shape == (1, MOST, 6) and packed.dtype == np.float32
    assert np.array_equal(packed[..., :4], answers["boxes"]) and np.array_equal(packed[..., 4], answers["classes"])
    assert np.array_equal(packed[..., 5], answers["scores"])


def chosen(boxes, scores):
    """Returns class, score and box of those that are kept of `raw_answer`, as a device does it without TensorFlow."""
    rows = []
    for number in range(scores.shape[1]):
        kept = []
        for place in np.argsort(-scores[:, number], kind="stable"):
            corner = np.maximum(boxes[place, :2], [box[:2] for *_, box in kept] or np.zeros([0, 2]))
            end = np.minimum(boxes[place, 2:], [box[2:] for *_, box in kept] or np.zeros([0, 2]))
            common = np.prod(np.maximum(end - corner, 0), axis=1)
            sizes = np.array([np.prod(box[2:] - box[:2]) for *_, box in kept])
            union = np.prod(boxes[place, 2:] - boxes[place, :2]) + sizes - common
            if scores[place, number] > 0.05 and not (common > OVERLAP * union).any():
                kept.append((number, scores[place, number], boxes[place]))
        rows += kept
    return sorted(rows, key=lambda row: -row[1])[:MOST]


def test_what_is_said_of_points_gives_the_same_boxes_outside_of_the_graph():
    logits = np.random.default_rng(0).normal(0, 2, (1, *GRID, 7)).astype(np.float32)
    raw, answers = problem().raw_answer(logits), problem().answer(logits)
    assert raw["boxes"].shape == (1, 32, 4) and raw["scores"].shape == (1, 32, 3)
    rows = chosen(raw["boxes"][0].numpy(), raw["scores"][0].numpy())
    assert 5 < len(rows) == int(answers["count"][0]) < 96
    assert [row[0] for row in rows] == answers["classes"][0, : len(rows)].numpy().tolist()
    np.testing.assert_allclose([row[1] for row in rows], answers["scores"][0, : len(rows)], rtol=1e-6)
    np.testing.assert_allclose([row[2] for row in rows], answers["boxes"][0, : len(rows)], rtol=1e-6)


def test_a_box_outside_of_the_image_is_no_answer():
    """Images of 20x64 are padded to 32x64: the last row of points is below them."""
    low, logits = PROBLEMS["boxes"](NAMES, (20, 64)), says((3, 1, 0, 3.0, 4, 8, 4, 4), (2, 4, 1, 2.0, 8, 8, 8, 8))
    answers = low.answer(logits)
    assert answers["count"].numpy().tolist() == [1] and answers["classes"].numpy()[0, 0] == 1
    np.testing.assert_allclose(answers["boxes"][0, 0], [12, 28, 20, 44], atol=1e-4)


def test_answers_to_a_file_are_in_its_own_pixels():
    square, logits = PROBLEMS["boxes"](NAMES, (32, 32)), says((1, 2, 0, 3.0, 8, 16, 4, 4))[:, :, :4]
    answers = {name: value[0] for name, value in square.answer(logits).items()}
    operations, size = parse_augment("resize(40,80)|central_crop(32)"), (100, 300)
    # The crop begins at (4, 24).
    way = WayBack(tf.constant(size), tf.constant([0.4, 80 / 300], tf.float64), tf.constant([-4.0, -24.0], tf.float64))
    found = square.file_answer(answers, way)
    expected = boxes_at_own_size(answers["boxes"][:1].numpy(), operations, size)
    np.testing.assert_allclose(expected, [[20, 105, 50, 180]], rtol=1e-4)
    np.testing.assert_allclose(found["boxes"][:1], expected, rtol=1e-5)
    assert not found["boxes"][1:].numpy().any() and int(found["count"]) == 1


# ------------------------------------------------------------------------------------------------------------- measures


def found_boxes(*rows):
    """Returns what the bank answers for one image, `[1, MOST, 6]`."""
    answers = np.zeros([1, MOST, 6], np.float32)
    answers[..., 4] = -1
    answers[0, : len(rows)] = np.reshape(rows, [-1, 6])
    return answers


def measured(*pairs):
    """Returns what is measured of images, each the rows that were found and those that are there."""
    counts = [problem().count(found_boxes(*found), targets(*there)) for found, there in pairs]
    return problem().measured(np.concatenate(counts))


def test_what_is_found_right_has_an_error_of_zero():
    one, two = [0, 0, 10, 10, 0], [5, 20, 25, 40, 2]
    perfect = measured(([[*one, 0.9]], [[*one, 0]]), ([[*two, 0.4]], [[*two, 0]]))
    assert perfect["ap_error"] == pytest.approx(0, abs=1e-9) and perfect["images"] == 2
    assert perfect["ap"] == {"cat": pytest.approx(100), "dog": None, "bird": pytest.approx(100)}
    assert perfect["mean_ap50"] == pytest.approx(100)
    assert next(iter(perfect)) == "ap_error"
    nothing = measured(([], [[*one, 0]]))
    assert nothing["ap_error"] == 100 and nothing["ap50"] == {"cat": 0.0, "dog": None, "bird": None}
    assert measured(([], []))["mean_ap50"] == 0
    with pytest.raises(ValueError, match="no images"):
        problem().measured(np.empty(0, object))


def test_precision_counts_what_is_wrong_and_how_well_boxes_fit():
    one, far = [0, 0, 10, 10, 0], [20, 20, 30, 30, 0]
    assert measured(([[*far, 0.9], [*one, 0.8]], [[*one, 0]]))["mean_ap50"] == pytest.approx(50, abs=0.01)
    # An intersection over union of 0.72: right at five of ten thresholds.
    found = measured(([[0, 0, 10, 7.2, 0, 0.9]], [[*one, 0]]))
    assert found["ap"]["cat"] == pytest.approx(50, abs=0.01) and found["ap50"]["cat"] == pytest.approx(100)


def test_boxes_to_be_ignored_are_neither_missed_nor_wrong():
    one, crowd = [0, 0, 10, 10, 0], [0, 20, 32, 60, 0]
    in_crowd = [2, 22, 12, 32, 0]
    assert measured(([[*in_crowd, 0.9], [*one, 0.8]], [[*one, 0], [*crowd, 1]]))["ap_error"] == pytest.approx(
        0, abs=1e-6
    )
    assert measured(([[*in_crowd, 0.9], [*one, 0.8]], [[*one, 0]]))["mean_ap50"] == pytest.approx(50, abs=0.01)


def test_images_that_count_twice_are_as_twice_the_images():
    one, two, far = [0, 0, 10, 10, 0], [5, 20, 25, 40, 0], [20, 44, 30, 60, 0]
    images = [([[*one, 0.9], [*far, 0.8]], [[*one, 0]]), ([[*far, 0.85]], [[*two, 0], [*one, 0]])]
    counts = np.concatenate([problem().count(found_boxes(*found), targets(*there)) for found, there in images])
    drawn = EvaluatedBoxes(counts, 3).precision(np.array([1, 3]))
    np.testing.assert_array_equal(drawn, EvaluatedBoxes(counts[[0, 1, 1, 1]], 3).precision(np.ones(4, int)))
    assert not np.array_equal(drawn, EvaluatedBoxes(counts, 3).precision(np.ones(2, int)))


def many(seed):
    """Returns answers and targets of 16 images, some right, some wrong, some to be ignored."""
    rng, answers, wanted = np.random.default_rng(seed), [], []
    for _ in range(16):
        corners = rng.uniform(0, [20, 50], (rng.integers(0, 5), 2))
        there = [
            [*corner, *(corner + rng.uniform(4, 14, 2)), rng.integers(3), rng.random() < 0.2] for corner in corners
        ]
        rows = [
            [*(row[:4] + rng.normal(0, 1, 4)), row[4], score] for row in there for score in rng.random(rng.integers(3))
        ]
        rows += [[*corner, *(corner + 8), rng.integers(3), rng.random()] for corner in rng.uniform(0, 20, (2, 2))]
        answers.append(found_boxes(*sorted(rows, key=lambda row: -row[5])))
        wanted.append(targets(*there))
    return np.concatenate(answers), np.concatenate(wanted)


def test_the_metric_of_a_training_is_the_error_that_is_measured():
    answers, wanted = many(0)
    metric = BoxPrecisionError(3, lambda found: found)
    for first in range(0, 16, 8):
        metric.update_state(wanted[first : first + 8], tf.constant(answers[first : first + 8]))
    error = problem().measured(problem().count(answers, wanted))["ap_error"]
    assert 20 < error < 95
    assert 100 * float(metric.result()) == pytest.approx(error, abs=0.05)
    metric.reset_state()
    metric.update_state(wanted[:12], tf.constant(answers[:12]), tf.repeat([1.0, 0.0], 6))
    half = problem().measured(problem().count(answers[:6], wanted[:6]))["ap_error"]
    assert 100 * float(metric.result()) == pytest.approx(half, abs=0.05), "images of no weight do not count"


def test_boxes_are_judged_in_the_pixels_of_the_source():
    operations = parse_augment("resize(32,64)")
    original = Original((64, 64), np.array([[20, 10, 60, 30, 1, 0]], np.float32))
    answers = found_boxes([10, 10, 30, 30, 1, 0.9])
    (counted,) = problem().count_originals(answers, targets(), [original], operations)
    np.testing.assert_allclose(counted.found, [[20, 10, 60, 30, 1, 0.9]])
    assert counted.right.tolist() == [1] and counted.truth is original.target


def test_logits_are_judged_as_what_is_answered():
    logits, wanted = says((1, 2, 0, 3.0, 8, 16, 4, 4)), targets([4, 4, 16, 24, 0, 0])
    bank = problem().predicted(problem().answer(logits)).numpy()
    both = [problem().measured(problem().count(answers, wanted)) for answers in (logits, bank)]
    assert both[0] == both[1] and both[0]["ap_error"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_judged_is_refused():
    for answers in (np.zeros([1, 4, 8, 9]), np.zeros([1, 5, 7]), np.zeros([3])):
        with pytest.raises(ValueError, match=r"must be boxes \[B, n, 6\], or \[B, h, w, 7\]"):
            problem().count(answers, targets())
    with pytest.raises(ValueError, match="classes below 3, and nothing that is NaN"):
        problem().count(found_boxes([0, 0, 1, 1, 3, 0.5]), targets())
    with pytest.raises(ValueError, match="nothing that is NaN"):
        problem().count(found_boxes([0, 0, np.nan, 1, 1, 0.5]), targets())
    with pytest.raises(ValueError, match="NaN"):
        problem().count(np.full([1, 4, 8, 7], np.nan, np.float32), targets())
    with pytest.raises(ValueError, match="classes below 3. Received: 7"):
        problem().count(found_boxes(), targets([0, 0, 1, 1, 7, 0]))
