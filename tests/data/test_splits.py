import random
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


def test_equal_remainders_are_rounded_up_from_the_lowest_class_on() -> None:
    labels = np.repeat([4, 7, 9], 10)
    assert np.bincount(labels[stratified_split(labels, 5, seed=3)[1]], minlength=10)[[4, 7, 9]].tolist() == [2, 2, 1]


def mersenne_twister_shuffle(n: int, seed: int) -> list[int]:
    """NumPy's frozen stream, built from Python's own generator: masked MT19937 words drive a Fisher-Yates shuffle."""
    state = [seed]
    for index in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + index) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    numbers = list(range(n))
    for last in range(n - 1, 0, -1):
        mask = (1 << last.bit_length()) - 1
        while (other := generator.getrandbits(32) & mask) > last:
            pass
        numbers[last], numbers[other] = numbers[other], numbers[last]
    return numbers


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_splits_are_frozen(seed: int) -> None:
    """Another numpy version must hold out the same images: the first of the shuffled ones, of each class."""
    order = mersenne_twister_shuffle(20, seed)
    even, odd = [i for i in order if i % 2 == 0], [i for i in order if i % 2]
    assert stratified_split(np.tile([0, 1], 10), 6, seed)[1].tolist() == sorted(even[:3] + odd[:3])
    nine = mersenne_twister_shuffle(9, seed)
    assert [half.tolist() for half in halves(9, seed)] == [sorted(nine[:4]), sorted(nine[4:])]
    with pytest.raises(UserError, match=r"^svhn: it has 1 image\(s\); expected at least 2, one to adapt to"):
        halves(1, 0, "svhn")


THREE = np.repeat([0, 1, 2], 4)


@pytest.mark.parametrize(
    ("labels", "validation", "seed", "message"),
    [
        *((THREE, wrong, 0, rf"validation is {wrong!r}; .* from 1 to 11$") for wrong in (0, -1, 12, 0.5, True, "3")),
        (np.array([2] * 9 + [5]), 6, 0, r"class 5 has 1 image\(s\), and 6 validation images of 10 would leave"),
        *((THREE, 3, wrong, f"the seed is {wrong}; expected an integer from 0 to 42949") for wrong in (-1, 2**32, 0.5)),
    ],
)
def test_impossible_splits_are_refused(labels: np.ndarray, validation, seed, message: str) -> None:
    with pytest.raises(UserError, match=f"^mine: {message}"):
        stratified_split(labels, validation, seed, "mine")
