"""Whether images have the size that a backbone takes."""

from piggyback_tf.data import DataError
from piggyback_tf.data.augment import check_final_size
from piggyback_tf.training.errors import TrainingError


def check_image_size(augment: str, size: tuple[int, int] | None, image_size: int) -> None:
    """Refuses images of another size, and says what of a training to change; see `check_final_size`.

    Raises:
        TrainingError: If the sizes differ.
    """
    try:
        check_final_size(augment, size, (image_size, image_size))
    except DataError as error:
        raise TrainingError(f"{error} Change the augmentation or --image_size.") from None
