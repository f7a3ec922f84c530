"""What the penultimate units do: against NumPy on features whose answer can be worked out."""

import numpy as np
import pytest
import torch

from bnood.errors import UserError
from bnood.evaluation.activations import ClassMix, UnitReference, grouped_classes, share_above
from bnood.evaluation.intervals import resample_counts, weighted_means
from bnood.networks.network import Head

RNG = np.random.default_rng(0)
REFERENCE = RNG.gamma(2.0, RNG.uniform(0.2, 2.0, 6), (200, 6)).astype(np.float32)
OTHER = RNG.gamma(3.0, RNG.uniform(0.5, 3.0, 6), (50, 6)).astype(np.float32)
COUNTS = np.concatenate([np.ones((1, 200), np.uint8), resample_counts(200, 20, seed=1)])
OTHER_COUNTS = np.concatenate([np.ones((1, 50), np.uint8), resample_counts(50, 20, seed=2)])


def reference_of(features: np.ndarray) -> UnitReference:
    return UnitReference(np.percentile(features, 99, axis=0), weighted_means(features, COUNTS))


def test_figures_equal_numpy_on_the_resampled_images() -> None:
    reference = reference_of(REFERENCE)
    shares = weighted_means(share_above(OTHER, reference.p99)[:, None], OTHER_COUNTS)[:, 0]
    figures = reference.figures(weighted_means(OTHER, OTHER_COUNTS), shares)
    p99 = np.percentile(REFERENCE, 99, axis=0)
    for row in range(21):
        ours, of_id = (np.repeat(x.astype(float), c[row], 0) for x, c in ((OTHER, OTHER_COUNTS), (REFERENCE, COUNTS)))
        means, of_id = ours.mean(axis=0), of_id.mean(axis=0)
        assert figures["unit_mean_spread_ratio"][row] == pytest.approx(means.std(ddof=1) / of_id.std(ddof=1))
        assert figures["unit_mean_max_ratio"][row] == pytest.approx(means.max() / of_id.max())
        assert figures["share_above_id_p99"][row] == pytest.approx((ours > p99).mean())


def test_the_table_per_unit_equals_numpy_and_a_single_image_has_no_spread() -> None:
    table, values = reference_of(REFERENCE).per_unit(OTHER), OTHER.astype(np.float64)
    assert table["unit"].tolist() == [0, 1, 2, 3, 4, 5]
    above = (values > np.percentile(REFERENCE, 99, axis=0)).mean(axis=0)
    expected = {"mean": values.mean(axis=0), "std": values.std(axis=0, ddof=1), "max": values.max(axis=0)}
    for name, column in (expected | {"share_above_id_p99": above}).items():
        np.testing.assert_allclose(table[name], column)
    assert reference_of(REFERENCE).per_unit(OTHER[:1])["std"].tolist() == [0.0] * 6


def test_dead_units_are_named_and_not_divided_by() -> None:
    with pytest.raises(UserError, match="all have the same mean"):
        reference_of(np.zeros((200, 6), np.float32))


def test_a_class_mix_is_that_of_resampled_images_weighted_by_hand() -> None:
    predicted = RNG.integers(0, 4, 200)
    predicted[predicted == 3] = 1  # nothing was sorted into class 3
    seen = np.array([0] * 30 + [2] * 15 + [3] * 5)
    found = ClassMix(REFERENCE, predicted, 4, COUNTS).control(seen, OTHER_COUNTS)
    ratios = found["class_mix_max_ratio"]
    for row in range(21):
        images = np.repeat(np.arange(200), COUNTS[row])
        wanted = np.repeat(seen, OTHER_COUNTS[row])
        share = {label: np.mean(wanted[wanted != 3] == label) for label in (0, 2)}
        mixed = sum(share[label] * REFERENCE[images[predicted[images] == label]].mean(axis=0) for label in share)
        expected = mixed.max() / REFERENCE[images].astype(np.float64).mean(axis=0).max()
        assert ratios[row] == pytest.approx(expected, rel=1e-5)
        # Kish: every reference image weighs its class's share of the set over its class's number of images.
        weights = np.concatenate(
            [np.full((predicted[images] == k).sum(), share[k] / (predicted[images] == k).sum()) for k in share]
        )
        assert found["class_mix_effective_n"][row] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_a_class_without_reference_images_leaves_the_references_own_mix() -> None:
    found = ClassMix(REFERENCE, np.zeros(200, int), 3, COUNTS).control(np.full(50, 2), OTHER_COUNTS)
    assert np.array_equal(found["class_mix_max_ratio"], np.ones(21))


def test_classes_are_grouped_where_too_few_images_carry_the_mix() -> None:
    """25 classes of 8 images: the mix of one class is carried by 8, that of its group of similar classes by more."""
    predicted = np.arange(200) % 25
    weight = np.eye(25, 6, dtype=np.float32) + 0.01 * RNG.normal(size=(25, 6)).astype(np.float32)
    weight[6:] = weight[0] * np.linspace(1, 2, 19)[:, None]  # one direction: one group of 20 classes, 160 images
    head = Head(torch.from_numpy(weight), torch.zeros(25))
    assert np.unique(grouped_classes(weight, 20)[[0, *range(6, 25)]]).size == 1
    without = ClassMix(REFERENCE, predicted, 25, COUNTS).control(np.full(50, 7), OTHER_COUNTS)
    assert list(without) == ["class_mix_effective_n"] and without["class_mix_effective_n"][0] == pytest.approx(8)
    found = ClassMix(REFERENCE, predicted, 25, COUNTS, head).control(np.full(50, 7), OTHER_COUNTS)
    assert found["class_mix_effective_n"][0] == pytest.approx(160)
    own = REFERENCE[(predicted == 0) | (predicted > 5)].astype(np.float64).mean(axis=0)
    assert found["class_mix_max_ratio"][0] == pytest.approx(own.max() / REFERENCE.mean(axis=0).max(), rel=1e-5)
