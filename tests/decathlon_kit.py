"""The Visual Decathlon in small: its archives and development kit, made up, and what TensorFlow Datasets makes of them.

The files have the names and forms of the real ones, so that the real builder reads them. Each set has a few images of
two of its classes; the numbers of categories and images are unlike their places.
"""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from piggyback_tf.evaluation.decathlon import BASE_DOMAIN, DOMAINS

# Images of each split; the builder calls validation "val" in files.
SIZES = {"train": 40, "val": 6, "test": 4}
_FILE = "decathlon-1.0-data/{}/{}/{:06}.jpg"


def write_devkit(folder: Path, sizes=SIZES) -> Path:
    """Writes the development kit and the archives of images; returns the folder of the kit.

    Args:
        folder: Where; the kit is `decathlon-1.0` in it, beside an archive `SET.tar` of each set.
        sizes: Images of each split.
    """
    annotations = folder / "decathlon-1.0" / "annotations"
    annotations.mkdir(parents=True)
    for place, domain in enumerate(DOMAINS, start=1):
        categories = [{"id": 100_000 * place + number, "name": f"class {number}"} for number in (7, 3)]
        with tarfile.open(folder / f"{domain}.tar", "w") as archive:
            for split, count in sizes.items():
                files = [_FILE.format(domain, split, number) for number in range(count)]
                images = [
                    {"id": 10_000_000 * place + 90 - n, "file_name": f"data/{file}"} for n, file in enumerate(files)
                ]
                for number, file in enumerate(files):
                    _add(archive, file, _jpeg(number, place))
                content = {"images": images, "annotations": [], "categories": categories}
                if split == "test":
                    name = f"{domain}_test_stripped.json"
                else:
                    name = f"{domain}_{split}.json"
                    content["annotations"] = [
                        {"image_id": image["id"], "category_id": categories[number % 2]["id"]}
                        for number, image in enumerate(images)
                    ]
                (annotations / name).write_text(json.dumps(content))
    return annotations.parent


def prepare_domains(folder: Path, data_dir: Path, domains=DOMAINS) -> None:
    """Runs the real builder of TensorFlow Datasets on what `write_devkit` wrote to a folder.

    Args:
        folder: Of the kit and the archives.
        data_dir: Where the prepared sets go.
        domains: Which sets.
    """
    for domain in domains:
        images = folder / f"{domain}.tar" if domain == BASE_DOMAIN else folder
        _prepare(f"visual_domain_decathlon/{domain}", data_dir, "download_and_extract", [folder, images])


def prepare_imagenet64(folder: Path, data_dir: Path) -> None:
    """Runs the real builder of `imagenet_resized/64x64` on a few made-up images of two classes."""
    paths = [_npz(folder / f"{name}.zip", count) for name, count in (("train1", 20), ("train2", 20), ("val", 6))]
    _prepare("imagenet_resized/64x64", data_dir, "download", paths)


def _prepare(name: str, data_dir: Path, method: str, found: list[Path]) -> None:
    import tensorflow_datasets as tfds

    # What would be downloaded is here; all else of the builder is real.
    with mock.patch.object(tfds.download.DownloadManager, method, lambda manager, urls: [str(path) for path in found]):
        tfds.builder(name, data_dir=str(data_dir)).download_and_prepare()


def _jpeg(number: int, place: int) -> bytes:
    """Returns an image whose shorter side is 72, as all of the challenge; classes differ in brightness."""
    pixels = np.random.default_rng([number, place]).integers(0, 60, [72, 72 + 9 * (number % 3), 3])
    buffer = io.BytesIO()
    Image.fromarray((pixels + 120 * (number % 2)).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _npz(path: Path, count: int) -> Path:
    labels = 1 + np.arange(count) % 2
    data = np.random.default_rng(0).integers(0, 60, [count, 3 * 64 * 64]) + 120 * (labels[:, None] - 1)
    buffer = io.BytesIO()
    np.savez(buffer, data=data.astype(np.uint8), labels=labels)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}.npz", buffer.getvalue())
    return path
