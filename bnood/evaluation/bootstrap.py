"""The bootstrap over images: resamples as counts, means under them, and percentile intervals (Efron 1979).

A resample of n images is one row of *counts*, how often each was drawn. Drawn once per set, by the set's name, the same
counts serve every condition, score and network, so that differences are *paired*. The intervals say how much a figure
depends on which images were in the test set, not what training with another seed would give.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from bnood.errors import UserError

# Resamples are used some rows at a time. With steps four times smaller, threads that share the work spend half of
# their time waiting for the interpreter; larger ones only take more memory.
_VALUES_PER_CHUNK = 1 << 18
# A matrix product of so few rows would wait for memory; of so many more, their float64 copies would fill it.
_ROWS_PER_PRODUCT = 64


def set_counts(name: str, n: int, resamples: int, seed: int) -> np.ndarray:
    """The set ``name`` as it is, every image once, then its resamples: ``[1 + resamples, n]`` uint8.

    A metric under row 0 is the value itself; the other rows depend on the arguments alone.
    """
    resampled = resample_counts(n, resamples, [seed, zlib.crc32(name.encode())])
    return np.concatenate([np.ones((1, n), np.uint8), resampled])


def resample_counts(n: int, resamples: int, seed: int | Sequence[int]) -> np.ndarray:
    """How often each of ``n`` images is drawn in each resample: ``[resamples, n]`` uint8, every row sums to ``n``.

    Every version of NumPy gives the same counts: ``RandomState``'s stream is frozen (NumPy Enhancement Proposal 19).
    """
    random = np.random.RandomState(seed)
    counts = np.empty((resamples, n), np.uint8)
    for rows in row_chunks(resamples, n):
        # Drawing n images and counting them is the multinomial distribution, many times faster than np.multinomial.
        drawn = random.randint(0, n, size=(rows.stop - rows.start, n), dtype=np.int32)
        # More than 255 draws of one image cannot happen up to n = 255; beyond, the probability is below 1e-500.
        counts[rows] = [np.bincount(row, minlength=n) for row in drawn]
    return counts


def weighted_means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The means of M per-image quantities in each of R resamples: ``[N, M]`` and counts ``[R, N]`` -> ``[R, M]``.

    Stack everything that is averaged over the same images as columns; it is one matrix product in float64.

    >>> weighted_means(np.array([[1.0], [4.0]]), np.array([[1, 1], [2, 0]])).tolist()
    [[2.5], [1.0]]
    """
    columns = torch.from_numpy(np.asarray(values, dtype=np.float64))
    means = torch.empty(len(counts), columns.shape[1], dtype=torch.float64)
    # By torch, whose threads the network's passes have woken already: NumPy's would compete with them for the cores.
    for start in range(0, len(counts), _ROWS_PER_PRODUCT):
        of_rows = means[start : start + _ROWS_PER_PRODUCT]
        weights = torch.from_numpy(counts[start : start + _ROWS_PER_PRODUCT]).to(torch.float64)
        torch.mm(weights, columns, out=of_rows)
        of_rows /= weights.sum(dim=1, keepdim=True)
    return means.numpy()


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval (low, high) of a bootstrapped metric ``[R]``, R >= 2, at confidence ``level``.

    Raises ``UserError`` for fewer than two values, or NaN among them.

    >>> interval(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    values, missing = np.asarray(values, dtype=np.float64), int(np.isnan(values).sum())
    if values.ndim != 1 or len(values) < 2 or missing:
        shape = list(values.shape)
        raise UserError(f"an interval needs values of shape [R], R >= 2, without NaN, not {missing} NaN in {shape}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def row_chunks(rows: int, row_length: int) -> list[slice]:
    """Slices that divide ``rows`` rows of ``row_length`` values into chunks of bounded size."""
    step = max(1, _VALUES_PER_CHUNK // max(1, row_length))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
