"""How well features suit a task, computed without training on it."""

import numpy as np

# Ratios of the prior's precision to the noise's that are tried, relative to the largest squared singular value.
_RATIOS = np.logspace(-12, 6, 361)


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """Returns LogME: the logarithm of the maximum evidence of the labels, given the features, for each image and class.

    You, Liu, Wang and Long, ICML 2021, section 4.2: for each class, the indicator `y` of its images comes from a linear
    model, `y = F w` with noise of precision beta and weights of prior precision alpha. The evidence, integrated over
    `w`, is largest for some alpha and beta, and that of all classes is averaged. It needs no choice of settings, and
    does not reward features that merely fit the images. The paper finds the maximum by iterating over alpha and beta,
    which can run away where there are more features than images. Here beta is eliminated, since for a ratio
    `t = alpha / beta` the best one is `n / (y' (I + F F' / t)^-1 y)`, and t is looked for on a grid:

        -n/2 log(2 pi e / n) - n/2 log(y' (I + F F' / t)^-1 y) - 1/2 log det(I + F F' / t)

    Args:
        features: `[N, F]`, finite.
        labels: Classes of the images, integers `[N]`; or whether each is of each class, 0 or 1, `[N, C]`.

    Returns:
        The score; the higher, the better the features tell the classes apart. Only scores of the same images compare.

    Raises:
        ValueError: If features are not finite.
    """
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise ValueError("The features hold NaN or infinite values.")
    count = len(features)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares = singular**2
    ratios = _RATIOS[:, None] * (squares[0] or 1.0)
    log_determinants = np.log1p(squares / ratios).sum(axis=1)
    evidence = []
    labels = np.asarray(labels)
    indicators = labels if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    for target in indicators.T.astype(np.float64):
        inside = (left.T @ target) ** 2
        outside = max(0.0, target.sum() - inside.sum())  # Of the target that no combination of features reaches.
        misfit = (inside * ratios / (ratios + squares)).sum(axis=1) + outside
        evidence.append(np.max(-0.5 * count * np.log(2 * np.pi * np.e * misfit / count) - 0.5 * log_determinants))
    return float(np.mean(evidence)) / count
