"""The operations of augmentation strings."""

import numpy as np

from piggyback_tf.data.augment import (
    CropOperation,
    DeterministicOperation,
    Operation,
    RandomOperation,
    Size,
    register_augmentation,
)
from piggyback_tf.data.geometry import offset, scaling
from piggyback_tf.data.images import MAX_PIXELS, MAX_SIDE, DataError, central_crop, central_offset, resize, resized_size


def _pixels(name: str, value: int | float, least: int = 1) -> int:
    if not isinstance(value, int) or not least <= value <= MAX_SIDE:
        raise DataError(f"{name} is a whole number of pixels of {least} to {MAX_SIDE}, not {value}.")
    return value


def _check_fits(operation: Operation, crop: Size, size: Size | None) -> None:
    if size is not None and (size[0] < crop[0] or size[1] < crop[1]):
        raise DataError(
            f"{operation.source or type(operation).__name__} does not fit an image of height {size[0]} "
            f"and width {size[1]}; put a resize before it."
        )


@register_augmentation("resize")
class Resize(DeterministicOperation):
    """Resizes with antialiased bilinear interpolation.

    With one argument the shorter side gets this length and the aspect is kept; with two the image
    is warped to this height and width.
    """

    only_scales = True

    def __init__(self, size, width=None):
        self._height = _pixels("size", size)
        self._width = None if width is None else _pixels("width", width)

    def output_size(self, size: Size | None) -> Size | None:
        if self._width is not None:
            return self._height, self._width
        if size is None:
            return None
        height, width = resized_size(*size, self._height)
        if height * width > MAX_PIXELS:
            raise DataError(
                f"{self.source or 'resize'} would make an image of {height}x{width} pixels from one of "
                f"{size[0]}x{size[1]}; at most {MAX_PIXELS} pixels are possible."
            )
        return height, width

    def apply(self, image: np.ndarray) -> np.ndarray:
        return resize(image, *self.output_size(image.shape[:2]))

    def geometry(self, size: Size) -> np.ndarray:
        return scaling(size, self.output_size(size))


@register_augmentation("central_crop")
class CentralCrop(DeterministicOperation):
    """Cuts a square out of the middle."""

    only_scales = True

    def __init__(self, size):
        self._size = _pixels("size", size)

    def output_size(self, size: Size | None) -> Size | None:
        _check_fits(self, (self._size, self._size), size)
        return self._size, self._size

    def apply(self, image: np.ndarray) -> np.ndarray:
        self.output_size(image.shape[:2])
        return central_crop(image, self._size)

    def geometry(self, size: Size) -> np.ndarray:
        return offset(*central_offset(size, self._size))


@register_augmentation("pad")
class Pad(DeterministicOperation):
    """Adds black pixels on the right and below up to `size`, or to `size` in height and `width`: of no class."""

    def __init__(self, size, width=None):
        height = _pixels("size", size)
        self._size = height, height if width is None else _pixels("width", width)

    def output_size(self, size: Size | None) -> Size | None:
        if size is not None and (size[0] > self._size[0] or size[1] > self._size[1]):
            raise DataError(
                f"{self.source or 'pad'} has no room for an image of height {size[0]} and width {size[1]}; name larger "
                "numbers, or put a resize before it."
            )
        return self._size

    def apply(self, image: np.ndarray) -> np.ndarray:
        height, width = self.output_size(image.shape[:2])
        return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))

    def geometry(self, size: Size) -> np.ndarray:
        self.output_size(size)
        return offset(0, 0)


@register_augmentation("random_scale")
class RandomScale(RandomOperation):
    """Resizes both sides by one factor, uniform between `smallest` and `largest`; a crop after it makes sizes equal."""

    def __init__(self, smallest, largest):
        if not 0 < smallest <= largest <= 10:
            raise DataError(f"smallest and largest lie above 0 and are at most 10, but are {smallest} and {largest}.")
        self._smallest, self._largest = float(smallest), float(largest)

    def output_size(self, size: Size | None) -> Size | None:
        return None

    def sample(self, image, seed):
        import tensorflow as tf

        return _to_uint8(tf.image.resize(image, self._size(tf.shape(image)[:2], seed), antialias=True))

    def geometry(self, size, seed):
        import tensorflow as tf

        factors = tf.cast(size, tf.float32) / tf.cast(self._size(size, seed), tf.float32)
        return tf.stack([[factors[0], 0.0, 0.0], [0.0, factors[1], 0.0]])

    def _size(self, size, seed):
        """Returns the height and width of the result."""
        import tensorflow as tf

        factor = self._smallest + (self._largest - self._smallest) * tf.random.stateless_uniform([], seed)
        return tf.maximum(tf.cast(tf.round(factor * tf.cast(size, tf.float32)), tf.int32), 1)


@register_augmentation("random_crop")
class RandomCrop(CropOperation):
    """Cuts out a rectangle at a random place, after adding `padding` black pixels on every side.

    It is a square of `size`, or `size` high and `width` wide. An image that a `random_scale` made too small gets black
    pixels on the right and below.
    """

    def __init__(self, size, padding=0, width=None):
        height = _pixels("size", size)
        self._size = height, height if width is None else _pixels("width", width)
        self._padding = _pixels("padding", padding, least=0)

    def output_size(self, size: Size | None) -> Size | None:
        padded = size and (size[0] + 2 * self._padding, size[1] + 2 * self._padding)
        _check_fits(self, self._size, padded)
        return self._size

    def window(self, size, seed):
        import tensorflow as tf

        start = tf.stack(self._place(size, seed)) - self._padding
        first, last = (tf.clip_by_value(place, 0, size) for place in (start, start + self._size))
        return tf.concat([first, last - first], 0)

    def sample_window(self, part, size, seed):
        import tensorflow as tf

        # What of the crop lies above and on the left of the image; it may lie there as a whole.
        before = tf.clip_by_value(self._padding - tf.stack(self._place(size, seed)), 0, self._size)
        after = self._size - before - tf.shape(part)[:2]
        return tf.ensure_shape(tf.pad(part, tf.pad(tf.stack([before, after], 1), [[0, 1], [0, 0]])), [*self._size, 3])

    def geometry(self, size, seed):
        top, left = self._place(size, seed)
        return _offset_geometry(top - self._padding, left - self._padding)

    def _place(self, size, seed):
        """Returns where the crop begins in the padded image."""
        import tensorflow as tf

        uniform = tf.random.stateless_uniform([2], seed)
        largest = tf.maximum(size + 2 * self._padding - self._size, 0)
        return _offset(uniform[0], largest[0]), _offset(uniform[1], largest[1])


@register_augmentation("random_area_crop")
class RandomAreaCrop(CropOperation):
    """Cuts out a rectangle of random area and aspect and resizes it to a square ("Inception" crop).

    The area is uniform between `min_area` and 1 of the image's, the logarithm of the aspect uniform
    between those of 3/4 and 4/3. The first of ten draws that fits is taken; if none does, the
    largest central rectangle whose aspect is allowed.
    """

    only_scales = True

    def __init__(self, size, min_area=0.08):
        self._size = _pixels("size", size)
        if not 0 < min_area <= 1:
            raise DataError(f"min_area lies above 0 and is at most 1, but is {min_area}.")
        self._min_area = float(min_area)

    def output_size(self, size: Size | None) -> Size | None:
        return self._size, self._size

    def window(self, size, seed):
        import tensorflow as tf

        return tf.stack(self._place(size, seed))

    def sample_window(self, part, size, seed):
        import tensorflow as tf

        del size, seed
        return _to_uint8(tf.image.resize(part, [self._size, self._size], antialias=True))

    def geometry(self, size, seed):
        import tensorflow as tf

        top, left, height, width = (tf.cast(number, tf.float32) for number in self._place(size, seed))
        return tf.stack([[height / self._size, 0.0, top], [0.0, width / self._size, left]])

    def _place(self, size, seed):
        """Returns where the crop begins, and its height and width."""
        import tensorflow as tf

        uniform = tf.random.stateless_uniform([22], seed)
        height, width = size[0], size[1]
        image_height, image_width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        area = (self._min_area + uniform[:10] * (1 - self._min_area)) * image_height * image_width
        limit = float(np.log(4 / 3))
        aspect = tf.exp((2 * uniform[10:20] - 1) * limit)
        # The last candidate always fits.
        whole = tf.clip_by_value(image_width / image_height, 3 / 4, 4 / 3)
        last_height = tf.minimum(image_height, image_width / whole)
        crop_height = tf.concat([tf.sqrt(area / aspect), [last_height]], 0)
        crop_width = tf.concat([tf.sqrt(area * aspect), [last_height * whole]], 0)
        crop_height = tf.maximum(tf.cast(tf.round(crop_height), tf.int32), 1)
        crop_width = tf.maximum(tf.cast(tf.round(crop_width), tf.int32), 1)
        fits = (crop_height <= height) & (crop_width <= width)
        chosen = tf.argmax(tf.cast(fits, tf.int32))
        crop_height, crop_width = crop_height[chosen], crop_width[chosen]
        central = chosen == 10
        top = tf.where(central, (height - crop_height) // 2, _offset(uniform[20], height - crop_height))
        left = tf.where(central, (width - crop_width) // 2, _offset(uniform[21], width - crop_width))
        return top, left, crop_height, crop_width


@register_augmentation("flip")
class Flip(RandomOperation):
    """Mirrors left and right, every second image."""

    def __init__(self):
        pass

    def output_size(self, size: Size | None) -> Size | None:
        return size

    def sample(self, image, seed):
        import tensorflow as tf

        return tf.cond(_mirrored(seed), lambda: tf.reverse(image, [1]), lambda: image)

    def geometry(self, size, seed):
        import tensorflow as tf

        width = tf.cast(size[1], tf.float32)
        across = tf.where(_mirrored(seed), [0.0, -1.0, width], [0.0, 1.0, 0.0])
        return tf.stack([[1.0, 0.0, 0.0], across])


@register_augmentation("rotate")
class Rotate(RandomOperation):
    """Rotates by up to `degrees` to either side; the corners are filled with the nearest edge pixels."""

    def __init__(self, degrees):
        if not 0 < degrees <= 180:
            raise DataError(f"degrees lies above 0 and is at most 180, but is {degrees}.")
        self._radians = float(np.deg2rad(degrees))

    def output_size(self, size: Size | None) -> Size | None:
        return size

    def _turn(self, seed):
        """Returns the cosine and sine of the angle."""
        import tensorflow as tf

        angle = (2 * tf.random.stateless_uniform([], seed) - 1) * self._radians
        return tf.cos(angle), tf.sin(angle)

    def geometry(self, size, seed):
        import tensorflow as tf

        cos, sin = self._turn(seed)
        y, x = tf.cast(size[0], tf.float32) / 2, tf.cast(size[1], tf.float32) / 2
        return tf.stack([[cos, sin, y - cos * y - sin * x], [-sin, cos, x - cos * x + sin * y]])

    def sample(self, image, seed):
        import tensorflow as tf

        cos, sin = self._turn(seed)
        shape = tf.shape(image)
        middle_y, middle_x = (tf.cast(shape[0], tf.float32) - 1) / 2, (tf.cast(shape[1], tf.float32) - 1) / 2
        # Maps every pixel of the result to the place in the image that it comes from.
        x = [cos, -sin, middle_x - cos * middle_x + sin * middle_y]
        y = [sin, cos, middle_y - sin * middle_x - cos * middle_y]
        rotated = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(image, tf.float32)[None],
            transforms=tf.stack([*x, *y, 0.0, 0.0])[None],
            output_shape=shape[:2],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )
        return _to_uint8(rotated[0])


@register_augmentation("translate")
class Translate(RandomOperation):
    """Moves by up to `pixels` in both directions; the border is filled with the nearest edge pixels."""

    def __init__(self, pixels):
        self._pixels = _pixels("pixels", pixels)

    def output_size(self, size: Size | None) -> Size | None:
        return size

    def sample(self, image, seed):
        import tensorflow as tf

        for axis, moved in enumerate(self._moved(seed)):
            length = tf.shape(image)[axis]
            image = tf.gather(image, tf.clip_by_value(tf.range(length) + moved, 0, length - 1), axis=axis)
        return image

    def geometry(self, size, seed):
        del size
        return _offset_geometry(*self._moved(seed))

    def _moved(self, seed):
        """Returns by how many pixels the image moves up, and to the left."""
        import tensorflow as tf

        uniform = tf.random.stateless_uniform([2], seed)
        return [_offset(uniform[axis], 2 * self._pixels) - self._pixels for axis in (0, 1)]


@register_augmentation("color_jitter")
class ColorJitter(RandomOperation):
    """Multiplies brightness, contrast and saturation by factors between `1 - strength` and `1 + strength`."""

    def __init__(self, strength):
        if not 0 < strength <= 1:
            raise DataError(f"strength lies above 0 and is at most 1, but is {strength}.")
        self._strength = float(strength)

    def output_size(self, size: Size | None) -> Size | None:
        return size

    def sample(self, image, seed):
        import tensorflow as tf

        brightness, contrast, saturation = tf.unstack(
            1 + (2 * tf.random.stateless_uniform([3], seed) - 1) * self._strength
        )
        image = tf.clip_by_value(tf.cast(image, tf.float32) * brightness, 0, 255)
        grey = tf.image.rgb_to_grayscale(image)
        mean = tf.reduce_mean(grey)
        image = tf.clip_by_value(mean + (image - mean) * contrast, 0, 255)
        grey = tf.image.rgb_to_grayscale(image)
        return _to_uint8(grey + (image - grey) * saturation)

    def geometry(self, size, seed):
        del size, seed
        return _offset_geometry(0, 0)


def _mirrored(seed):
    import tensorflow as tf

    return tf.random.stateless_uniform([], seed) < 0.5


def _offset_geometry(top, left):
    """Returns the geometry of a crop that begins at a place, as a tensor."""
    import tensorflow as tf

    return tf.stack([[1.0, 0.0, tf.cast(top, tf.float32)], [0.0, 1.0, tf.cast(left, tf.float32)]])


def _offset(uniform, largest):
    """Returns a whole number of 0 to `largest`, each as likely, from a number in [0, 1)."""
    import tensorflow as tf

    return tf.minimum(tf.cast(uniform * (tf.cast(largest, tf.float32) + 1), tf.int32), largest)


def _to_uint8(image):
    import tensorflow as tf

    return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)
