from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bnood.data.splits import halves, stratified_split
from bnood.errors import UserError

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    share=st.fractions(Fraction(1, 50), Fraction(49, 50)),
    seed=SEEDS,
    shuffled=st.randoms(use_true_random=False),
)
def test_split_is_exact_disjoint_sorted_and_proportional(sizes, share, seed, shuffled) -> None:
    labels = [3 * number - 2 for number, size in enumerate(sizes) for _ in range(size)]
    shuffled.shuffle(labels)
    count, total = len(labels), int(share * len(labels))
    assume(1 <= total < count)
    try:
        train, validation = stratified_split(np.array(labels), total, seed)
    except UserError as error:  # only where rounding up would have taken all of a class
        assert any(size - Fraction(size * total, count) < 1 for size in sizes)
        assert "would leave it none to train on" in str(error)
        return
    assert len(validation) == total
    assert sorted([*train, *validation]) == list(range(count))
    assert list(train) == sorted(train) and list(validation) == sorted(validation)
    for number, size in enumerate(sizes):
        taken = sum(labels[index] == 3 * number - 2 for index in validation)
        assert abs(taken - Fraction(size * total, count)) < 1
        assert taken < size


# Of seed: six validation images of ten even and ten odd ones, and the adaptation half of nine.
FROZEN = {
    0: ([1, 8, 10, 17, 18, 19], [1, 2, 4, 7]), 1: ([3, 6, 7, 10, 16, 17], [2, 6, 7, 8]),
    2**32 - 1: ([8, 11, 16, 17, 18, 19], [1, 5, 7, 8]),
}  # fmt: skip


@pytest.mark.parametrize("seed", FROZEN)
def test_splits_are_frozen(seed: int) -> None:
    """Another numpy version must hold out the same images."""
    assert stratified_split(np.tile([0, 1], 10), 6, seed)[1].tolist() == FROZEN[seed][0]
    adaptation, scoring = (half.tolist() for half in halves(9, seed))
    assert adaptation == FROZEN[seed][1] and sorted(adaptation + scoring) == list(range(9))
    with pytest.raises(UserError, match=r"^svhn: it has 1 image\(s\); expected at least 2, one to adapt to"):
        halves(1, 0, "svhn")


THREE = np.repeat([0, 1, 2], 4)


@pytest.mark.parametrize(
    ("labels", "validation", "seed", "message"),
    [
        *((THREE, wrong, 0, rf"validation is {wrong!r}; .* from 1 to 11$") for wrong in (12, True)),
        (np.array([2] * 9 + [5]), 6, 0, r"class 5 has 1 image\(s\), and 6 validation images of 10 would leave"),
        *((THREE, 3, wrong, f"the seed is {wrong}; expected an integer from 0 to 42949") for wrong in (-1, 2**32)),
    ],
)
def test_impossible_splits_are_refused(labels: np.ndarray, validation, seed, message: str) -> None:
    with pytest.raises(UserError, match=f"^mine: {message}"):
        stratified_split(labels, validation, seed, "mine")
