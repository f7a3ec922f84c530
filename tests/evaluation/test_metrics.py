"""Metrics against scikit-learn, pytorch-ood, torchmetrics, brute force and cases worked out by hand."""

import doctest
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics_functional
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_ood.metrics import OODMetrics

from bnood.errors import UserError
from bnood.evaluation import scores as of_logits
from bnood.evaluation.intervals import resample_counts, weighted_means
from bnood.evaluation.metrics import (
    DETECTION_METRICS,
    Values,
    aupr_in,
    aupr_out,
    auroc,
    calibration_gaps,
    cross_entropies,
    detection_metrics,
    detection_metrics_of_sets,
    fpr95_ood_positive,
    fpr_at_tpr,
)

# Few distinct values make ties, within a set and between the sets; many make none.
tied_scores = arrays(np.float64, st.integers(1, 30), elements=st.integers(-4, 4).map(float))
any_scores = tied_scores | arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e6, 1e6))
# No deadline per example: how fast a busy machine is, is not what is tested.
some, many = (settings(max_examples=count, deadline=None) for count in (60, 200))


def fpr_at_tpr_by_roc_curve(positive: np.ndarray, negative: np.ndarray, tpr: float = 0.95) -> float:
    """The share of negatives at the first point of scikit-learn's ROC curve with enough of the positives."""
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    fprs, tprs, _ = sklearn.metrics.roc_curve(labels, np.r_[positive, negative], drop_intermediate=False)
    return float(fprs[np.argmax(tprs >= tpr)])


def oracle_metrics(id_scores: np.ndarray, ood_scores: np.ndarray) -> dict[str, float]:
    is_id = np.r_[np.ones(len(id_scores)), np.zeros(len(ood_scores))]
    scores = np.r_[id_scores, ood_scores]
    return {
        "auroc": sklearn.metrics.roc_auc_score(is_id, scores),
        "fpr95": fpr_at_tpr_by_roc_curve(id_scores, ood_scores),
        "fpr95_ood_positive": fpr_at_tpr_by_roc_curve(-ood_scores, -id_scores),
        "aupr_in": sklearn.metrics.average_precision_score(is_id, scores),
        "aupr_out": sklearn.metrics.average_precision_score(1 - is_id, -scores),
    }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    return float(np.abs(calibration_gaps(confidence, correct, bins).mean(axis=0)).sum())


def point_metrics(id_scores: Values, ood_scores: Values) -> dict[str, float]:
    return {name: float(value[0]) for name, value in detection_metrics(id_scores, ood_scores).items()}


@many
@given(any_scores, any_scores)
def test_detection_metrics_equal_scikit_learns(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    assert point_metrics(id_scores, ood_scores) == pytest.approx(oracle_metrics(id_scores, ood_scores), abs=1e-12)


@some
@given(any_scores, any_scores)
def test_fpr95_follows_its_definition_threshold_by_threshold(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    accepting = [t for t in id_scores if (id_scores >= t).mean() >= 0.95]
    assert fpr_at_tpr(id_scores, ood_scores) == (ood_scores >= max(accepting)).mean()
    rejecting = [t for t in ood_scores if (ood_scores <= t).mean() >= 0.95]
    assert fpr95_ood_positive(id_scores, ood_scores) == (id_scores <= min(rejecting)).mean()


@some
@given(any_scores, any_scores)
def test_detection_metrics_equal_pytorch_oods(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    # pytorch-ood takes outlier scores, and OOD (labels below 0) is positive. Its AUPR is the trapezoid under the
    # curve, not the average precision, so that it is not compared.
    theirs = OODMetrics()
    labels = torch.tensor([0] * len(id_scores) + [-1] * len(ood_scores))
    theirs.update(-torch.from_numpy(np.r_[id_scores, ood_scores]), labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="AUTC is undefined")  # for constant scores; not compared
        values = theirs.compute()
    assert auroc(id_scores, ood_scores) == pytest.approx(values["AUROC"], abs=1e-12)
    assert fpr95_ood_positive(id_scores, ood_scores) == pytest.approx(values["FPR95TPR"], abs=1e-12)


@pytest.mark.parametrize("n", [*range(1, 130), 1000, 5000, 10_000, 73_257])
def test_95_percent_of_n_is_neither_one_image_too_few_nor_too_many(n: int) -> None:
    # With distinct scores 0 .. n-1 on both sides, FPR is the share of images at or above the same place.
    wanted = -(-95 * n // 100)  # in whole numbers
    scores = np.arange(n, dtype=float)
    assert fpr_at_tpr(scores, scores) == wanted / n
    assert fpr95_ood_positive(scores, scores) == wanted / n


@pytest.mark.parametrize("n", [1, 7, 20, 49, 100])
def test_a_tpr_of_k_in_n_needs_k_images_and_any_more_needs_another(n: int) -> None:
    scores = np.arange(n, dtype=float)
    for k in range(1, n + 1):
        assert fpr_at_tpr(scores, scores, k / n) == k / n
        assert fpr_at_tpr(scores, scores, float(np.nextafter(k / n, 0))) == k / n
        if k < n:
            assert fpr_at_tpr(scores, scores, float(np.nextafter(k / n, 1))) == (k + 1) / n


def test_a_small_case_with_ties_worked_out_by_hand() -> None:
    id_scores, ood_scores = np.array([4.0, 3.0, 3.0, 1.0]), np.array([3.0, 2.0, 1.0])
    # Pairs: 4 beats 3; each 3 beats 2, ties with one, so 2.5; 1 ties with one: (3 + 2.5 + 2.5 + 0.5) / 12.
    # Descending: {4}: 1 of 1 ID; {3, 3 | 3}: 3 of 4; {| 2}; {1 | 1}: 4 of 7.
    # Ascending: {1 | 1}: 1 of 2 OOD; {2}: 2 of 3; {3 | 3, 3}: 3 of 6.
    aupr = {"aupr_in": (1 * 1 + 2 * 3 / 4 + 1 * 4 / 7) / 4, "aupr_out": (1 / 2 + 2 / 3 + 3 / 6) / 3}
    expected = {"auroc": 8.5 / 12, "fpr95": 1.0, "fpr95_ood_positive": 3 / 4, **aupr}
    assert point_metrics(id_scores, ood_scores) == pytest.approx(expected)
    assert fpr_at_tpr(id_scores, ood_scores, tpr=0.75) == pytest.approx(1 / 3)


def test_infinite_scores_keep_their_place() -> None:
    id_scores, ood_scores = np.array([np.inf, 2.0, 1.0]), np.array([1.5, -np.inf])
    assert point_metrics(id_scores, ood_scores) == point_metrics(np.array([9.0, 2, 1]), np.array([1.5, -9]))


@some
@given(any_scores, any_scores, st.integers(0, 1000))
def test_counts_are_exactly_repeated_images(id_scores: np.ndarray, ood_scores: np.ndarray, seed: int) -> None:
    id_counts = resample_counts(len(id_scores), 5, seed)
    ood_counts = resample_counts(len(ood_scores), 5, seed + 1)
    resampled = detection_metrics(id_scores, ood_scores, id_counts, ood_counts)
    for row in range(5):
        repeated = np.repeat(id_scores, id_counts[row]), np.repeat(ood_scores, ood_counts[row])
        values = {name: float(resampled[name][row]) for name in DETECTION_METRICS}
        assert values == pytest.approx(oracle_metrics(*repeated), abs=1e-12)


@pytest.mark.parametrize(("decimals", "times"), [(1, (1, 1)), *((15, (k, m)) for k in (1, 10**6) for m in (1, 10**6))])
def test_many_resamples_in_several_chunks_equal_scikit_learns_with_weights(decimals: int, times: list[int]) -> None:
    random = np.random.RandomState(0)
    id_scores, ood_scores = random.normal(1, 1, 700).round(decimals), random.normal(0, 2, 500).round(decimals)
    id_counts, ood_counts = (resample_counts(n, 200, k) * np.int64(times[k]) for k, n in enumerate((700, 500)))
    resampled = detection_metrics(id_scores, ood_scores, id_counts, ood_counts)
    assert all(values.shape == (200,) and values.dtype == np.float64 for values in resampled.values())
    is_id, scores = np.r_[np.ones(700), np.zeros(500)], np.r_[id_scores, ood_scores]
    for row in (0, 53, 54, 55, 199):  # a chunk of resamples ends in between
        weights = np.r_[id_counts[row], ood_counts[row]]
        expected = {
            "auroc": sklearn.metrics.roc_auc_score(is_id, scores, sample_weight=weights),
            "aupr_in": sklearn.metrics.average_precision_score(is_id, scores, sample_weight=weights),
            "aupr_out": sklearn.metrics.average_precision_score(1 - is_id, -scores, sample_weight=weights),
        }
        assert {name: resampled[name][row] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 15])
def test_several_sets_at_once_equal_each_alone(decimals: int) -> None:
    random = np.random.RandomState(1)
    id_scores, id_counts = random.normal(1, 1, 300).round(decimals), resample_counts(300, 300, 0)
    ood = [(random.normal(0, 2, n).round(decimals), resample_counts(n, 300, n)) for n in (1, 40, 700)]
    for (scores, counts), found in zip(ood, detection_metrics_of_sets(id_scores, id_counts, ood), strict=True):
        alone = detection_metrics(id_scores, scores, id_counts, counts)
        assert all(np.array_equal(found[name], alone[name]) for name in DETECTION_METRICS)
        for row in (0, 299):
            repeated = np.repeat(id_scores, id_counts[row]), np.repeat(scores, counts[row])
            assert {name: found[name][row] for name in found} == pytest.approx(oracle_metrics(*repeated), abs=1e-12)


def test_tensors_of_any_type_and_lists_are_taken() -> None:
    ids, oods = [2.0, 1.0, 1.5], [1.0, 0.5]
    expected = point_metrics(np.array(ids), np.array(oods))
    assert point_metrics(torch.tensor(ids, dtype=torch.bfloat16, requires_grad=True), torch.tensor(oods)) == expected
    assert aupr_in(ids, oods) == expected["aupr_in"]


def test_negative_log_likelihood_is_pytorchs_in_float64() -> None:
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 30
    labels = torch.arange(200) % 10
    expected = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    np.testing.assert_allclose(cross_entropies(logits, labels.numpy()), expected.numpy(), rtol=1e-12, atol=1e-14)
    assert cross_entropies(torch.tensor([[1e4, -1e4]]), np.array([1])) == [2e4]  # where a softmax would underflow


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_expected_calibration_error_equals_torchmetrics(bins: int) -> None:
    random = np.random.RandomState(0)
    probabilities = torch.from_numpy(random.dirichlet(np.full(10, 0.2), size=3000)).float()
    labels = torch.from_numpy(random.randint(0, 10, 3000))
    confidence, prediction = probabilities.max(dim=1)
    theirs = torchmetrics_functional.multiclass_calibration_error(probabilities, labels, 10, n_bins=bins)
    ours = expected_calibration_error(confidence.numpy(), (prediction == labels).numpy(), bins)
    assert ours == pytest.approx(float(theirs), abs=2e-6)  # torchmetrics sums in float32
    assert ours > 0.1


def test_confidences_on_the_edges_fall_into_torchmetrics_bins() -> None:
    confidence = torch.tensor([0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 0.9])
    correct = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1])
    theirs = torchmetrics_functional.binary_calibration_error(confidence, correct, n_bins=4)
    # [0, .25): 1; [.25, .5): .25; [.5, .75): 0; [.75, 1): .35; {1}: 2, each over 8 images.
    ours = expected_calibration_error(confidence.numpy(), correct.numpy(), 4)
    assert ours == pytest.approx(3.6 / 8) == pytest.approx(float(theirs))


def test_resampled_calibration_error_is_that_of_the_repeated_images() -> None:
    random = np.random.RandomState(0)
    confidence = random.uniform(0.1, 1, 400)
    correct = random.uniform(size=400) < confidence**2
    counts = resample_counts(400, 300, 0)
    resampled = np.abs(weighted_means(calibration_gaps(confidence, correct), counts)).sum(axis=1)
    assert resampled.shape == (300,)
    for row in (0, 163, 164, 299):
        repeated = expected_calibration_error(np.repeat(confidence, counts[row]), np.repeat(correct, counts[row]))
        assert resampled[row] == pytest.approx(repeated, abs=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aupr_in([1.0], []), "no OOD scores"),
        (lambda: aupr_out([1.0, float("nan")], [1.0]), r"1 of 2 ID scores are NaN \(first: 1\)"),
        (lambda: fpr95_ood_positive([1.0], torch.tensor([float("nan")])), "1 of 1 OOD scores are NaN"),
        (lambda: auroc(np.zeros((2, 2)), [1.0]), r"shape \[2, 2\]"),
        (lambda: detection_metrics([1.0], [1.0], np.ones((1, 1))), r"float64 \[1, 1\], not whole numbers \[1, 1\]"),
        (lambda: detection_metrics([1.0], [1.0], None, np.ones((2, 1), int)), r"\[2, 1\], not whole numbers \[1, 1\]"),
        (lambda: fpr_at_tpr([1.0], [1.0], tpr=0), "not 0"),
    ],
)
def test_what_has_no_metric_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        call()


def test_examples_in_the_docstrings() -> None:
    result = doctest.testmod(of_logits)
    assert result.attempted >= 2 and result.failed == 0
