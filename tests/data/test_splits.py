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


def test_cifar_shaped_labels_give_the_same_number_of_each_class() -> None:
    labels = np.tile(np.arange(10), 5000)
    train, validation = stratified_split(labels, 5000, seed=1)
    assert np.bincount(labels[validation]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10
    np.testing.assert_array_equal(stratified_split(labels, 0.1, seed=1)[1], validation)


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
    assert halves(9, seed)[0].tolist() == sorted(mersenne_twister_shuffle(9, seed)[:4])


@pytest.mark.parametrize("validation", [0, -1, 12, 13, 0.0, 1.0, 1.5, 5.0, 0.01, float("nan"), True, "3", None])
def test_impossible_numbers_of_validation_images_are_refused(validation) -> None:
    with pytest.raises(
        UserError, match=r"^cifar10: validation is .* from 1 to 11, or a share between 0 and 1$"
    ) as caught:
        stratified_split(np.repeat([0, 1, 2], 4), validation, 0, "cifar10")
    assert repr(validation) in str(caught.value)


def test_a_class_is_never_left_without_training_images() -> None:
    with pytest.raises(UserError, match=r"^mine: class 5 has 1 image\(s\), and 6 validation images of 10 would leave"):
        stratified_split(np.array([2] * 9 + [5]), 6, 0, "mine")


@pytest.mark.parametrize("labels", [np.zeros((4, 1), int), np.zeros(4), np.zeros(4, bool), np.array(["a"] * 4)])
def test_labels_that_are_no_integers_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"labels are .*; expected integers \[N\]"):
        stratified_split(labels, 2, 0)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 300), seed=SEEDS)
def test_halves_are_disjoint_sorted_and_cover_everything(n: int, seed: int) -> None:
    calibration, scoring = halves(n, seed)
    assert sorted([*calibration, *scoring]) == list(range(n))
    assert list(calibration) == sorted(calibration) and list(scoring) == sorted(scoring)
    assert len(scoring) - len(calibration) == n % 2


def test_halves_of_a_sorted_set_are_drawn_from_all_of_it() -> None:
    for half in halves(1200, seed=5):
        assert np.histogram(half, 4, (0, 1200))[0].min() > 110  # 150 expected; the first half alone would give 0
    assert not np.array_equal(halves(1200, 5)[0], halves(1200, 6)[0])


@pytest.mark.parametrize("n", [0, 1])
def test_a_set_that_is_too_small_for_halves_is_refused(n: int) -> None:
    with pytest.raises(UserError, match=rf"^svhn: it has {n} image\(s\); expected at least 2, one to adapt to"):
        halves(n, 0, "svhn")


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_seeds_out_of_range_are_refused(seed) -> None:
    with pytest.raises(UserError, match=r"the seed is .*; expected an integer from 0 to 4294967295"):
        halves(4, seed)
    with pytest.raises(UserError, match=r"the seed is .*; expected an integer from 0 to 4294967295"):
        stratified_split(np.repeat([0, 1], 4), 2, seed)
