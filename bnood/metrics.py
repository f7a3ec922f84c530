"""How well scores tell in-distribution (ID) from out-of-distribution (OOD) images; how well ID images are classified.

Scores are oriented *higher = more in-distribution*. The detection metrics use their order only, in float64, exactly
as they come: no rescaling, no squashing. (torchmetrics' AUROC puts scores outside [0, 1] through a float32 sigmoid,
where every energy above about 17 becomes exactly 1.)

Two conventions of FPR95 are in use, and they differ:

- ``fpr95``, ID positive (the MSP, energy and ReAct papers): the share of *OOD* accepted (score >= threshold) at the
  highest threshold that accepts at least 95 % of ID.
- ``fpr95_ood_positive`` (OpenOOD v1.5, pytorch-ood): the share of *ID* rejected (score <= threshold) at the lowest
  threshold that rejects at least 95 % of OOD.

Every detection metric is computed by one piece of code, for the images as they are and for bootstrap resamples of
them (see ``bnood.bootstrap``), where counts weigh the images; a weight of 2 is exactly an image that occurs twice.
"""

from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from bnood.bootstrap import checked_counts, row_chunks, weighted_means
from bnood.errors import UserError
from bnood.scores import checked_logits

Values: TypeAlias = "Tensor | np.ndarray | list[float]"

DETECTION_METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out")


def auroc(id_scores: Values, ood_scores: Values) -> float:
    """P(ID score > OOD score) + P(equal) / 2, for scores ``[N]`` and ``[M]``. Raises as ``detection_metrics`` does.

    >>> auroc([0.9, 0.5], [0.5, 0.1])
    0.875
    """
    return float(detection_metrics(id_scores, ood_scores)["auroc"][0])


def fpr_at_tpr(id_scores: Values, ood_scores: Values, tpr: float = 0.95) -> float:
    """Share of OOD accepted (>=) at the highest threshold that accepts at least ``tpr`` of ID (ID positive).

    Raises ``UserError`` for a ``tpr`` outside (0, 1], and as ``detection_metrics`` does.

    >>> fpr_at_tpr([0.9, 0.8, 0.7, 0.2], [0.75, 0.7, 0.1, 0.0], tpr=0.75)
    0.5
    """
    if not 0 < tpr <= 1:
        raise UserError(f"tpr has to lie above 0 and be at most 1 (0.95, say), not {tpr}")
    return float(_detection(id_scores, ood_scores, None, None, tpr)[DETECTION_METRICS.index("fpr95"), 0])


def fpr95_ood_positive(id_scores: Values, ood_scores: Values) -> float:
    """Share of ID rejected (<=) at the lowest threshold that rejects at least 95 % of OOD (OOD positive).

    Raises as ``detection_metrics`` does.

    >>> fpr95_ood_positive([0.9, 0.8, 0.7, 0.2], [0.75, 0.7, 0.1, 0.0])
    0.5
    """
    return float(detection_metrics(id_scores, ood_scores)["fpr95_ood_positive"][0])


def aupr_in(id_scores: Values, ood_scores: Values) -> float:
    """Average precision with ID positive: the sum of precision times the steps in recall, as scikit-learn's.

    Not interpolated; the trapezoid under the same curve (OpenOOD, pytorch-ood) comes out a little different.
    Depends on the share of ID images: state N and M beside it. Raises as ``detection_metrics`` does.

    >>> aupr_in([3.0, 1.0], [2.0])  # precision 1 at recall 1/2, then 2/3 at recall 1
    0.8333333333333333
    """
    return float(detection_metrics(id_scores, ood_scores)["aupr_in"][0])


def aupr_out(id_scores: Values, ood_scores: Values) -> float:
    """Average precision with OOD positive (low scores first); otherwise as ``aupr_in``.

    >>> aupr_out([3.0, 1.0], [2.0])
    0.5
    """
    return float(detection_metrics(id_scores, ood_scores)["aupr_out"][0])


def detection_metrics(
    id_scores: Values,
    ood_scores: Values,
    id_counts: np.ndarray | None = None,
    ood_counts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """All of ``DETECTION_METRICS`` for scores ``[N]`` and ``[M]``: each ``[R]`` float64, one value per resample.

    ``id_counts`` ``[R, N]`` and ``ood_counts`` ``[R, M]`` say how often each image occurs in each resample; without
    them R is 1 and every image counts once. Equal scores are handled exactly; infinite scores are allowed.
    Raises ``UserError`` for an empty set, NaN among the scores, counts of the wrong shape or for one set only.

    >>> {name: values.tolist() for name, values in detection_metrics([2.0, 1.0], [1.0]).items()}["auroc"]
    [0.75]
    >>> detection_metrics([2.0, 1.0], [1.0], np.array([[1, 1], [2, 0]]), np.array([[1], [1]]))["auroc"].tolist()
    [0.75, 1.0]
    """
    values = _detection(id_scores, ood_scores, id_counts, ood_counts, tpr=0.95)
    return dict(zip(DETECTION_METRICS, values, strict=True))


def _detection(
    id_scores: Values, ood_scores: Values, id_counts: np.ndarray | None, ood_counts: np.ndarray | None, tpr: float
) -> np.ndarray:
    """The detection metrics ``[5, R]``, a few resamples at a time."""
    order = _Order.of(_scores(id_scores, "ID scores"), _scores(ood_scores, "OOD scores"))
    n, m = len(order.id_order), len(order.ood_order)
    if id_counts is None and ood_counts is None:
        id_counts, ood_counts = np.ones((1, n), np.uint8), np.ones((1, m), np.uint8)
    if id_counts is None or ood_counts is None:
        raise UserError("resampled detection metrics need counts of both the ID and the OOD images")
    id_counts, ood_counts = checked_counts(id_counts, n, "ID images"), checked_counts(ood_counts, m, "OOD images")
    if len(id_counts) != len(ood_counts):
        raise UserError(
            f"counts of {len(id_counts)} ID resamples cannot be paired with {len(ood_counts)} OOD resamples"
        )
    values = np.empty((len(DETECTION_METRICS), len(id_counts)))
    for rows in row_chunks(len(id_counts), n + m):
        values[:, rows] = _detection_chunk(order, id_counts[rows], ood_counts[rows], tpr)
    return values


@dataclass(frozen=True)
class _Order:
    """Where the scores stand relative to each other: all that the detection metrics need to know of them.

    ``x_below_y[j]`` is the number of x scores < the j-th lowest y score, ``x_upto_y[j]`` the number <= it.
    """

    id_order: np.ndarray  # [N], sorts the ID images by score, lowest first
    ood_order: np.ndarray  # [M]
    ood_below_id: np.ndarray  # [N]
    ood_upto_id: np.ndarray | None  # [N]; None where no ID score equals an OOD score, so that it is ood_below_id
    id_upto_ood: np.ndarray  # [M]
    id_below_id: np.ndarray | None  # [N]; None where no two ID scores are equal, so that it is 0, 1, 2, ...
    ood_upto_ood: np.ndarray | None  # [M]; None likewise, for 1, 2, 3, ...

    @classmethod
    def of(cls, id_scores: np.ndarray, ood_scores: np.ndarray) -> "_Order":
        id_order, ood_order = np.argsort(id_scores), np.argsort(ood_scores)
        ids, oods = id_scores[id_order], ood_scores[ood_order]
        ood_below_id, ood_upto_id = np.searchsorted(oods, ids, "left"), np.searchsorted(oods, ids, "right")
        return cls(
            id_order=id_order,
            ood_order=ood_order,
            ood_below_id=ood_below_id,
            ood_upto_id=None if np.array_equal(ood_below_id, ood_upto_id) else ood_upto_id,
            id_upto_ood=np.searchsorted(ids, oods, "right"),
            id_below_id=np.searchsorted(ids, ids, "left") if (ids[1:] == ids[:-1]).any() else None,
            ood_upto_ood=np.searchsorted(oods, oods, "right") if (oods[1:] == oods[:-1]).any() else None,
        )


def _detection_chunk(order: _Order, id_counts: np.ndarray, ood_counts: np.ndarray, tpr: float) -> np.ndarray:
    """The detection metrics ``[5, rows]`` for counts ``[rows, N]`` and ``[rows, M]`` in the order of the images.

    Each image's own score is tried as the threshold, which makes equal scores share one threshold and an image
    that was not drawn change nothing. All counts are whole numbers far below 2**53, hence exact in float64.
    """
    id_weights, ids_before = _sorted_cumulative(id_counts, order.id_order)
    ood_weights, oods_before = _sorted_cumulative(ood_counts, order.ood_order)
    n, m = ids_before[:, -1], oods_before[:, -1]

    ood_below = oods_before.take(order.ood_below_id, axis=1)
    ood_upto = ood_below if order.ood_upto_id is None else oods_before.take(order.ood_upto_id, axis=1)
    ordered_pairs = (_row_dot(id_weights, ood_below) + _row_dot(id_weights, ood_upto)) / 2

    # ID positive: accepted at an ID image's score are all scores >= it.
    hits = n[:, None] - (
        ids_before[:, :-1] if order.id_below_id is None else ids_before.take(order.id_below_id, axis=1)
    )
    false_alarms = m[:, None] - ood_below
    highest = np.count_nonzero(hits >= _least_count(tpr, n)[:, None], axis=1) - 1
    fpr = np.take_along_axis(false_alarms, highest[:, None], axis=1)[:, 0] / m
    aupr_in = _row_dot(id_weights, _precision(hits, false_alarms)) / n

    # OOD positive: rejected at an OOD image's score are all scores <= it.
    hits = oods_before[:, 1:] if order.ood_upto_ood is None else oods_before.take(order.ood_upto_ood, axis=1)
    false_alarms = ids_before.take(order.id_upto_ood, axis=1)
    lowest = np.count_nonzero(hits < _least_count(tpr, m)[:, None], axis=1)
    fpr_ood_positive = np.take_along_axis(false_alarms, lowest[:, None], axis=1)[:, 0] / n
    aupr_out = _row_dot(ood_weights, _precision(hits, false_alarms)) / m

    return np.stack([ordered_pairs / (n * m), fpr, fpr_ood_positive, aupr_in, aupr_out])


def _sorted_cumulative(counts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[R, N]`` in sorted order, as float64, and the sums before each place and after the last ``[R, N+1]``."""
    padded = np.zeros((len(counts), len(order) + 1))
    padded[:, 1:] = counts.take(order, axis=1)
    # torch's cumulative sum is three times as fast as NumPy's.
    return padded[:, 1:], torch.cumsum(torch.from_numpy(padded), dim=1).numpy()


def _row_dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", left, right)


def _precision(hits: np.ndarray, false_alarms: np.ndarray) -> np.ndarray:
    # Where neither occurs, no image with a weight stands, and 0 keeps the sum free of NaN.
    found = hits + false_alarms
    return np.divide(hits, np.maximum(found, 1, out=found), out=found)


def _least_count(share: float, totals: np.ndarray) -> np.ndarray:
    """The least whole number k with k / total >= share in float64, for each total.

    ``ceil(share * total)`` alone can be one off either way, because most shares have no exact float and the product
    is rounded again: 0.07 * 100 comes out above 7. The quotient 7 / 100 is rounded as the literal 0.07 is, and is
    what one compares after scikit-learn's ``roc_curve``.
    """
    count = np.ceil(share * totals)
    count -= (count - 1) / totals >= share
    return count + (count / totals < share)


def accuracy(predictions: Values, labels: Values) -> float:
    """Share of predicted classes ``[N]`` that equal the labels ``[N]``. Raises ``UserError`` for empty or unequal N.

    >>> accuracy([0, 1, 2, 2], [0, 1, 2, 1])
    0.75
    """
    predicted, wanted = _array(predictions), _array(labels)
    _same_length(predicted, wanted, "predictions", "labels")
    return float(np.mean(predicted == wanted))


def cross_entropies(logits: Tensor | np.ndarray, labels: Values) -> np.ndarray:
    """Each image's negative log-likelihood (natural logarithm): logits ``[N, K]``, labels ``[N]`` -> ``[N]`` float64.

    Raises ``UserError`` for labels outside 0 .. K-1, empty or unequal N, and as ``bnood.scores.checked_logits``.
    """
    checked, wanted = checked_logits(logits).detach().cpu().numpy(), _array(labels)
    _same_length(checked[:, 0], wanted, "rows of logits", "labels")
    classes = checked.shape[1]
    if wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= classes:
        raise UserError(f"labels have to be integers from 0 to {classes - 1}, not {wanted.min()} .. {wanted.max()}")
    shifted = checked - checked.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(wanted)), wanted]


def negative_log_likelihood(logits: Tensor | np.ndarray, labels: Values) -> float:
    """Mean of ``cross_entropies``, in float64; raises as they do.

    >>> round(negative_log_likelihood(np.zeros((3, 2)), [0, 1, 1]), 6)  # log 2
    0.693147
    """
    return float(cross_entropies(logits, labels).mean())


@overload
def expected_calibration_error(confidence: Values, correct: Values, bins: int = ..., counts: None = ...) -> float: ...


@overload
def expected_calibration_error(
    confidence: Values, correct: Values, bins: int = ..., *, counts: np.ndarray
) -> np.ndarray: ...


def expected_calibration_error(
    confidence: Values, correct: Values, bins: int = 15, counts: np.ndarray | None = None
) -> float | np.ndarray:
    """Expected calibration error (Guo et al. 2017, equation 3): the L1 distance in bins of equal width.

    ``confidence`` ``[N]`` in [0, 1] and ``correct`` ``[N]``, true or false. With ``counts`` ``[R, N]``, the error of
    each resample ``[R]``; without, one float. The bins are torchmetrics', so that the two agree: a confidence on
    an edge belongs to the bin above it, and a confidence of exactly 1 has a bin of its own (the paper's bins
    include their upper edge). Raises ``UserError`` for empty or unequal N, confidences outside [0, 1], fewer than one
    bin, and counts that do not fit.

    >>> expected_calibration_error([0.75, 0.75, 0.25], [True, True, False], bins=2)
    0.25
    """
    confidences, right = _array(confidence).astype(np.float64), _array(correct)
    _same_length(confidences, right, "'confidence'", "'correct'")
    if bins < 1:
        raise UserError(f"the calibration error needs at least one bin, not {bins}")
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise UserError("confidences have to lie between 0 and 1; are these logits, or NaN?")
    if not np.isin(right, (0, 1)).all():
        raise UserError("'correct' has to be true or false for each image (prediction == label)")
    # A bin's |accuracy - confidence| times its share of images is the absolute mean over *all* images of the gaps
    # in that bin: means alone, which resamples only weigh differently.
    gaps = np.zeros((len(confidences), bins + 1))
    bin_of_image = np.searchsorted(np.linspace(0, 1, bins + 1), confidences, "right") - 1
    gaps[np.arange(len(confidences)), bin_of_image] = right - confidences
    if counts is None:
        return float(np.abs(gaps.mean(axis=0)).sum())
    return np.abs(weighted_means(gaps, counts)).sum(axis=1)


def share_above(values: Values, threshold: float) -> float:
    """Share of ``values`` ``[N]`` strictly above ``threshold``. Raises ``UserError`` for no values, or NaN.

    >>> share_above([0.2, 0.9, 0.95, 1.0], 0.9)
    0.5
    """
    return float(np.mean(_scores(values, "values") > threshold))


def _array(values: Values) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    return np.asarray(values)


def _scores(values: Values, what: str) -> np.ndarray:
    """Scores as float64 ``[N]``, N >= 1, without NaN; ``UserError`` otherwise."""
    scores = _array(values)
    if scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise UserError(f"{what} have to be numbers of shape [N], not {scores.dtype} of shape {list(scores.shape)}")
    if len(scores) == 0:
        raise UserError(f"there are no {what}; at least one is needed")
    scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        missing = np.isnan(scores)
        raise UserError(f"{int(missing.sum())} of {len(scores)} {what} are NaN (first: {int(missing.argmax())})")
    return scores


def _same_length(first: np.ndarray, second: np.ndarray, first_name: str, second_name: str) -> None:
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise UserError(
            f"{first_name} and {second_name} have to be of one shape [N], N >= 1,"
            f" not {list(first.shape)} and {list(second.shape)}"
        )
