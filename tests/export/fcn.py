"""A narrow VGG with a task for each fully convolutional head."""

import types

import numpy as np

from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import TaskBank
from piggyback_tf.problems.heads.fcn import SKIPS
from tests.packs.test_segments import images_of, segments_model, segments_pack
from tests.problems.narrow_vgg import narrow_vgg

# One of them is padded.
SHAPES = {"fcn32": (64, 96), "fcn16": (64, 96), "fcn8": (40, 70)}
IMAGES = 4


def fcn_tasks():
    """Returns a base, and of a task for each head its model, pack, images and logits, by the head's kind.

    All scores weigh alike, so that a skip that is wrong is seen, and all classes are found.
    """
    backbone = narrow_vgg()
    found = types.SimpleNamespace(backbone=backbone, models={}, packs={}, images={}, logits={}, bank=TaskBank(backbone))
    for seed, (kind, shape) in enumerate(SHAPES.items()):
        model = segments_model(backbone, seed, HeadSpec(kind, 5, 0, shape))
        images = images_of(shape, IMAGES)
        head = model.get_layer("head")
        for layer, factor in SKIPS[kind]:
            kernel = head.get_layer(f"{layer}_logits").kernel
            kernel.assign(kernel / factor)
        bias = head.get_layer("logits").bias
        bias.assign(bias - model.predict(images, verbose=0).mean(axis=(0, 1, 2)))
        pack = segments_pack(model, backbone, kind, 5, f"resize({shape[0]},{shape[1]})")
        found.bank.add(pack)
        found.models[kind], found.packs[kind], found.images[kind] = model, pack, images
        found.logits[kind] = model.predict(images, verbose=0)
        assert len(np.unique(found.logits[kind].argmax(axis=-1))) == 5
    return found
