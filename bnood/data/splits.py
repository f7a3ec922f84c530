"""Which images are held out: validation images from train, and the adaptation split of an OOD set.

Both follow from the seed alone, in every version of numpy: the streams of ``RandomState`` are frozen (NEP 19).
"""

import numpy as np

from bnood.errors import UserError


def stratified_split(
    labels: np.ndarray, validation: int | float, seed: int, name: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Divides labelled images into training and validation images, each class in proportion.

    Each share is rounded down or up so that the total is exact: up for the largest remainders (Hamilton's method), the
    lower class first where remainders are equal.

    Args:
        labels: integers ``[N]``.
        validation: how many images (int, 1 to N - 1), or which share of them (float, rounded to a number).
        seed: 0 to 2**32 - 1.
        name: of the set, for messages.

    Returns:
        The indices of the training and of the validation images, int64, both sorted; disjoint, together all N.

    Raises:
        UserError: if either side or a class would be left without training images, or an argument is wrong.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{name}: labels are {labels.dtype} {list(labels.shape)}; expected integers [N], one per image")
    total = _validation_count(len(labels), validation, name)
    classes, class_number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    taken = _largest_remainders(sizes, total)
    if (taken == sizes).any():
        emptied = int(np.argmax(taken == sizes))
        raise UserError(
            f"{name}: class {classes[emptied]} has {sizes[emptied]} image(s), and {total} validation images of "
            f"{len(labels)} would leave it none to train on; expected fewer validation images or more of this class"
        )

    order = _permutation(len(labels), seed, name)
    by_class = order[np.argsort(class_number[order], kind="stable")]  # each class in a block, shuffled within it
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = rank < np.repeat(taken, sizes)
    return np.sort(by_class[~held_out]), np.sort(by_class[held_out])


def _validation_count(count: int, validation: int | float, name: str) -> int:
    """How many of ``count`` images are to be held out."""
    number = isinstance(validation, int | float | np.number) and not isinstance(validation, bool)
    whole = number and isinstance(validation, int | np.integer)
    total = int(validation) if whole else round(validation * count) if number and 0 < validation < 1 else 0
    if not 1 <= total < count:
        raise UserError(
            f"{name}: validation is {validation!r}; "
            f"expected a number of images from 1 to {count - 1}, or a share between 0 and 1"
        )
    return total


def _largest_remainders(sizes: np.ndarray, total: int) -> np.ndarray:
    """``total`` divided in proportion to ``sizes``; in integers, so that no remainder is lost to rounding."""
    shares = sizes.astype(np.int64) * total
    taken, remainders = np.divmod(shares, sizes.sum())
    rounded_up = np.argsort(-remainders, kind="stable")[: total - taken.sum()]
    taken[rounded_up] += 1
    return taken


def halves(n: int, seed: int, name: str = "the set") -> tuple[np.ndarray, np.ndarray]:
    """Divides a set into an adaptation split and a scoring split, so that no image is scored under its own statistics.

    Returns the indices of either split, int64, sorted; disjoint, together all n. The scoring split has the odd one.

    Raises:
        UserError: naming the set, if there are fewer than 2 images, or the seed is not from 0 to 2**32 - 1.
    """
    if n < 2:
        raise UserError(f"{name}: it has {n} image(s); expected at least 2, one to adapt to and one to score")
    order = _permutation(n, seed, name)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _permutation(n: int, seed: int, name: str) -> np.ndarray:
    """The numbers below n, shuffled; int64 ``[n]``."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"{name}: the seed is {seed!r}; expected an integer from 0 to {2**32 - 1}")
    return np.random.RandomState(int(seed)).permutation(n).astype(np.int64)
