"""The structure of a base, as packs and runs record it, and whether two are the same. TensorFlow is not loaded here.

A base is told by its hash (`weights_hash.py`) and its structure, which `structure_text.py` takes from a network.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

from absl import logging

from piggyback_tf.foreign_text import short_hash

ANSWERS = 16
# What rounding does to answers on another machine stays well below, and another setting of a layer well above.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a network computes with its weights, in a few bytes; see `model_structure`.

    Attributes:
        digest: SHA-256 of the text that describes every call of an operation.
        answers: What the network makes of two images, where the text does not say of every operation how it computes;
            None where it does. 16 numbers; None in place of one that is not finite.
    """

    digest: str
    answers: tuple[float | None, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as the JSON values by which packs, runs and exports keep it."""
        return {
            "base_structure": self.digest,
            "base_answers": None if self.answers is None else list(self.answers),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Structure | None":
        """Returns what `to_json` wrote, among other values; None if it is not there.

        Raises:
            ValueError: If it is there, and is nothing that `to_json` writes.
        """
        digest, answers = values.get("base_structure"), values.get("base_answers")
        if digest is None and answers is None:
            return None
        if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError("base_structure must be a SHA-256 as 64 hexadecimal digits, or null without base_answers")
        if answers is not None and not (
            isinstance(answers, list) and len(answers) == ANSWERS and all(map(_is_answer, answers))
        ):
            raise ValueError(f"base_answers must be null, or a list of {ANSWERS} numbers or nulls")
        return cls(digest, None if answers is None else tuple(answers))

    def is_like(self, other: "Structure") -> bool:
        """Returns whether both are of the same computation.

        Descriptions must be equal, and answers, where there are any, up to a thousandth of the largest of them.
        """
        if self.digest != other.digest or (self.answers is None) != (other.answers is None):
            return False
        pairs = list(zip(self.answers or (), other.answers or (), strict=True))
        largest = max((abs(number) for pair in pairs for number in pair if number is not None), default=0.0)
        return all(a == b if a is None or b is None else abs(a - b) <= _TOLERANCE * largest for a, b in pairs)

    def __str__(self) -> str:
        """The beginning of the digest, for messages."""
        return f"{short_hash(self.digest)}..."


def check_same_computation(
    what: str, structure: Structure | None, base: Structure | None, error: type[Exception] = ValueError
) -> None:
    """Checks that what was made for a base is used on one that computes the same; its weights were compared before.

    Where either was written before that was recorded, a sentence says so, once, and nothing is compared.

    Args:
        what: What was made for a base, to begin a sentence with: `"Task 'birds'"`.
        structure: What that base computes; None if it was not recorded.
        base: What the base here computes; None if it was not recorded.
        error: The kind of error to raise.

    Raises:
        ValueError: If they do not compute the same; or `error`.
    """
    if structure is None or base is None:
        older = "it" if structure is None else "what is here of the base"
        _say(
            f"{what} is for a base with these weights. Whether the same is computed with them here was not compared, "
            f"since {older} was written before that was recorded."
        )
    elif not structure.is_like(base):
        answers = structure.digest == base.digest
        how = "other answers to two images" if answers else f"structure {structure}, here {base}"
        raise error(
            f"{what} is for a base with these weights that computes something else with them ({how}): with another "
            "scaling of images, other strides, activations or pooling, or in another graph. Use that network as it "
            "was, with its own scaling inside."
        )


@functools.lru_cache(maxsize=1024)
def _say(sentence: str) -> None:
    """Logs a sentence, the first time."""
    logging.warning("%s", sentence)


def _is_answer(value: Any) -> bool:
    # NaN is none, nor an integer that is too large for a floating point number.
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)
