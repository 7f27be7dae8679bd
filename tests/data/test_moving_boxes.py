"""Boxes move with their images: what is painted into a picture is compared with the box of it."""

import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.data import (
    NO_BOX,
    Renumbered,
    Subset,
    boxes_at_own_size,
    make_dataset,
    original_batches,
    parse_augment,
)
from piggyback_tf.data.augment import DeterministicOperation, apply_operations, steps_of
from piggyback_tf.data.boxes import LEAST_LEFT, BoxTable, targets_of
from piggyback_tf.data.geometry import VOID, composed, move_boxes, offset, warp_map
from tests.data.painted import Painted, paint, seen
from tests.data.test_geometry import OPERATIONS

SIZE = (48, 64)
BOX = (14.0, 17.0, 31.0, 40.0)


def step(operation, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the picture after an operation, and its geometry."""
    if isinstance(operation, DeterministicOperation):
        return operation.apply(image), operation.geometry(image.shape[:2])
    numbers = tf.constant([9, seed], tf.int64)
    moved = operation.sample(tf.constant(image), numbers).numpy()
    return moved, operation.geometry(tf.constant(image.shape[:2]), numbers).numpy()


@pytest.mark.parametrize("text", OPERATIONS)
def test_a_box_goes_where_what_is_painted_goes(text):
    (operation,) = parse_augment(text)
    image = paint([[*BOX, 1, 0]], SIZE)
    there = 0
    for seed in range(6):
        moved, geometry = step(operation, image, seed)
        (box,), (left,) = move_boxes([BOX], geometry, moved.shape[:2], SIZE)
        found, channel = seen(moved[..., 1]) if moved[..., 1].any() else None, moved[..., 1] > 127
        if left == 0:
            assert not channel.any()
            continue
        there += 1
        if text.startswith("rotate"):
            # The box is the smallest one around a rectangle that is turned: its corners are thinner than a pixel.
            rows, columns = (np.flatnonzero(channel.any(axis=axis)) for axis in (1, 0))
            assert found is not None
            assert np.allclose(box, [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=1.6)
            weights = moved[..., 1].astype(float)
            for axis, (low, high) in enumerate((box[::2], box[1::2])):
                middle = (weights.sum(axis=1 - axis) * (np.arange(moved.shape[axis]) + 0.5)).sum() / weights.sum()
                assert middle == pytest.approx((low + high) / 2, abs=0.1)
        elif left == pytest.approx(1):
            # A jitter changes how bright it is, and nothing else.
            bright = seen(channel * np.uint8(255)) if text.startswith("color") else found
            assert np.allclose(box, bright, atol=0.15), (text, seed, box, bright)
        else:
            # At the border, what was spread is lost.
            assert np.allclose(box, found, atol=0.8), (text, seed, box, found)
    assert there >= 3


def test_what_moves_whole_pixels_moves_boxes_exactly():
    boxes = np.array([[14, 17, 31, 40, 0, 0], [0, 0, 9, 12, 1, 0], [40, 50, 48, 64, 2, 0]], np.float32)
    for text in ("random_crop(33)", "random_crop(40,padding=9)", "flip", "translate(7)", "central_crop(31)", "pad(64)"):
        (operation,) = parse_augment(text)
        for seed in range(6):
            moved, geometry = step(operation, paint(boxes, SIZE), seed)
            found, left = move_boxes(boxes[:, :4], geometry, moved.shape[:2], SIZE)
            for number in range(1 if text.startswith("translate") else 3):  # It repeats what is at the edge.
                painted = moved[..., number] > 0
                assert painted.any() == (left[number] > 0)
                if painted.any():
                    rows, columns = (np.flatnonzero(painted.any(axis=axis)) for axis in (1, 0))
                    expected = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
                    assert found[number].tolist() == expected, (text, seed)
                    area = np.prod(boxes[number, 2:4] - boxes[number, :2])
                    assert left[number] == pytest.approx(painted.sum() / area)


def test_what_a_step_cut_off_does_not_come_back():
    """Neither with boxes nor with label maps, where a later step makes room again."""
    moves, sizes = np.stack([offset(20, 20), offset(-10, -10)]), [(20, 20), (40, 40)]
    labels = np.full(SIZE, 3, np.uint8)
    stepwise = warp_map(warp_map(labels, moves[0], sizes[0]), moves[1], sizes[1])
    assert (stepwise == 3).sum() == 400 and stepwise[10:30, 10:30].all() == 1
    assert np.array_equal(warp_map(labels, moves, sizes), stepwise)
    assert not np.array_equal(warp_map(labels, composed(*moves), sizes[1]), stepwise), "so this needs the steps"
    (box,), (left,) = move_boxes([[10, 25, 30, 60]], moves, sizes, SIZE)
    assert box.tolist() == [10, 15, 20, 30] and left == pytest.approx(10 * 15 / (20 * 35))


BATCHES = "random_scale(0.7,1.4)|random_crop(40,width=48)|pad(50,width=52)|flip"


def boxes_of(number: int) -> list[list[float]]:
    """Returns the boxes of a picture; the first has none, and no two of one picture are of one class."""
    all_boxes = [[*BOX, 1, 0], [2, 3, 12, 20, 0, 0], [30, 44, 47, 63, 2, 1]]
    return all_boxes[: number % 4]


@pytest.fixture(scope="module")
def pictures() -> Painted:
    sizes = [(48, 64), (48, 64), (96, 128), (96, 128), (48, 64), (96, 128)]
    return Painted([[[*[2 * e if h == 96 else e for e in b[:4]], *b[4:]] for b in boxes_of(n)]
                    for n, (h, _) in enumerate(sizes)], sizes)  # fmt: skip


def check_painted(images: np.ndarray, boxes: np.ndarray) -> int:
    """Compares the boxes of a batch with its pictures; returns how many were whole enough for that."""
    compared = 0
    for image, own in zip(images, boxes, strict=True):
        for *edges, number, _ in own[own[:, 4] != NO_BOX]:
            channel = image[..., int(number)]
            low, high = np.array(edges[:2]), np.array(edges[2:])
            if channel.any() and (high - low).min() >= 4:
                # What is spread over pixels beside is lost where the picture was cut.
                assert np.allclose(edges, seen(channel), atol=1.2), (edges, seen(channel))
                compared += 1
        absent = {0, 1, 2} - {int(number) for number in own[:, 4]}
        # A pixel at the edge may be left of what is spread.
        assert all((image[..., number] > 200).sum() <= 2 * 60 for number in absent)
    return compared


def batches(source, cache: str, **options):
    made = make_dataset(source, f"resize(48,64)|{BATCHES}", batch_size=4, training=True, cache=cache, **options)
    return [(images.numpy(), boxes.numpy()) for images, boxes in made]


def test_batches_in_every_cache_again_and_from_an_epoch_on(pictures, tmp_path):
    first = batches(pictures, "memory", epochs=2)
    assert [boxes.shape for _, boxes in first] == [(4, 3, 6), (2, 3, 6)] * 2
    assert all(boxes.dtype == np.float32 and images.shape[1:] == (50, 52, 3) for images, boxes in first)
    assert sum(check_painted(*batch) for batch in first) >= 8
    assert not np.array_equal(first[0][1], first[2][1]), "another epoch draws other numbers"
    for cache, options, expected in (
        ("memory", {"epochs": 2, "initial_epoch": 1}, first[2:]),
        ("disk", {"epochs": 2, "cache_dir": str(tmp_path)}, first),
        ("none", {"epochs": 2}, first),
    ):
        again = batches(pictures, cache, **options)
        for (images, boxes), (images_before, boxes_before) in zip(again, expected, strict=True):
            assert np.array_equal(images, images_before) and np.array_equal(boxes, boxes_before)


def test_evaluation_has_boxes_in_both_sizes(pictures):
    augment = "resize(24,32)|pad(32,width=40)"
    made = list(make_dataset(pictures, augment, batch_size=4, training=False).as_numpy_iterator())
    found = list(original_batches(pictures, augment, batch_size=4))
    place = 0
    for (images, boxes), (same_images, same_boxes, originals) in zip(made, found, strict=True):
        assert np.array_equal(images, same_images) and np.array_equal(boxes, same_boxes)
        assert check_painted(images, boxes) == (boxes[..., 4] != NO_BOX).sum() > 0
        for own, original in zip(boxes, originals, strict=True):
            assert original.size == pictures.boxes.size(place)
            assert np.array_equal(original.target, pictures.boxes.of(place))
            there = own[own[:, 4] != NO_BOX]
            # And the way back, as answers go.
            back = boxes_at_own_size(there[:, :4], parse_augment(augment), original.size)
            assert np.allclose(back, original.target[:, :4], atol=1e-4)
            assert np.array_equal(there[:, 4:], original.target[:, 4:])
            place += 1
    assert place == 6


def test_answers_beyond_what_was_prepared_are_cut_to_the_image():
    operations = parse_augment("central_crop(40)|resize(20,20)")
    back = boxes_at_own_size(np.array([[0.0, 0, 20, 20], [5, 5, 10, 30]]), operations, (48, 64))
    assert back.tolist() == [[4, 12, 44, 52], [14, 22, 24, 52]]


def test_the_rule_for_what_leaves_the_image():
    boxes = np.array(
        [
            [0, 0, 20, 20, 0, 0],  # whole
            [0, 30, 20, 50, 1, 0],  # a half is left
            [0, 36, 20, 56, 1, 0],  # a fifth: nobody could tell what it is
            [0, 40, 20, 60, 2, 0],  # gone
            [0, 0, 20, 0.9, 2, 0],  # too narrow
            [25, 25, 30, 30, 0, 1],  # a crowd
        ],
        np.float32,
    )
    targets = targets_of(boxes, offset(0, 0), np.array([40, 40]), (60, 60), 7)
    kept = [0, 1, 2, 4, 5]
    assert targets.shape == (7, 6) and targets.dtype == np.float32
    assert targets[:5, 4].tolist() == boxes[kept, 4].tolist()
    assert targets[:5, 5].tolist() == [0, 0, 1, 1, 1]
    assert targets[1, :4].tolist() == [0, 30, 20, 40] and targets[2, :4].tolist() == [0, 36, 20, 40]
    assert targets[5:].tolist() == [[0, 0, 0, 0, NO_BOX, 0]] * 2
    assert 0.2 < LEAST_LEFT < 0.5
    # Of a box that a step made small the limit is that of the result, and what several steps cut off adds up.
    (small,) = targets_of(boxes[:1], *steps_of(parse_augment("resize(2,2)"), (60, 60)), (60, 60), 1)
    assert small[5] == 1 and small[2] < 1
    (twice,) = targets_of(boxes[:1], np.stack([offset(11, 0), offset(0, 11)]), [(40, 40)] * 2, (60, 60), 1)
    assert twice[:4].tolist() == [0, 0, 9, 9] and twice[5] == 1


def test_tables():
    table = BoxTable.of_images([np.ones((n, 6)) * n for n in (2, 0, 3)], [(5, 6), (7, 8), (9, 10)])
    assert table.most == 3 and len(table) == 3 and table.counts.tolist() == [2, 0, 3]
    part = table.take(np.array([2, 1, 2]))
    assert [part.of(place)[:, 0].tolist() for place in range(3)] == [[3, 3, 3], [], [3, 3, 3]]
    assert part.most == 3 and part.sizes.tolist() == [[9, 10], [7, 8], [9, 10]]
    assert table.take(np.array([1])).of(0).shape == (0, 6)
    assert BoxTable.of_images([np.zeros((0, 6))], [(5, 6)]).most == 1


def test_parts_of_a_source_and_other_numbers_keep_boxes(pictures):
    part = Subset(pictures, [3, 1])
    assert part.has_boxes and part.boxes.most == 3 and np.array_equal(part.boxes.of(0), pictures.boxes.of(3))
    other = Renumbered(part, np.array([2, 0, 1]))
    assert other.boxes.of(0)[:, 4].tolist() == [[2, 0, 1][int(n)] for n in part.boxes.of(0)[:, 4]]
    assert other.labels.tolist() == [[1, 1, 1], [1, 0, 0]] and other.has_boxes
    assert part.known_targets() != Subset(pictures, [3, 3]).known_targets()


def test_a_picture_is_prepared_with_the_geometry_of_its_steps(pictures):
    operations = parse_augment("resize(40)|central_crop(32)|pad(40,width=44)")
    for place in range(6):
        image = apply_operations(operations, pictures.read(place))
        size = pictures.boxes.size(place)
        boxes = targets_of(pictures.boxes.of(place), *steps_of(operations, size), size, 3)
        check_painted(image[None], boxes[None])


def test_label_maps_do_not_come_back_in_batches():
    class Maps(Painted):
        has_maps, has_boxes = True, False

        def read(self, index):
            return np.concatenate([super().read(index), np.full((*SIZE, 1), 2, np.uint8)], axis=-1)

    source = Maps([[]] * 2, [SIZE] * 2)
    augment = "random_crop(20)|pad(30,width=34)"
    ((_, labels),) = make_dataset(source, augment, batch_size=2, training=True).as_numpy_iterator()
    assert (labels[:, :20, :20] == 2).all() and (labels[:, 20:] == VOID).all() and (labels[:, :, 20:] == VOID).all()
