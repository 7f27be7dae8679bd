"""Whether images have the size that a backbone takes."""

from piggyback_tf.training.errors import TrainingError


def check_image_size(size: tuple[int, int] | None, backbone: str, image_size: int, augment: str) -> None:
    """Refuses images of another size.

    Args:
        size: Height and width of images after the augmentation; None if that depends on the image.
        backbone: The backbone's name, for the message.
        image_size: The height and width that it takes.
        augment: The augmentation, for the message.

    Raises:
        TrainingError: If the sizes differ.
    """
    if size is not None and tuple(size) != (image_size, image_size):
        raise TrainingError(
            f"The augmentation {augment!r} gives images of {size[0]}x{size[1]} pixels; backbone {backbone} takes "
            f"{image_size}x{image_size}. Change the augmentation or --image_size."
        )
