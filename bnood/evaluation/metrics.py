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
them (see ``bnood.evaluation.bootstrap``), where counts weigh the images; a weight of 2 is exactly an image that occurs
twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bnood.errors import UserError
from bnood.evaluation.bootstrap import checked_counts, row_chunks
from bnood.evaluation.scores import checked_logits

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
    return float(_detection(id_scores, None, [(ood_scores, None)], tpr)[0, DETECTION_METRICS.index("fpr95"), 0])


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
    values = _detection(id_scores, id_counts, [(ood_scores, ood_counts)], tpr=0.95)
    return dict(zip(DETECTION_METRICS, values[0], strict=True))


def detection_metrics_of_sets(
    id_scores: Values, id_counts: np.ndarray, ood: Sequence[tuple[Values, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """``detection_metrics`` of several OOD sets against the same ID images; what the ID side needs is done once.

    ``ood`` holds scores ``[M]`` and counts ``[R, M]`` of each set. Raises as ``detection_metrics`` does.
    """
    values = _detection(id_scores, id_counts, ood, tpr=0.95)
    return [dict(zip(DETECTION_METRICS, each, strict=True)) for each in values]


def _detection(
    id_scores: Values, id_counts: np.ndarray | None, ood: Sequence[tuple[Values, np.ndarray | None]], tpr: float
) -> np.ndarray:
    """The detection metrics ``[sets, 5, R]``, a few resamples at a time."""
    ids = _scores(id_scores, "ID scores")
    id_order = _IdOrder.of(ids)
    orders, all_counts = [], []
    for ood_scores, ood_counts in ood:
        orders.append(_OodOrder.of(ids[id_order.order], _scores(ood_scores, "OOD scores")))
        if id_counts is None and ood_counts is None:
            ood_counts = np.ones((1, len(orders[-1].order)), np.uint8)
        if ood_counts is None or (id_counts is None and len(ood_counts) > 1):
            raise UserError("resampled detection metrics need counts of both the ID and the OOD images")
        all_counts.append(checked_counts(ood_counts, len(orders[-1].order), "OOD images"))
    id_counts = (
        np.ones((1, len(ids)), np.uint8) if id_counts is None else checked_counts(id_counts, len(ids), "ID images")
    )
    for counts in all_counts:
        if len(id_counts) != len(counts):
            raise UserError(
                f"counts of {len(id_counts)} ID resamples cannot be paired with {len(counts)} OOD resamples"
            )
    values = np.empty((len(orders), len(DETECTION_METRICS), len(id_counts)))
    for rows in row_chunks(len(id_counts), len(ids)):
        id_side = _IdSide.of(id_order, id_counts[rows], tpr)
        for position, (order, counts) in enumerate(zip(orders, all_counts, strict=True)):
            values[position][:, rows] = _detection_chunk(id_side, order, counts[rows], tpr)
    return values


@dataclass(frozen=True)
class _IdOrder:
    """The order of the ID scores among themselves."""

    order: np.ndarray  # [N], sorts the ID images by score, lowest first
    below: np.ndarray | None  # [N], number of scores < each; None where no two are equal, so that it is 0, 1, 2, ...

    @classmethod
    def of(cls, scores: np.ndarray) -> "_IdOrder":
        order = np.argsort(scores)
        ids = scores[order]
        return cls(order, np.searchsorted(ids, ids, "left") if (ids[1:] == ids[:-1]).any() else None)


@dataclass(frozen=True)
class _OodOrder:
    """Where the scores of an OOD set stand, among themselves and relative to the ID scores.

    ``x_below_y[j]`` is the number of x scores < the j-th lowest y score, ``x_upto_y[j]`` the number <= it.
    """

    order: np.ndarray  # [M], sorts the OOD images by score, lowest first
    ood_below_id: np.ndarray  # [N]
    id_upto_ood: np.ndarray  # [M]
    id_below_ood: np.ndarray | None  # [M]; None where no ID score equals an OOD score, so that it is id_upto_ood
    ood_upto_ood: np.ndarray | None  # [M]; None where no two OOD scores are equal, so that it is 1, 2, 3, ...

    @classmethod
    def of(cls, ids: np.ndarray, ood_scores: np.ndarray) -> "_OodOrder":
        order = np.argsort(ood_scores)
        oods = ood_scores[order]
        id_below_ood, id_upto_ood = np.searchsorted(ids, oods, "left"), np.searchsorted(ids, oods, "right")
        return cls(
            order=order,
            ood_below_id=np.searchsorted(oods, ids, "left"),
            id_upto_ood=id_upto_ood,
            id_below_ood=None if np.array_equal(id_below_ood, id_upto_ood) else id_below_ood,
            ood_upto_ood=np.searchsorted(oods, oods, "right") if (oods[1:] == oods[:-1]).any() else None,
        )


@dataclass(frozen=True)
class _IdSide:
    """What the detection metrics need of some resamples of the ID images, whatever the OOD set.

    Each image's own score is tried as the threshold, which makes equal scores share one threshold and an image
    that was not drawn change nothing. All counts are whole numbers far below 2**53, hence exact in float64.
    """

    before: np.ndarray  # [R, N + 1], images below each place in the order, and all
    total: np.ndarray  # [R]
    highest: np.ndarray  # [R], the place of the highest threshold that accepts enough of ID
    accepted: np.ndarray  # [R, N], accepted at each image's score, at least 1
    weighted: np.ndarray  # [R, N], the same times the image's own count; 0 where none is accepted

    @classmethod
    def of(cls, order: _IdOrder, counts: np.ndarray, tpr: float) -> "_IdSide":
        weights, before = _sorted_cumulative(counts, order.order)
        total = before[:, -1].copy()
        hits = total[:, None] - (before[:, :-1] if order.below is None else before.take(order.below, axis=1))
        highest = np.count_nonzero(hits >= _least_count(tpr, total)[:, None], axis=1) - 1
        weights *= hits
        # Where no image is accepted none has a weight either, and 1 keeps the quotient free of 0 / 0.
        return cls(before, total, highest, np.maximum(hits, 1, out=hits), weights)


def _detection_chunk(ids: _IdSide, order: _OodOrder, ood_counts: np.ndarray, tpr: float) -> np.ndarray:
    """The detection metrics ``[5, rows]`` for counts ``[rows, M]`` in the order of the images."""
    weights, oods_before = _sorted_cumulative(ood_counts, order.order)
    n, m = ids.total, oods_before[:, -1].copy()
    ids_upto = ids.before.take(order.id_upto_ood, axis=1)
    ids_below = ids_upto if order.id_below_ood is None else ids.before.take(order.id_below_ood, axis=1)
    pairs_out_of_order = (_row_dot(weights, ids_upto) + _row_dot(weights, ids_below)) / 2

    # ID positive: accepted at an ID image's score are all scores >= it.
    accepted = m[:, None] - oods_before
    place = order.ood_below_id[ids.highest]
    fpr = np.take_along_axis(accepted, place[:, None], axis=1)[:, 0] / m
    precision = accepted.take(order.ood_below_id, axis=1)
    precision += ids.accepted
    aupr_in = np.divide(ids.weighted, precision, out=precision).sum(axis=1) / n

    # OOD positive: rejected at an OOD image's score are all scores <= it.
    hits = oods_before[:, 1:] if order.ood_upto_ood is None else oods_before.take(order.ood_upto_ood, axis=1)
    lowest = np.count_nonzero(hits < _least_count(tpr, m)[:, None], axis=1)
    fpr_ood_positive = np.take_along_axis(ids_upto, lowest[:, None], axis=1)[:, 0] / n
    # Where neither occurs no image with a weight stands, and 1 keeps the quotient free of 0 / 0.
    found = np.maximum(hits + ids_upto, 1)
    weights *= hits
    aupr_out = np.divide(weights, found, out=found).sum(axis=1) / m

    return np.stack([(n * m - pairs_out_of_order) / (n * m), fpr, fpr_ood_positive, aupr_in, aupr_out])


def _sorted_cumulative(counts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[R, N]`` in sorted order, as float64, and the sums before each place and after the last ``[R, N+1]``."""
    padded = np.zeros((len(counts), len(order) + 1))
    padded[:, 1:] = counts.take(order, axis=1)
    # torch's cumulative sum is three times as fast as NumPy's.
    return padded[:, 1:], torch.cumsum(torch.from_numpy(padded), dim=1).numpy()


def _row_dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", left, right)


def _least_count(share: float, totals: np.ndarray) -> np.ndarray:
    """The least whole number k with k / total >= share in float64, for each total.

    ``ceil(share * total)`` alone can be one off either way, because most shares have no exact float and the product
    is rounded again: 0.07 * 100 comes out above 7. The quotient 7 / 100 is rounded as the literal 0.07 is, and is
    what one compares after scikit-learn's ``roc_curve``.
    """
    count = np.ceil(share * totals)
    count -= (count - 1) / totals >= share
    return count + (count / totals < share)


def cross_entropies(logits: Tensor | np.ndarray, labels: Values) -> np.ndarray:
    """Each image's negative log-likelihood (natural logarithm), ``[N]`` float64, of logits ``[N, K]``, labels ``[N]``.

    Raises ``UserError`` for labels outside 0 .. K-1, empty or unequal N, and as ``checked_logits``.
    """
    checked, wanted = checked_logits(logits).detach().cpu().numpy(), _array(labels)
    _same_length(checked[:, 0], wanted, "rows of logits", "labels")
    classes = checked.shape[1]
    if wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= classes:
        raise UserError(f"labels have to be integers from 0 to {classes - 1}, not {wanted.min()} .. {wanted.max()}")
    shifted = checked - checked.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(wanted)), wanted]


def expected_calibration_error(confidence: Values, correct: Values, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): the L1 distance in bins of equal width.

    ``confidence`` ``[N]`` in [0, 1] and ``correct`` ``[N]``, true or false. The bins are torchmetrics', so that the two
    agree: a confidence on an edge belongs to the bin above it, and a confidence of exactly 1 has a bin of its own (the
    paper's bins include their upper edge). Raises ``UserError`` for empty or unequal N, confidences outside [0, 1], and
    fewer than one bin.

    >>> expected_calibration_error([0.75, 0.75, 0.25], [True, True, False], bins=2)
    0.25
    """
    return float(np.abs(calibration_gaps(confidence, correct, bins).mean(axis=0)).sum())


def calibration_gaps(confidence: Values, correct: Values, bins: int = 15) -> np.ndarray:
    """Each image's gap ``correct - confidence`` in the column of its bin: float64 ``[N, bins + 1]``.

    A bin's |accuracy - confidence| times its share of images is the absolute mean over *all* images of the gaps in its
    column: means alone, which resamples only weigh differently. Raises as ``expected_calibration_error`` does.
    """
    confidences, right = _array(confidence).astype(np.float64), _array(correct)
    _same_length(confidences, right, "'confidence'", "'correct'")
    if bins < 1:
        raise UserError(f"the calibration error needs at least one bin, not {bins}")
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise UserError("confidences have to lie between 0 and 1; are these logits, or NaN?")
    if not np.isin(right, (0, 1)).all():
        raise UserError("'correct' has to be true or false for each image (prediction == label)")
    gaps = np.zeros((len(confidences), bins + 1))
    bin_of_image = np.searchsorted(np.linspace(0, 1, bins + 1), confidences, "right") - 1
    gaps[np.arange(len(confidences)), bin_of_image] = right - confidences
    return gaps


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
