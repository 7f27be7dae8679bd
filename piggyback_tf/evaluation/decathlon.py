"""The Visual Decathlon (Rebuffi, Bilen, Vedaldi, NIPS 2017): its score, what was published, and answers for its server.

Ten sets, of which the first is what the network was trained on. Labels of their test images are known to the server of
the challenge alone.
"""

import dataclasses
import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from piggyback_tf.files import atomic_file
from piggyback_tf.foreign_text import reason, shown, some

# The sets as TensorFlow Datasets names them (`visual_domain_decathlon/NAME`), in the order of tables, and their titles.
DOMAINS: Mapping[str, str] = MappingProxyType(
    {
        "imagenet12": "ImNet",
        "aircraft": "Airc",
        "cifar100": "C100",
        "daimlerpedcls": "DPed",
        "dtd": "DTD",
        "gtsrb": "GTSR",
        "vgg-flowers": "Flwr",
        "omniglot": "Oglt",
        "svhn": "SVHN",
        "ucf101": "UCF",
    }
)
BASE_DOMAIN = "imagenet12"
# A mask has a bit for each weight of 32.
_MASK = 1 / 32


class DecathlonError(ValueError):
    """Errors or answers that are none of the decathlon; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A row of table 8 of the Piggyback paper.

    Attributes:
        title: The method.
        parameters: How many times the parameters of one network it takes, kernels alone: no heads and no batch norm.
        accuracies: Top-1 in percent, on the hidden test images, in the order of `DOMAINS`.
        score: As published, of accuracies that were not rounded.
    """

    title: str
    parameters: float
    accuracies: tuple[float, ...]
    score: int

    @property
    def errors(self) -> dict[str, float]:
        """Errors in percent by set."""
        return {domain: 100 - accuracy for domain, accuracy in zip(DOMAINS, self.accuracies, strict=True)}


_FINETUNED = PublishedRow("Finetune", 10, (59.87, 60.34, 82.12, 92.82, 55.53, 97.53, 81.41, 87.69, 96.55, 51.2), 2500)
PUBLISHED = (
    PublishedRow("Scratch", 10, (59.87, 57.1, 75.73, 91.2, 37.77, 96.55, 56.3, 88.74, 96.63, 43.27), 1625),
    PublishedRow("Feature", 1, (59.67, 23.31, 63.11, 80.33, 45.37, 68.16, 73.69, 58.79, 43.54, 26.8), 544),
    _FINETUNED,
    PublishedRow("Residual adapters", 2, (59.67, 56.68, 81.2, 93.88, 50.85, 97.05, 66.24, 89.62, 96.13, 47.45), 2118),
    PublishedRow(
        "Residual adapters, joint", 2, (59.23, 63.73, 81.31, 93.3, 57.02, 97.47, 83.43, 89.82, 96.17, 50.28), 2643
    ),
    PublishedRow("DAN", 2.17, (57.74, 64.12, 80.07, 91.3, 56.54, 98.46, 86.05, 89.67, 96.77, 49.38), 2851),
    PublishedRow("Piggyback", 1.28, (57.69, 65.29, 79.87, 96.99, 57.45, 97.27, 79.09, 87.63, 97.24, 47.48), 2838),
)
# With this error a set gives no points: twice that of fine-tuning.
LARGEST_ERRORS: Mapping[str, float] = MappingProxyType({name: 2 * error for name, error in _FINETUNED.errors.items()})


def domain_points(domain: str, error: float) -> float:
    """Returns the points that a set gives: `1000 (max(0, (E_max - E) / E_max))^2`.

    Args:
        domain: One of `DOMAINS`.
        error: Top-1 error in percent, E; E_max is twice that of fine-tuning.

    Raises:
        DecathlonError: If there is no such set, or the error is none.
    """
    _check_domain(domain)
    if not 0 <= error <= 100:
        raise DecathlonError(f"An error is a number in percent, from 0 to 100. Received for {domain}: {error!r}.")
    return points_of_error(error, LARGEST_ERRORS[domain])


def points_of_error(error: float, largest: float) -> float:
    """Returns the points for an error, `1000 (max(0, (E_max - E) / E_max))^2`, where `largest` is E_max."""
    return 1000 * max(0.0, (largest - error) / largest) ** 2


def decathlon_score(errors: Mapping[str, float]) -> float:
    """Returns the sum of the points of all ten sets.

    Args:
        errors: Top-1 error in percent by set.

    Raises:
        DecathlonError: If a set is missing or is none of the ten, or an error is none.
    """
    check_domains(errors, "The score is a sum over")
    return sum(domain_points(domain, error) for domain, error in errors.items())


def relative_parameters(kernels: int, masked: Mapping[str, int], heads: Mapping[str, int] | None = None) -> float:
    """Returns how many times the parameters of the base the base takes with masks, as the challenge counts them.

    Args:
        kernels: Weights in the kernels of the base.
        masked: How many of them each task has a mask for; a mask counts a 32nd of a weight.
        heads: Weights of the head of each task; the challenge leaves them out, and batch norm always.
    """
    return 1 + (_MASK * sum(masked.values()) + sum((heads or {}).values())) / kernels


def check_domains(names: Collection[str], what: str) -> None:
    """Raises a `DecathlonError` if names are not those of all ten sets.

    Args:
        names: Names of sets.
        what: Begins the sentence, such as `"A submission has answers for"`.
    """
    for name in names:
        _check_domain(name)
    if missing := [domain for domain in DOMAINS if domain not in names]:
        raise DecathlonError(f"{what} ten sets; missing are {', '.join(missing)}.")


def check_devkit(devkit: Path) -> None:
    """Raises a `DecathlonError` if the development kit does not have what a submission needs, of any set."""
    for domain in DOMAINS:
        _read_kit(domain, devkit)


def write_submission(path: Path, devkit: Path, answers: Mapping[str, Mapping[str, int]]) -> int:
    """Writes answers to all test images as the server of the challenge takes them: `results.json` in a ZIP archive.

    Args:
        path: The archive to write.
        devkit: Folder of the development kit, in which `SET_test_stripped.json` and `SET_train.json` lie, in it or in
            its folder `annotations`.
        answers: For each set and image the class, by the image's feature `name` in TensorFlow Datasets, which is its
            file in the kit without `data/` in front. A class is a place among the categories of `SET_train.json`.

    Returns:
        The number of answers.

    Raises:
        DecathlonError: If an answer is missing, is for no test image, or is no class, or a file of the kit is not there
            or not of its form. Nothing is written then.
        OSError: If the archive cannot be written.
    """
    check_domains(answers, "A submission has answers for")
    rows = [row for domain in DOMAINS for row in _rows(domain, devkit, answers[domain])]
    text = json.dumps(rows, separators=(",", ":"))
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        # With a fixed date, so that the same answers are the same file.
        archive.writestr(zipfile.ZipInfo("results.json"), text, zipfile.ZIP_DEFLATED)
    return len(rows)


def _check_domain(name: str) -> None:
    if name not in DOMAINS:
        raise DecathlonError(f"The decathlon has no set {shown(name)}. Valid: {', '.join(DOMAINS)}.")


def _rows(domain: str, devkit: Path, answers: Mapping[str, int]) -> list[dict[str, int]]:
    """Returns the answers of one set, in the order of the kit."""
    categories, names = _read_kit(domain, devkit)
    if missing := sorted(names.keys() - answers.keys()):
        raise DecathlonError(f"Of {domain} {len(missing):,} test images have no answer: {some(missing, form=repr)}.")
    if unknown := sorted(answers.keys() - names.keys()):
        raise DecathlonError(f"Of {domain} {len(unknown):,} answers are for no test image: {some(unknown, form=repr)}.")
    wrong = [name for name, label in answers.items() if not (type(label) is int and 0 <= label < len(categories))]
    if wrong:
        raise DecathlonError(
            f"{domain} has classes 0 to {len(categories) - 1:,}. Received for {wrong[0]!r}: {answers[wrong[0]]!r}."
        )
    return [{"image_id": number, "category_id": categories[answers[name]]} for name, number in names.items()]


def _read_kit(domain: str, devkit: Path) -> tuple[list[int], dict[str, int]]:
    """Returns the numbers of a set's categories in their order, and those of its test images by feature `name`."""
    categories = [entry["id"] for entry in _listed(devkit, f"{domain}_train.json", "categories", ("id",))]
    images = _listed(devkit, f"{domain}_test_stripped.json", "images", ("id", "file_name"))
    return categories, {str(entry["file_name"]).removeprefix("data/"): entry["id"] for entry in images}


def _listed(devkit: Path, name: str, field: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns what a file of the development kit lists."""
    found = [folder / name for folder in (devkit, devkit / "annotations") if (folder / name).is_file()]
    if not found:
        raise DecathlonError(
            f"There is no {name} in {str(devkit)!r} or its folder 'annotations'. The development kit has it: "
            "decathlon-1.0-devkit.tar.gz of the challenge, which TensorFlow Datasets downloads, too."
        )
    try:
        content = json.loads(found[0].read_bytes())
        entries = content[field]
        if not all(field in entry for entry in entries for field in fields):
            raise KeyError(*fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DecathlonError(f"{str(found[0])!r} is no file of the development kit: {reason(repr(error))}.") from error
    return entries
