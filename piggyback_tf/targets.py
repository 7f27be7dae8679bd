"""What can be found in an image, as far as it is known before a network is; needs neither TensorFlow nor Keras.

Data have a target, and the problem of the same name in `problems/` learns to find it. What a network is needed for is
said there.
"""

import dataclasses
from collections.abc import Collection, Mapping

# What tasks find where nothing says otherwise.
USUAL = "class"


@dataclasses.dataclass(frozen=True)
class Target:
    """One thing to be found in an image; as text, what it is in words.

    Attributes:
        finds: That text, such as `"a class for each image"`.
        own_size: Whether its tasks have images of a size of their own, `[H, W]`, as the augmentation gives it. Images
            of others have the size that the base was built for.
        answer: What `TaskBank.predict` returns, in a word, for examples of code.
        hub_task: What the Hugging Face Hub calls such tasks.
        served_first: Whether servers answer its tasks by the signatures that were there before those of other problems:
            `serving_default`, `by_name` and `encoded`; and by `with_mask`, which takes a task with the request.
        settings: Settings of methods that are for its tasks alone.
        fewest_classes: How many classes a task needs.
    """

    finds: str
    own_size: bool = False
    answer: str = "probabilities"
    hub_task: str = "image-classification"
    served_first: bool = False
    settings: tuple[str, ...] = ()
    fewest_classes: int = 2

    def __str__(self) -> str:
        return self.finds


# By the name that data and packs hold.
TARGETS = {
    USUAL: Target("a class for each image", served_first=True),
    "multilabel": Target("any number of classes for each image"),
    "map": Target(
        "a class for each pixel",
        own_size=True,
        answer="labels",
        hub_task="image-segmentation",
        settings=("head", "class_weights"),
    ),
    "boxes": Target(
        "a box around each object", own_size=True, answer="boxes", hub_task="object-detection", fewest_classes=1
    ),
}


def check_own_settings(given: Mapping[str, str], targets: Collection[str], shown: str) -> None:
    """Refuses a setting that is for tasks of other targets alone, and would do nothing.

    Args:
        given: The values of settings that are not their defaults, as text, by name.
        targets: The targets of the tasks.
        shown: How a setting and its value are written, such as `"--{}={}"`.

    Raises:
        ValueError: With the first such setting.
    """
    for setting, value in given.items():
        takers = [str(target) for target in TARGETS.values() if setting in target.settings]
        if takers and not any(setting in TARGETS[name].settings for name in targets):
            found = " and ".join(str(TARGETS[name]) for name in sorted(targets))
            raise ValueError(
                f"{shown.format(setting, value)} is for tasks that find {' or '.join(takers)}; these find {found}."
            )
