"""Pretrains the network that ships with the package, on images this script draws itself.

    python tools/pretrain_shapesnet.py --output_dir=piggyback_tf/backbones/shipped

About ten minutes on two cores. No images, fonts or weights are downloaded or read from elsewhere: 26 capital letters in
Pillow's built-in font and 18 geometric shapes are drawn with random pose, stroke, colours, blur and noise. Digits are
left out, because the quickstart learns them as a new task.
"""

import datetime
import hashlib
import math
import platform
import string
import sys
from pathlib import Path

import numpy as np
import PIL
from absl import app, flags
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from piggyback_tf.files import write_atomically

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the weights and their README.md.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the images, of the initial weights and of the order of batches.")
_IMAGES = flags.DEFINE_integer("images", 40_000, "Number of training images.", lower_bound=1)
_VALIDATION = flags.DEFINE_integer("validation_images", 4_000, "Number of validation images.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 14, "Passes over the training images.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images per step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate of Adam.", lower_bound=0.0)
_PREVIEW = flags.DEFINE_string("preview", None, "Write a sheet of training images to this PNG file and stop.")

SIZE = 32
CANVAS = 96
SHAPES = (
    "disc", "ring", "square", "triangle", "pentagon", "star", "cross", "crescent", "heart", "arrow", "arc", "line",
    "parallel lines", "corner", "zigzag", "wave", "spiral", "three dots",
)  # fmt: skip
CLASSES = (*string.ascii_uppercase, *SHAPES)


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """Returns one image of a class.

    Args:
        label: Index into `CLASSES`.
        rng: Source of everything that is random about the image.

    Returns:
        uint8 array `[SIZE, SIZE, 3]`.
    """
    stencil = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(stencil)
    width = int(rng.integers(5, 13))
    if CLASSES[label] in SHAPES:
        _draw_shape(pen, CLASSES[label], width, rng)
    else:
        font = ImageFont.load_default(size=62)
        pen.text((48, 48), CLASSES[label], fill=255, font=font, anchor="mm", stroke_width=int(rng.integers(0, 5)))
    stencil = _move(stencil, rng)
    return _paint(_soften(stencil, rng), rng)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, width: int, rng: np.random.Generator) -> None:
    filled = rng.random() < 0.5
    box = (20, 20, 76, 76)
    match shape:
        case "disc":
            pen.ellipse(box, fill=255)
        case "ring":
            pen.ellipse(box, outline=255, width=width)
        case "square":
            pen.rectangle(box, fill=255 if filled else 0, outline=255, width=width)
        case "triangle":
            _polygon(pen, _regular(3), filled, width)
        case "pentagon":
            _polygon(pen, _regular(5), filled, width)
        case "star":
            outer, inner = _regular(5, 34), _regular(5, 14, turn=0.1)
            _polygon(pen, [point for pair in zip(outer, inner, strict=True) for point in pair], filled, width // 2 + 1)
        case "cross":
            pen.line([(20, 48), (76, 48)], fill=255, width=width)
            pen.line([(48, 20), (48, 76)], fill=255, width=width)
        case "crescent":
            pen.ellipse(box, fill=255)
            shift = int(rng.integers(12, 24))
            pen.ellipse((20 + shift, 20, 76 + shift, 76), fill=0)
        case "heart":
            turns = np.linspace(0, 2 * np.pi, 40)
            x = 48 + 1.9 * 16 * np.sin(turns) ** 3
            y = 46 - 1.9 * (13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns))
            _polygon(pen, list(zip(x.tolist(), y.tolist(), strict=True)), filled, width)
        case "arrow":
            pen.line([(18, 48), (74, 48)], fill=255, width=width)
            pen.line([(54, 28), (76, 48), (54, 68)], fill=255, width=width, joint="curve")
        case "arc":
            pen.arc(box, 180, 180 + int(rng.integers(140, 230)), fill=255, width=width)
        case "line":
            pen.line([(18, 48), (78, 48)], fill=255, width=width)
        case "parallel lines":
            gap = int(rng.integers(10, 16))
            pen.line([(20, 48 - gap), (76, 48 - gap)], fill=255, width=width)
            pen.line([(20, 48 + gap), (76, 48 + gap)], fill=255, width=width)
        case "corner":
            pen.line([(24, 22), (24, 72), (74, 72)], fill=255, width=width, joint="curve")
        case "zigzag":
            points = [(16 + 13 * step, 34 if step % 2 else 62) for step in range(6)]
            pen.line(points, fill=255, width=width, joint="curve")
        case "wave":
            points = [(x, 48 + 16 * math.sin((x - 14) / 68 * 3 * math.pi)) for x in range(14, 83)]
            pen.line(points, fill=255, width=width, joint="curve")
        case "spiral":
            turns = np.linspace(0.5, 5 * np.pi, 90)
            points = [(48 + 2 * t * math.cos(t), 48 + 2 * t * math.sin(t)) for t in turns.tolist()]
            pen.line(points, fill=255, width=max(4, width // 2 + 1), joint="curve")
        case "three dots":
            for x, y in _regular(3, 22):
                radius = width / 2 + 3
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _regular(corners: int, radius: float = 32, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (corner / corners + turn) - math.pi / 2 for corner in range(corners)]
    return [(48 + radius * math.cos(angle), 48 + radius * math.sin(angle)) for angle in angles]


def _polygon(pen: ImageDraw.ImageDraw, points: list, filled: bool, width: int) -> None:
    if filled:
        pen.polygon(points, fill=255)
    else:
        pen.line([*points, points[0], points[1]], fill=255, width=width, joint="curve")


def _move(stencil: Image.Image, rng: np.random.Generator) -> Image.Image:
    # The inverse map of a random turn, shear, stretch and shift about the centre, straight to the small image with
    # twice its final resolution. Turns stay small, because many letters are another one upside down.
    angle = math.radians(rng.uniform(-20, 20))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, rng.uniform(-0.25, 0.25)], [0, 1]])
    scale = np.diag(rng.uniform(0.8, 1.3, size=2))
    inverse = np.linalg.inv(turn @ shear @ scale * (2 * SIZE / CANVAS))
    shift = np.array([CANVAS / 2] * 2) - inverse @ (np.array([SIZE] * 2) + rng.uniform(-5, 5, size=2))
    coefficients = (inverse[0, 0], inverse[0, 1], shift[0], inverse[1, 0], inverse[1, 1], shift[1])
    return stencil.transform((2 * SIZE, 2 * SIZE), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _soften(stencil: Image.Image, rng: np.random.Generator) -> np.ndarray:
    # Sharp, blurred, or from a grid of very few pixels, as small scans are.
    kind = rng.random()
    if kind < 0.4:
        few = int(rng.integers(7, 13))
        stencil = stencil.resize((few, few), Image.Resampling.BOX)
    elif kind < 0.7:
        stencil = stencil.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4.0)))
    resampling = Image.Resampling.NEAREST if rng.random() < 0.1 else Image.Resampling.BILINEAR
    ink = np.asarray(stencil.resize((SIZE, SIZE), resampling), np.float32) / 255.0
    return ink / max(float(ink.max()), 1e-3)


def _paint(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    if kind < 0.45:  # Light on dark grey.
        paper, pen = np.full(3, rng.uniform(0, 40)), np.full(3, rng.uniform(170, 255))
    elif kind < 0.65:  # Dark on light grey.
        paper, pen = np.full(3, rng.uniform(200, 255)), np.full(3, rng.uniform(0, 80))
    else:
        paper, pen = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
        while np.abs(paper - pen).sum() < 200:
            pen = rng.uniform(0, 255, 3)
        slope = rng.uniform(-25, 25, (2, 1, 3))
        ramp = np.linspace(-1, 1, SIZE)[:, None]
        paper = paper + slope[0] * ramp[:, None, :] + (slope[1] * ramp)[None, :, :]
    image = paper + ink[..., None] * (pen - paper)
    image = image + rng.normal(0, rng.uniform(0, 16), (SIZE, SIZE, 1 if kind < 0.65 else 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_set(count: int, seed: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` images and their labels, all classes equally often; image i depends on (seed, stream, i) only."""
    labels = np.arange(count) % len(CLASSES)
    images = [draw(int(label), np.random.default_rng((seed, stream, i))) for i, label in enumerate(labels)]
    return np.stack(images), labels


# --------------------------------------------------------------------------------------------------------- training


def train(seed: int):
    """Draws the images and trains the network on them.

    Returns:
        The backbone with its weights, and the validation accuracy.
    """
    import keras

    from piggyback_tf.backbones import load_backbone

    images, labels = draw_set(_IMAGES.value, seed, stream=0)
    validation = draw_set(_VALIDATION.value, seed, stream=1)
    keras.utils.set_random_seed(seed)
    backbone = load_backbone("shapesnet", weights="random", image_size=SIZE, seed=seed)
    head = keras.layers.Dense(len(CLASSES), name="head")
    model = keras.Model(backbone.model.input, head(backbone.model.output))
    steps = _EPOCHS.value * math.ceil(len(images) / _BATCH.value)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=_LEARNING_RATE.value, warmup_steps=min(500, steps // 10)
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    history = model.fit(
        images, labels, batch_size=_BATCH.value, epochs=_EPOCHS.value, validation_data=validation, verbose=2
    )
    return backbone, history.history["val_accuracy"][-1]


README = """# Weights that ship with the package

`shapesnet.weights.h5`: weights of the network `shapesnet` (`piggyback_tf/backbones/networks/shapesnet.py`), float32.

- Source: trained for this project by `tools/pretrain_shapesnet.py`. The script draws its {images:,} images itself: 26
  capital letters in Pillow's built-in font and 18 geometric shapes. It uses no other images, and no digits.
- Made on {date} with `{command}`
  and Python {python}, TensorFlow {tensorflow}, Keras {keras}, NumPy {numpy}, Pillow {pillow}.
- Validation accuracy: {accuracy:.2f} % of {validation:,} drawn images, {classes} classes.
- Licence: Apache-2.0, like the rest of the project.
- SHA-256 of the file: `{sha256}`
- Base hash of the network: `{base_hash}`
"""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if _PREVIEW.value:
        images, _ = draw_set(8 * len(CLASSES), _SEED.value, stream=0)
        sheet = images.reshape(8, len(CLASSES), SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4)
        Image.fromarray(sheet.reshape(8 * SIZE, len(CLASSES) * SIZE, 3)).save(_PREVIEW.value)
        return

    import keras
    import tensorflow as tf

    folder = Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    backbone, accuracy = train(_SEED.value)
    temporary = folder / "unfinished.weights.h5"
    backbone.model.save_weights(temporary)
    content = temporary.read_bytes()
    temporary.unlink()
    write_atomically(folder / "shapesnet.weights.h5", content)
    readme = README.format(
        images=_IMAGES.value,
        date=datetime.date.today().isoformat(),
        command=f"python tools/pretrain_shapesnet.py --seed={_SEED.value} --images={_IMAGES.value} "
        f"--epochs={_EPOCHS.value}",
        python=platform.python_version(),
        tensorflow=tf.__version__,
        keras=keras.__version__,
        numpy=np.__version__,
        pillow=PIL.__version__,
        accuracy=100 * accuracy,
        validation=_VALIDATION.value,
        classes=len(CLASSES),
        sha256=hashlib.sha256(content).hexdigest(),
        base_hash=backbone.hash,
    )
    write_atomically(folder / "README.md", readme)
    print(readme)


if __name__ == "__main__":
    sys.exit(app.run(main))
