"""Which images are held out. It follows from the seed alone: the streams of ``RandomState`` are frozen (NEP 19)."""

import numpy as np

from bnood.errors import UserError


def stratified_split(
    labels: np.ndarray, validation: int, seed: int, name: str = "the set"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training images and of ``validation`` others, int64, sorted; each class is divided in proportion.

    Shares are rounded up for the largest remainders (Hamilton's method), the lower class first where they are equal.
    UserError if either side or a class would be left without training images.
    """
    count = len(labels)
    if isinstance(validation, bool) or not isinstance(validation, int) or not 1 <= validation < count:
        raise UserError(f"{name}: validation is {validation!r}; expected a number of images from 1 to {count - 1}")
    classes, class_number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    # In integers, so that no remainder is lost to rounding.
    taken, remainders = np.divmod(sizes.astype(np.int64) * validation, count)
    taken[np.argsort(-remainders, kind="stable")[: validation - taken.sum()]] += 1
    if (taken == sizes).any():
        emptied = int(np.argmax(taken == sizes))
        found = f"class {classes[emptied]} has {sizes[emptied]} image(s), and {validation} validation images of {count}"
        raise UserError(f"{name}: {found} would leave it none to train on; expected fewer validation images")
    order = _permutation(count, seed, name)
    by_class = order[np.argsort(class_number[order], kind="stable")]  # each class in a block, shuffled within it
    rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = rank < np.repeat(taken, sizes)
    return np.sort(by_class[~held_out]), np.sort(by_class[held_out])


def halves(n: int, seed: int, name: str = "the set") -> tuple[np.ndarray, np.ndarray]:
    """Indices of an adaptation and a scoring split (with the odd one), int64, sorted; UserError for one image."""
    if n < 2:
        raise UserError(f"{name}: it has {n} image(s); expected at least 2, one to adapt to and one to score")
    order = _permutation(n, seed, name)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def check_seed(seed: int, where: str) -> None:
    """Refuse a seed that ``RandomState`` does not take."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"{where}: the seed is {seed!r}; expected an integer from 0 to {2**32 - 1}")


def _permutation(n: int, seed: int, name: str) -> np.ndarray:
    check_seed(seed, name)
    return np.random.RandomState(int(seed)).permutation(n).astype(np.int64)
