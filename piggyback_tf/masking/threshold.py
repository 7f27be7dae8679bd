"""Straight-through thresholding: from a real-valued mask to a masked kernel and back.

Piggyback (Mallya, Davis, Lazebnik, ECCV 2018), section 3: the mask `m` is the thresholded `mask_real`
(equation 4), the layer computes with `W' = W * m`, and the gradient of the loss passes the threshold as if
it were not there, so that `dE/dmask_real = dE/dW' * W` (equations 5 to 7).

An affine mask makes `W' = k0 W + k1 + (k2 + k3 W) m` of it, with four numbers for each kernel (Mancini, Ricci, Caputo,
Rota Bulò, ECCV 2018 workshops, arXiv 1805.11119; arXiv 2103.13894). A mask alone is the case 0, 0, 0, 1.
"""

import tensorflow as tf


def binarise(mask_real: tf.Tensor, threshold: float) -> tf.Tensor:
    """Returns the binary mask `mask_real >= threshold` (equation 4) as booleans of the same shape."""
    return mask_real >= threshold


def ternarise(mask_real: tf.Tensor, threshold: float) -> tf.Tensor:
    """Returns the ternary mask as floats in {-1, 0, 1}.

    +1 at or above the threshold, -1 at or below its negative, 0 between. (The reference code makes everything
    below zero -1, so that a weight changes its sign a moment after it was dropped; here dropping lasts.)
    """
    ones = tf.ones_like(mask_real)
    return tf.where(mask_real >= threshold, ones, tf.where(mask_real <= -threshold, -ones, 0.0))


def count_dropped(mask_real: tf.Tensor, threshold: float, scale: float) -> tf.Tensor:
    """Returns how many weights a mask does not use as they are: those with `mask_real` below the threshold.

    The gradient passes straight through the threshold, as that of `masked_kernel` does: it is -1 for each weight. It
    ends at `scale`, beyond which nothing would be gained: there it is 0.

    Args:
        mask_real: The real-valued mask, float32.
        threshold: `tau`; of ternary masks those at -1 count, too.
        scale: Size of `mask_real` at the start, above the threshold.
    """

    @tf.custom_gradient
    def straight_through(mask_real):
        def gradient(upstream):
            return -upstream * tf.cast(mask_real < scale, mask_real.dtype)

        return tf.reduce_sum(tf.cast(mask_real < threshold, tf.float32)), gradient

    return straight_through(mask_real)


def promise_factor(kernel: tf.Tensor, gradient_scaling: str) -> tf.Tensor | float:
    """Returns by what to multiply the gradient that `masked_kernel` gives to get `dE/dm = dE/dW' * W`.

    Multiplied by the same, that of `affine_kernel` becomes `dE/dm = dE/dW' * (k2 + k3 W)`.

    Args:
        kernel: The weights `W`, or some of them; the mean is over these.
        gradient_scaling: As for `masked_kernel`.
    """
    size = tf.abs(tf.cast(kernel, tf.float32))
    return {"none": 1.0, "average": tf.reduce_mean(size), "individual": size}[gradient_scaling]


def masked_kernel(
    kernel: tf.Tensor,
    mask_real: tf.Tensor,
    *,
    threshold: float,
    kind: str = "binary",
    gradient_scaling: str = "none",
) -> tf.Tensor:
    """Returns `W' = W * m` and passes the gradient straight through to `mask_real`.

    Where the mask is 1 the weight is returned bit for bit, where it is 0 the result is +0.0.

    Args:
        kernel: The frozen weights `W`, floating point, of any shape; no gradient flows into them.
        mask_real: The real-valued mask, float32, of the kernel's shape.
        threshold: `tau`, above zero for ternary masks.
        kind: `"binary"` or `"ternary"`.
        gradient_scaling: `"none"` gives `dE/dW' * W`; `"average"` divides that by the layer's mean `|W|`;
            `"individual"` divides it by each weight's own `|W|`.

    Returns:
        The masked kernel, in the kernel's shape and dtype.
    """

    zero = tf.zeros([], kernel.dtype)

    @tf.custom_gradient
    def straight_through(mask_real):
        if kind == "binary":
            masked = tf.where(binarise(mask_real, threshold), kernel, zero)
        else:
            mask = ternarise(mask_real, threshold)
            masked = tf.where(mask == 0.0, zero, kernel * tf.cast(mask, kernel.dtype))

        def gradient(upstream):
            upstream = tf.cast(upstream, mask_real.dtype)
            weights = tf.cast(kernel, mask_real.dtype)
            if gradient_scaling == "individual":
                return upstream * tf.sign(weights)
            if gradient_scaling == "average":
                mean = tf.reduce_mean(tf.abs(weights))
                return tf.math.divide_no_nan(upstream * weights, mean)
            return upstream * weights

        return masked, gradient

    return straight_through(mask_real)


def affine_kernel(
    kernel: tf.Tensor,
    mask_real: tf.Tensor,
    numbers: tf.Tensor,
    *,
    threshold: float,
    kind: str = "binary",
    gradient_scaling: str = "none",
) -> tf.Tensor:
    """Returns `W' = k0 W + k1 + (k2 + k3 W) m`, and passes the gradient straight through to `mask_real`.

    It is computed as `(k0 + k3 m) W + (k1 + k2 m)` in float32, as `packs/parts.py` does it.

    Args:
        kernel: The frozen weights `W`, floating point, of any shape; no gradient flows into them.
        mask_real: The real-valued mask, float32, of the kernel's shape.
        numbers: k0, k1, k2 and k3, float32 `[4]`; their gradients are exact.
        threshold: As for `masked_kernel`.
        kind: As for `masked_kernel`.
        gradient_scaling: `"none"` gives `dE/dW' * (k2 + k3 W)`; the others divide that by the same as for
            `masked_kernel`.

    Returns:
        The kernel that is computed with, in the kernel's shape and dtype.
    """
    weights = tf.cast(kernel, tf.float32)
    size = tf.abs(weights)

    @tf.custom_gradient
    def straight_through(mask_real, numbers):
        k0, k1, k2, k3 = tf.unstack(numbers)
        mask = (
            tf.cast(binarise(mask_real, threshold), tf.float32) if kind == "binary" else ternarise(mask_real, threshold)
        )
        made = (k0 + k3 * mask) * weights + (k1 + k2 * mask)

        def gradient(upstream):
            of_mask = upstream * (k2 + k3 * weights)
            if gradient_scaling == "individual":
                of_mask = tf.math.divide_no_nan(of_mask, size)
            elif gradient_scaling == "average":
                of_mask = tf.math.divide_no_nan(of_mask, tf.reduce_mean(size))
            parts = (upstream * weights, upstream, upstream * mask, upstream * weights * mask)
            return of_mask, tf.stack([tf.reduce_sum(part) for part in parts])

        return made, gradient

    return tf.cast(straight_through(mask_real, numbers), kernel.dtype)
