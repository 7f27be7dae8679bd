"""How a head starts."""

import dataclasses

import keras

from piggyback_tf.settings.methods.base import HEAD_INITS
from piggyback_tf.settings.records import check_choice


@dataclasses.dataclass(frozen=True)
class HeadStart:
    """What a new head is given besides its spec.

    Attributes:
        dropout: Rate of a dropout before the logits; 0 for none.
        init: How the kernel of the logits starts. `"zeros"`: the loss starts at chance, and the features get no
            gradient before the head has learned something. `"glorot"`: uniform by Glorot; many classes on large
            features then start with a loss far above chance, and the strongest part of the features' gradient is to
            become smaller.
        seed: Seed of everything that starts at random, so that it depends on nothing that ran before.
    """

    dropout: float = 0.0
    init: str = "zeros"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("init", self.init, HEAD_INITS)

    @property
    def of_logits(self) -> keras.initializers.Initializer:
        """The initialiser of the kernel of the logits."""
        return keras.initializers.GlorotUniform(seed=self.seed) if self.init == "glorot" else keras.initializers.Zeros()

    def of_layer(self, number: int) -> keras.initializers.Initializer:
        """Returns the initialiser of one of the kernels before it.

        Args:
            number: Of the kernel; each has other random numbers.
        """
        return keras.initializers.HeNormal(seed=1000 * self.seed + number)
