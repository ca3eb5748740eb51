"""Ridge regression in closed form."""

import numpy as np


def solve(gram: np.ndarray, cross: np.ndarray, penalty: float) -> dict[str, np.ndarray]:
    """The head of least weighted squares with `penalty` times the squared kernel; the bias is free.

    Args:
        gram: `X^T W X` float64 `[C + 1, C + 1]` of features whose last column is one.
        cross: `X^T W Y` float64 `[C + 1, D]` of the same features and the targets.
        penalty: above 0, in units of the squared features times the weights (the `alpha` of scikit-learn's `Ridge`).

    Returns:
        `{"kernel" [C, D], "bias" [D]}`, float32.
    """
    count, mean, target_mean = gram[-1, -1], gram[-1, :-1] / gram[-1, -1], cross[-1] / gram[-1, -1]
    centred = gram[:-1, :-1] - count * np.outer(mean, mean)
    kernel = np.linalg.solve(centred + penalty * np.eye(len(mean)), cross[:-1] - count * np.outer(mean, target_mean))
    return {"kernel": kernel.astype(np.float32), "bias": (target_mean - mean @ kernel).astype(np.float32)}
