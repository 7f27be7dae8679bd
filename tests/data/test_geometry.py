"""Label maps move with their images: each operation's `geometry` says where the pixels come from."""

import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.data import AUGMENTATIONS, DataError, at_own_size, parse_augment
from piggyback_tf.data.augment import DeterministicOperation, check_moves
from piggyback_tf.data.geometry import VOID, composed, offset, scaling, warp_map

# One of each operation, and of each way to write it.
OPERATIONS = (
    "resize(36)",
    "resize(30,52)",
    "central_crop(31)",
    "pad(60,width=70)",
    "random_scale(0.6,1.7)",
    "random_crop(33)",
    "random_crop(40,padding=6)",
    "random_crop(31,width=44)",
    "random_area_crop(32)",
    "flip",
    "rotate(25)",
    "translate(7)",
    "color_jitter(0.3)",
)


def coordinates(height: int = 48, width: int = 64) -> np.ndarray:
    """Returns an image that holds in each pixel where it is, four to a row and to a column: slow enough to resize."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([4 * y, 3 * x, np.zeros_like(y)], axis=-1).astype(np.uint8)


def applied(operation, image: np.ndarray, labels: np.ndarray, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image and the label map after an operation."""
    if isinstance(operation, DeterministicOperation):
        moved, geometry = operation.apply(image), operation.geometry(image.shape[:2])
    else:
        moved = operation.sample(tf.constant(image), tf.constant(seed, tf.int64)).numpy()
        geometry = operation.geometry(tf.constant(image.shape[:2]), tf.constant(seed, tf.int64)).numpy()
    return moved, warp_map(labels, geometry, moved.shape[:2])


def test_every_operation_is_here():
    assert {text.partition("(")[0] for text in OPERATIONS} == set(AUGMENTATIONS.names())


@pytest.mark.parametrize("text", [text for text in OPERATIONS if not text.startswith("color")])
def test_a_label_map_goes_where_its_image_goes(text):
    (operation,) = parse_augment(text)
    image = coordinates()
    for seed in range(8):
        rows, columns = (applied(operation, image, image[..., axis], (3, seed))[1] for axis in (0, 1))
        moved, inside = applied(operation, image, np.zeros(image.shape[:2], np.uint8), (3, seed))
        inside = inside != VOID
        assert inside.mean() > 0.5
        # At the border an antialiased pixel is made of fewer others. A row more is worth 4, a column 3.
        inner = np.zeros_like(inside)
        inner[2:-2, 2:-2] = inside[2:-2, 2:-2]
        for channel, (labels, step) in enumerate(((rows, 4), (columns, 3))):
            apart = np.abs(moved[..., channel].astype(int) - labels)[inner]
            # Labels are those of a pixel near by, up to a whole one where an image is enlarged and smoothed.
            assert apart.mean() <= 0.51 * step, (text, seed)
            assert apart.max() <= 1.2 * step, (text, seed)
            # Without a shift to one side.
            signed = (moved[..., channel].astype(int) - labels)[inner]
            assert abs(signed.mean()) <= 0.2 * step, (text, seed, signed.mean())


@pytest.mark.parametrize("text", ["random_crop(33)", "flip", "translate(7)", "central_crop(31)", "pad(64)"])
def test_what_moves_whole_pixels_moves_labels_exactly(text):
    (operation,) = parse_augment(text)
    image = coordinates()
    for seed in range(8):
        moved, labels = applied(operation, image, image[..., 1], (5, seed))
        known = labels != VOID
        assert np.array_equal(moved[..., 1][known], labels[known])


def test_colours_do_not_move_labels():
    (operation,) = parse_augment("color_jitter(0.5)")
    labels = coordinates()[..., 0]
    assert np.array_equal(applied(operation, coordinates(), labels, (0, 0))[1], labels)


def test_what_comes_from_outside_is_void():
    (operation,) = parse_augment("random_crop(60,padding=10)")
    image = coordinates() + 1  # No pixel of it is black.
    for seed in range(4):
        moved, labels = applied(operation, image, np.full(image.shape[:2], 7, np.uint8), (1, seed))
        assert np.array_equal(labels == VOID, moved[..., 2] == 0)
        assert set(np.unique(labels)) <= {7, VOID}


def test_an_image_that_became_too_small_is_padded_below_and_on_the_right():
    (operation,) = parse_augment("random_crop(60,width=80)")
    image = coordinates() + 1
    moved, labels = applied(operation, image, image[..., 1], (1, 1))
    assert moved.shape == (60, 80, 3)
    assert np.array_equal(moved[:48, :64], image) and not moved[48:].any() and not moved[:, 64:].any()
    assert np.array_equal(labels[:48, :64], image[..., 1]) and (labels[48:] == VOID).all()
    with pytest.raises(DataError, match="does not fit an image of height 48"):
        operation.output_size((48, 64))


def test_two_steps_are_one():
    labels = np.random.default_rng(0).integers(0, 9, (40, 50)).astype(np.uint8)
    first, second = offset(4, 7), scaling((30, 36), (15, 12))
    stepwise = warp_map(warp_map(labels, first, (30, 36)), second, (15, 12))
    assert np.array_equal(warp_map(labels, composed(first, second), (15, 12)), stepwise)
    assert np.array_equal(warp_map(labels, np.stack([first, second]), [(30, 36), (15, 12)]), stepwise)


def test_an_operation_without_a_geometry_is_named_early():
    class Blur(DeterministicOperation):
        source = "blur(2)"

        def output_size(self, size):
            return size

        def apply(self, image):
            return image

    check_moves(parse_augment("resize(32,32)|flip|color_jitter(0.1)"))
    with pytest.raises(DataError, match=r"blur\(2\) has no `geometry`"):
        check_moves([Blur()])


def test_padding_belongs_to_no_class_and_answers_are_cropped():
    (operation,) = parse_augment("pad(50, 70)")
    image = coordinates()
    moved, labels = applied(operation, image, image[..., 1], (0, 0))
    assert moved.shape == (50, 70, 3) and np.array_equal(moved[:48, :64], image)
    assert not moved[48:].any() and not moved[:, 64:].any()
    assert (labels[48:] == VOID).all() and (labels[:, 64:] == VOID).all()
    assert np.array_equal(labels[:48, :64], image[..., 1])
    assert np.array_equal(at_own_size(labels, [operation], (48, 64)), image[..., 1])
    with pytest.raises(DataError, match="has no room for an image of height 51 and width 64"):
        operation.apply(np.zeros((51, 64, 3), np.uint8))
