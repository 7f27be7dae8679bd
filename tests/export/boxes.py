"""One base with tasks of classes, of segments and of boxes, for several files of tests."""

import functools

import keras
import numpy as np

from export.shared.same_boxes import strange_boxes
from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import TaskBank, TaskPack
from tests.export.helpers import picture
from tests.packs.helpers import pack_of, trained_model
from tests.packs.test_segments import images_of, segments_model, segments_pack

LABELS = ("cat", "dog", "bird")
# Of classes, and of pixels.
SHAPES, ROADS = "shapes4", HeadSpec("fpn", 5, 4, (24, 40))
SPECS = {
    "animals": HeadSpec("fcos", 3, 4, (24, 40)),
    # Of another size and head, of one class, with two bits a weight, and the edges of an image are cut off.
    "faces": HeadSpec("fcos", 1, 4, (32, 32)),
    # The head's graph is that of animals.
    "plants": HeadSpec("fcos", 3, 4, (24, 40)),
}
# With others some heads say the same everywhere.
SEEDS = {"animals": 0, "faces": 1, "plants": 4}


def base() -> Backbone:
    """Returns a network of narrow layers with feature maps of strides from 2 to 16."""
    keras.utils.set_random_seed(5)
    images = keras.Input((32, 32, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scaling")(images)
    for place in range(4):
        x = keras.layers.Conv2D(6 + place, 3, 2, padding="same", use_bias=False, name=f"conv_{place}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{place}")(x)
        x = keras.layers.ReLU(name=f"relu_{place}")(x)
    return Backbone.from_model(
        keras.Model(images, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="narrow"), image_size=32
    )


def boxes_model(backbone, seed, spec, kind="binary"):
    """Returns a task's model as after a training: its head is sure of some boxes of each class, many of which overlap.

    Logits have a deviation of 2, so that scores are far apart.
    """
    model, rng = segments_model(backbone, seed, spec, kind), np.random.default_rng(seed)
    variables = named_variables(model)
    # Noise, and what is as smooth as photos, of which features are others.
    images = [*images_of(spec.image_shape, 3), *(picture(*spec.image_shape, seed=place) for place in range(3))]
    logits = np.asarray(model(np.stack(images), training=False))[..., : spec.classes]
    kernel, bias = (variables[f"head/class_logits/{name}"] for name in ("kernel", "bias"))
    factor = 2 / logits.std(axis=(0, 1, 2))
    kernel.assign(kernel * factor)
    bias.assign(-1 - factor * (logits.mean(axis=(0, 1, 2)) - bias))
    variables["head/sides_logits/bias"].assign(rng.uniform(0, 1.5, 4))
    return model


def boxes_pack(model, backbone, task, classes, eval_augment):
    """Returns the pack of such a model."""
    return TaskPack.from_model(
        model,
        task=task,
        class_names=list(LABELS[:classes]),
        backbone=backbone,
        method="piggyback",
        eval_augment=eval_augment,
        problem="boxes",
        created="2026-01-02T03:04:05+00:00",
    )


class BoxedTasks:
    """The base and its tasks, each made when it is first asked for.

    Attributes:
        backbone: The base.
        bank: A bank, which has a task once it was asked.
    """

    NAMES = ("animals", SHAPES, "roads", "faces", "plants")

    def __init__(self):
        self.backbone = base()
        self.bank = TaskBank(self.backbone)

    @functools.cache  # noqa: B019 (there is one in a session)
    def model(self, name):
        """Returns the trained model of a task of boxes."""
        kind = "ternary" if name == "faces" else "binary"
        return boxes_model(self.backbone, SEEDS[name], SPECS[name], kind)

    @functools.cache  # noqa: B019
    def pack(self, name):
        """Returns the pack of a task."""
        if name == SHAPES:
            return pack_of(trained_model(self.backbone, classes=4, norm="task"), self.backbone, SHAPES, 4)
        if name == "roads":
            return segments_pack(segments_model(self.backbone, 7, ROADS), self.backbone, name, 5, "resize(24,40)")
        augment = "resize(40)|central_crop(32)" if name == "faces" else "resize(24,40)"
        return boxes_pack(self.model(name), self.backbone, name, SPECS[name].classes, augment)

    def packs(self, *names):
        """Returns the packs of tasks, of all if none is named."""
        return [self.pack(name) for name in names or self.NAMES]

    def bank_with(self, *names):
        """Returns the bank, which then has these tasks."""
        for name in names:
            if name not in self.bank.names:
                self.bank.add(self.pack(name))
        return self.bank

    def predict(self, images, name):
        """Returns what the bank answers."""
        return self.bank_with(name).predict(images, name)


def packed(answers, row):
    """Returns the boxes of a row of answers by name, `[n, 6]`, as `TaskBank.predict` has them."""
    columns = [np.asarray(answers[name][row], np.float32)[:, None] for name in ("classes", "scores")]
    return np.concatenate([np.asarray(answers["boxes"][row], np.float32), *columns], axis=1)


def assert_same_boxes(found, expected, pixels=0.01):
    """Checks the boxes of an image, `[n, 6]`, against those of the bank; there are some."""
    assert strange_boxes(found, expected, pixels) == (0, strange_boxes(found, expected, pixels)[1])
    assert (expected[:, 4] >= 0).any()
