"""Checks the images of a whole run before it trains, by `look.py`, so that no training ends at one of them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from piggyback_tf.data.augment import leading_deterministic, parse_augment
from piggyback_tf.data.cache import CachedImages, decode_all
from piggyback_tf.data.images import DataError
from piggyback_tf.data.look import ReadAndPrepare, WithoutBroken, all_images, known_look, look_through, unfit_images
from piggyback_tf.data.prepared import CacheOptions, cache_images, common_size
from piggyback_tf.data.sources import Source
from piggyback_tf.data.unusable_files import DataProblems, UnusableFile, unusable_file
from piggyback_tf.settings.inputs import CHECKS
from piggyback_tf.settings.records import check_choice


@dataclasses.dataclass(frozen=True)
class Part:
    """Images to look at.

    Attributes:
        source: The images.
        augment: What will happen to them.
        use: `"next"`: they are cached, as far as that is wanted at all. `"later"`: they are decoded only if nobody has
            yet, and cached if so. `"uncached"`: the same, but not cached, for nothing would use what is cached.
    """

    source: Source
    augment: str
    use: str = "next"


def check_images(
    parts: Sequence[Part],
    name: str,
    *,
    check: str = "pixels",
    listed: Iterable[UnusableFile] = (),
    progress: Callable[[int, int], Any] = lambda done, total: None,
    **cache: Any,
) -> None:
    """Looks at images, which are cached by that, and tells all that is wrong with them at once.

    Args:
        parts: The images.
        name: What to call the data, such as `"folder:/data/cats"`.
        check: `"pixels"` decodes every image once. `"headers"` looks at the first bytes of files alone, but where
            broken images are left out: which these are shows only in their pixels.
        listed: Problems that are known already.
        progress: Called with how many images were looked at, and how many there are.
        **cache: What `make_dataset` takes of caches.

    Raises:
        DataProblems: If there is anything wrong with the images.
        DataError: If an argument is wrong, or the images do not fit into one batch.
    """
    check_choice("check", check, CHECKS, DataError)
    options, problems = CacheOptions(**cache), list(listed)
    done, total = 0, sum(len(all_images(part.source)) for part in parts)

    def step() -> None:
        nonlocal done
        done = min(done + 1, end)
        progress(done, total)

    # What was cached for one part must not make room for another.
    end, error, held = 0, None, []
    for part in parts:
        end += len(all_images(part.source))
        try:
            if not len(all_images(part.source)):
                len(part.source)  # Says so, if all were left out; otherwise it is among what was listed.
            elif check == "headers" and not isinstance(part.source, WithoutBroken):
                problems += find_problems(part.source.check_header, part.source.describe, len(part.source), step)
            else:
                problems += _check_pixels(part, options, step, held)
        except DataError as found:  # Of the whole part; what is wrong with single images is told before.
            error = error or found
        done = end  # What was known already was not looked at again.
    progress(total, total)
    if problems:
        raise DataProblems(problems, name)
    if error:
        raise error


def find_problems(
    look: Callable[[int], Any],
    describe: Callable[[int], str],
    count: int,
    step: Callable[[], Any] = lambda: None,
) -> list[UnusableFile]:
    """Returns what is wrong with images, in their order.

    Args:
        look: Called with the number of each image, from several threads; raises a `DataError` if something is wrong.
        describe: Returns what is said of an image, by its number.
        count: How many images there are.
        step: Called after each of them.
    """

    def attempt(index: int) -> UnusableFile | None:
        try:
            look(index)
        except DataError as error:
            return unusable_file(error, describe(index))
        return None

    problems = []
    for problem in decode_all(attempt, count):
        step()
        problems += [problem] if problem else []
    return problems


def _check_pixels(
    part: Part, options: CacheOptions, step: Callable[[], None], held: list[CachedImages]
) -> list[UnusableFile]:
    source, operations = part.source, parse_augment(part.augment)
    look = known_look(source, options.cache_dir)
    if look is not None and look.problems:
        return list(look.problems.values())
    if look is not None and (unfit := unfit_images(source, look.sizes, operations)):
        return unfit
    if part.use == "next" or look is None:
        reader = ReadAndPrepare(source, operations[: leading_deterministic(operations)])
        try:
            images = cache_images(reader, options, step) if part.use != "uncached" else None
            if images is None and look is None:
                look = look_through(reader, options.cache_dir, step)
                look = source.look if isinstance(source, WithoutBroken) else look
        except DataProblems as error:
            return list(error.problems)
        if images is not None:
            held.append(images)
            common_size(images.shapes, operations[len(reader.operations) :], part.augment)
            return []
    if unfit := unfit_images(source, look.sizes, operations):
        return unfit
    # Sizes are unknown of what was cached by a run that did not keep them.
    if len(sizes := look.sizes[look.sizes.all(axis=1)]):
        common_size(sizes, operations, part.augment)
    return []
