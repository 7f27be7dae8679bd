"""What can be found in an image, as far as it is known before a network is; needs neither TensorFlow nor Keras.

Data have a target, and the problem of the same name in `problems/` learns to find it. What a network is needed for is
said there.
"""

import dataclasses

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
        settings: Settings of methods that are for its tasks alone.
        fewest_classes: How many classes a task needs.
    """

    finds: str
    own_size: bool = False
    answer: str = "probabilities"
    hub_task: str = "image-classification"
    settings: tuple[str, ...] = ()
    fewest_classes: int = 2

    def __str__(self) -> str:
        return self.finds


# By the name that data and packs hold.
TARGETS = {
    USUAL: Target("a class for each image"),
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
