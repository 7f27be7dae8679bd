"""One base with tasks of classes and of segments, for several files of tests."""

import types

import numpy as np

from piggyback_tf.backbones import load_backbone
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import TaskBank
from tests.packs.helpers import pack_of, trained_model
from tests.packs.test_segments import segments_model, segments_pack

SPECS = {
    "roads": HeadSpec("fpn", 5, 8, (40, 56)),
    # Of another head, and with two bits a weight.
    "fields": HeadSpec("fpn", 3, 4, (40, 56)),
    # Of another size, and what is at the edges of an image is cut off.
    "lakes": HeadSpec("fpn", 5, 8, (48, 48)),
    # The head's graph is that of roads.
    "paths": HeadSpec("fpn", 5, 8, (40, 56)),
}


def base_and_tasks():
    """Returns a base, the models of its tasks of segments, the packs of all, and a bank with them."""
    backbone = load_backbone("shapesnet", image_size=32)
    models, packs = {}, []
    for seed, (name, spec) in enumerate(SPECS.items()):
        models[name] = segments_model(backbone, seed, spec, "ternary" if name == "fields" else "binary")
        augment = "resize(60)|central_crop(48)" if name == "lakes" else "resize(40,56)"
        packs.append(segments_pack(models[name], backbone, name, spec.classes, augment))
    for place, classes in ((1, 4), (3, 2)):
        name = f"shapes{classes}"
        packs.insert(place, pack_of(trained_model(backbone, classes=classes, norm="task"), backbone, name, classes))
    bank = TaskBank(backbone)
    for pack in packs:
        bank.add(pack)
    return types.SimpleNamespace(backbone=backbone, models=models, packs=packs, bank=bank)


def assert_same_labels(found, logits):
    """Checks label maps `[N, H, W]` against the logits of the trained model.

    At most 0.01 % of the pixels differ, and these are of two classes that are equal but for rounding.
    """
    differs = found != logits.argmax(axis=-1)
    assert found.shape == logits.shape[:-1] and differs.mean() <= 1e-4
    best = np.sort(logits[differs], axis=-1)
    assert (best[:, -1] - best[:, -2] < 1e-3).all()
