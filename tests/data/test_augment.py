import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.data import (
    AUGMENTATIONS,
    DataError,
    augmentation_names,
    output_size,
    parse_augment,
    register_augmentation,
)
from piggyback_tf.data.augment import (
    DeterministicOperation,
    apply_operations,
    check_final_size,
    leading_deterministic,
)


def apply(spec: str, image: np.ndarray) -> np.ndarray:
    (operation,) = parse_augment(spec)
    return operation.apply(image)


def sample(spec: str, image: np.ndarray, count: int = 200) -> list[np.ndarray]:
    (operation,) = parse_augment(spec)
    draw = tf.function(lambda seed: operation.sample(tf.constant(image), seed))
    return [draw(tf.constant([5, i], tf.int64)).numpy() for i in range(count)]


def test_parsing():
    assert parse_augment("") == [] and parse_augment("  ") == []
    assert [op.source for op in parse_augment(" resize(256) | random_crop(224, padding=4)|flip ")] == [
        "resize(256)",
        "random_crop(224, padding=4)",
        "flip",
    ]
    assert leading_deterministic(parse_augment("resize(8,9)|central_crop(4)|flip()|resize(8)")) == 2


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            "flop",
            "Unknown augmentation 'flop'. Did you mean 'flip'.*color_jitter.*asked for in the augmentation 'flop'",
        ),
        ("resize(256", "Cannot read 'resize\\(256' in the augmentation.*Write operations as"),
        ("resize(256)|", "Cannot read ''"),
        ("resize(256)||flip", "Cannot read ''"),
        ("resize 256", "Cannot read 'resize 256'"),
        ("os.system(1)", "Cannot read"),
        pytest.param("resize(" + "-" * 100_000 + "1)", r"^Cannot read 'resize\(-{50}\.\.\.-{56}1\)' in", id="nested"),
        ("resize(open(1))", "Cannot read"),
        ("resize(__import__)", "Cannot read"),
        ("1", "Cannot read '1'"),
        (
            "resize",
            "'resize' in the augmentation 'resize': missing a required argument: 'size'. It is written resize\\(s",
        ),
        ("resize(1, 2, 3)", "too many positional arguments"),
        ("resize(side=3)", "Wrong arguments"),
        ("flip(2)", "too many positional arguments"),
        ("resize('a')", "Argument size of .* must be a number"),
        ("resize(True)", "must be a number"),
        ("resize(60000)", "size is a whole number of pixels of 1 to 8192, not 60000"),
        ("resize(0)", "size is a whole number of pixels of 1 to 8192, not 0"),
        ("resize(2.5)", "not 2.5"),
        ("random_crop(8, padding=-1)", "padding is a whole number of pixels of 0 to 8192, not -1"),
        ("random_area_crop(8, 0)", "min_area lies above 0"),
        ("random_area_crop(8, 1.5)", "min_area"),
        ("rotate(0)", "degrees lies above 0"),
        ("translate(0)", "pixels"),
        ("color_jitter(2)", "strength"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(DataError, match=message):
        parse_augment(spec)


def test_names_for_help():
    names = augmentation_names()
    assert (
        "random_crop(size, padding=0, width=None)" in names
        and "flip()" in names
        and len(names) == len(list(AUGMENTATIONS))
    )


@pytest.mark.parametrize(
    "spec, size, expected",
    [
        ("", None, None),
        ("", (8, 8), (8, 8)),
        ("resize(256)", None, None),
        ("resize(256)", (300, 400), (256, 341)),
        ("resize(256)|random_crop(224)|flip", None, (224, 224)),
        ("resize(96,64)|flip|rotate(5)|translate(1)|color_jitter(0.1)", None, (96, 64)),
        ("random_area_crop(96)|flip", None, (96, 96)),
        ("flip|central_crop(5)", None, (5, 5)),
        ("random_crop(10,padding=1)", (8, 8), (10, 10)),
    ],
)
def test_output_size(spec, size, expected):
    assert output_size(spec, size) == expected


@pytest.mark.parametrize("spec", ["central_crop(9)", "random_crop(9)", "resize(4)|random_crop(7, padding=1)"])
def test_crop_larger_than_the_image(spec):
    with pytest.raises(DataError, match="crop.* does not fit an image of height . and width ."):
        output_size(spec, (8, 8))


def test_a_resize_that_would_not_fit_into_memory():
    (resize,) = parse_augment("resize(256)")
    with pytest.raises(DataError, match="an image of 256x16640000 pixels from one of 1x65000; at most 67108864"):
        resize.apply(np.zeros((1, 65000, 3), np.uint8))


def test_resize_keeps_the_aspect_and_antialiases(picture):
    assert apply("resize(12)", picture(24, 32)).shape == (12, 16, 3)
    assert apply("resize(12)", picture(33, 24)).shape == (16, 12, 3)
    assert apply("resize(10,7)", picture(24, 32)).shape == (10, 7, 3)
    assert np.array_equal(apply("resize(24)", picture(24, 32)), picture(24, 32))
    # Single-pixel stripes become even grey; without antialiasing they would stay stripes.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(apply("resize(16)", stripes)[:, 1:-1].astype(int) - 127.5).max() < 20
    tensorflow = tf.image.resize(picture(48, 64), [12, 16], antialias=True).numpy()
    assert np.abs(apply("resize(12)", picture(48, 64)) - tensorflow).max() <= 1


def test_central_crop(picture):
    assert np.array_equal(apply("central_crop(8)", picture(24, 32)), picture(24, 32)[8:16, 12:20])


def test_random_crop_reaches_every_place_and_no_other():
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=-1)
    corners = {int(crop[0, 0, 0]) for crop in sample("random_crop(4)", image)}
    assert corners == {row * 6 + column for row in range(3) for column in range(3)}
    crop = sample("random_crop(4)", image, 1)[0][..., 0]
    top, left = divmod(int(crop[0, 0]), 6)
    assert np.array_equal(crop, image[top : top + 4, left : left + 4, 0])


def test_random_crop_with_padding():
    crops = sample("random_crop(6, padding=2)", np.full((6, 6, 3), 9, np.uint8))
    black = {tuple((crop[..., 0] == 0).all(axis=axis).sum() for axis in (0, 1)) for crop in crops}
    assert black == {(columns, rows) for columns in range(3) for rows in range(3)}


def test_flip_mirrors_half_of_the_images(picture):
    image = picture(8, 8)
    flipped = [np.array_equal(result, image[:, ::-1]) for result in sample("flip", image)]
    kept = [np.array_equal(result, image) for result in sample("flip", image)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 70 < sum(flipped) < 130


def test_translate(picture):
    image = picture(9, 9)
    moves = set()
    for result in sample("translate(1)", image):
        for y in (-1, 0, 1):
            for x in (-1, 0, 1):
                rows, columns = (np.clip(np.arange(9) + move, 0, 8) for move in (y, x))
                if np.array_equal(result, image[rows][:, columns]):
                    moves.add((y, x))
                    break
            else:
                continue
            break
        else:
            raise AssertionError("not a translation by at most one pixel")
    assert len(moves) == 9


def test_rotate():
    image = np.zeros((33, 33, 3), np.uint8)
    image[:17] = 200
    results = sample("rotate(30)", image, 50)
    angles = []
    for result in results:
        # The edge between light and dark turns about the centre.
        edge = (result[..., 0] > 100).sum(axis=0)
        angles.append(np.rad2deg(np.arctan(np.polyfit(np.arange(33) - 16, edge, 1)[0])))
        assert abs(edge[16] - 17) <= 1 and set(np.unique(result[0, 14:19])) == {200}
    assert max(np.abs(angles)) < 31 and min(angles) < -20 and max(angles) > 20
    flat = np.full((20, 30, 3), 77, np.uint8)
    assert all((result == 77).all() for result in sample("rotate(180)", flat, 20))


def test_random_area_crop():
    y, x = np.mgrid[:120, :160]
    image = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    areas, aspects, lefts = [], [], []
    for result in sample("random_area_crop(40, min_area=0.25)", image, 300):
        assert result.shape == (40, 40, 3)
        values = result.astype(float)
        # The picture's colours are its coordinates, so that the middle of the crop tells its scale.
        width = np.diff(values[20, [10, 30], 0])[0] * 2
        height = np.diff(values[[10, 30], 20, 1])[0] * 2
        areas.append(width * height / (120 * 160))
        aspects.append(width / height)
        lefts.append(values[20, 0, 0])
    assert 0.2 < min(areas) < 0.35 and 0.8 < max(areas) < 1.05 and 0.45 < np.mean(areas) < 0.7
    assert 0.7 < min(aspects) < 0.82 and 1.22 < max(aspects) < 1.43
    assert min(lefts) < 5 and max(lefts) > 50


def test_random_area_crop_of_a_shape_that_no_draw_fits():
    y, x = np.mgrid[:8, :240]
    image = np.stack([x, y, x], axis=-1).astype(np.uint8)
    for result in sample("random_area_crop(8, min_area=0.9)", image, 20):
        # The central rectangle of aspect 4/3: 8 high, 11 wide.
        assert abs(result[..., 0].mean() - 119.5) < 1 and np.ptp(result[..., 0].astype(int)) <= 11


def test_color_jitter(picture):
    results = sample("color_jitter(0.4)", picture(16, 16))
    brightness = [result.mean() / picture(16, 16).mean() for result in results]
    assert 0.5 < min(brightness) < 0.8 and 1.15 < max(brightness) < 1.5
    grey = np.full((4, 4, 3), 100, np.uint8)
    for result in sample("color_jitter(0.4)", grey):
        assert np.ptp(result.astype(int)) <= 1 and 59 <= result.mean() <= 141


@pytest.mark.parametrize(
    "spec", ["random_crop(6)", "random_area_crop(6)", "flip", "rotate(20)", "translate(2)", "color_jitter(0.5)"]
)
def test_random_operations_depend_on_nothing_but_the_seed(spec, picture):
    first, second = sample(spec, picture(16, 16), 10), sample(spec, picture(16, 16), 10)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({result.tobytes() for result in first}) > 1
    assert all(result.dtype == np.uint8 for result in first)


def test_registering():
    @register_augmentation("invert_for_test")
    class Invert(DeterministicOperation):
        def __init__(self):
            pass

        def output_size(self, size):
            return size

        def apply(self, image):
            return 255 - image

    try:
        assert apply("invert_for_test", np.zeros((2, 2, 3), np.uint8)).min() == 255
        with pytest.raises(ValueError, match="'invert_for_test' is registered already"):
            register_augmentation("invert_for_test")(Invert)
    finally:
        del AUGMENTATIONS._entries["invert_for_test"]


def test_operations_one_after_another():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = apply("central_crop(8)", apply("resize(10)", image))
    np.testing.assert_array_equal(apply_operations(parse_augment("resize(10)|central_crop(8)"), image), expected)
    assert apply_operations([], image) is image
    with pytest.raises(DataError, match="central_crop"):
        apply_operations(parse_augment("resize(10)|central_crop(12)"), image)


def test_images_of_another_size_than_a_base_takes():
    for size in (None, (8, 8), tf.TensorShape([8, 8])):
        check_final_size("resize(8,8)", size, (8, 8))
    for size in ((8, 9), (9, 9), tf.TensorShape([9, 8])):
        found = f"gives images of {size[0]}x{size[1]} pixels, and the base takes 8x8."
        with pytest.raises(DataError, match=f"^The augmentation 'flip' {found}$"):
            check_final_size("flip", size, (8, 8))
