"""Does a head learn on few features? The default rate of the head, in proportion to 1 / features, beside 1e-3 for all.

    PIGGYBACK_REALDATA=... python benchmarks/head_rate.py

Two small networks of this script, with 32 and 256 features, that learn 43 road signs at 64 px first, and the network
that ships with the package, with 96. Each learns handwritten digits, ten textures and sketches with the default
settings, 10 epochs of 32. Errors are on validation images. The rule was not found on these: it is that of 1,280
features, with which it changes nothing. Interrupted, it goes on. Writes results/head_rate.json, a row a run.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from common import Results, markdown, parser, realdata

METHODS = ("classifier_only", "piggyback", "finetune")
SETS = ("digits", "dtd10", "pacs_sketch")
NETWORKS = {"own32": 32, "shapesnet": 96, "own256": 256}
RATES = {"1e-3": 1e-3, "default": 0.0}


def pretrain(features: int, path: Path) -> None:
    """Writes a network of five convolutions that has learned road signs, without its head."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    for filters, stride in ((16, 2), (32, 1), (32, 2), (64, 2), (features, 1)):
        x = keras.layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(43)(x))
    images = keras.utils.image_dataset_from_directory(
        realdata() / "gtsrb43" / "train", image_size=(64, 64), batch_size=32, seed=0, verbose=False
    )
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, epochs=10, shuffle=False, verbose=0)
    keras.Model(inputs, x).save(path)


def train(network: str, name: str, method: str, rate: float, seed: int, own: Path) -> dict[str, Any]:
    """Learns a set; returns the row of the run."""
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.data import load_data
    from piggyback_tf.sequences import SequenceSettings, run_sequence
    from piggyback_tf.settings import CONFIGS, InputConfig, TrainConfig

    path = own / f"{network}.keras"
    if network != "shapesnet" and not path.exists():
        pretrain(NETWORKS[network], path)
    backbone = load_backbone("shapesnet" if network == "shapesnet" else str(path))
    data = load_data("digits" if name == "digits" else f"folder:{realdata() / name}", seed=seed)
    resize = f"resize({backbone.image_size},{backbone.image_size})"
    settings = SequenceSettings(
        method,
        CONFIGS[method](),
        TrainConfig(seed=seed, head_lr=rate, chance_epochs=0),
        InputConfig(augment_train=resize, augment_eval=resize),
    )
    with tempfile.TemporaryDirectory() as folder:
        sequence = run_sequence(
            Path(folder), backbone, {name: dataclasses.replace(data, test=None)}, settings, in_turn=False
        )
    (step,) = sequence["steps"]
    return {
        "validation_error": step["validation"][name]["top1_error"],
        "cross_entropy": step["history"]["cross_entropy"][-1],
        "seconds": round(step["seconds"], 1),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = arguments.parse_args()
    results, lines = Results("head_rate"), []
    with tempfile.TemporaryDirectory() as own:
        for name in SETS:
            for network, features in NETWORKS.items():
                for label, rate in RATES.items():
                    cells = []
                    for method in METHODS:
                        rows = [
                            results.run(
                                f"{network}/{name}/{method}/{label}/{seed}",
                                lambda m=method, r=rate, s=seed, n=network, d=name: train(n, d, m, r, s, Path(own)),
                            )
                            for seed in options.seeds
                        ]
                        cells.append(f"{sum(row['validation_error'] for row in rows) / len(rows):.1f}")
                    lines.append([name, features, label, *cells])
    print(markdown(["data", "features", "head_lr", *METHODS], lines))


if __name__ == "__main__":
    main()
