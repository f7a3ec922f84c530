"""How well scores tell in-distribution (ID) from out-of-distribution (OOD) images; how well ID images are classified.

Scores are *higher = more in-distribution*; the detection metrics use their order alone, in float64.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bnood.errors import UserError
from bnood.evaluation.intervals import row_chunks

Values: TypeAlias = "Tensor | np.ndarray | list[float]"

DETECTION_METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out")


def auroc(id_scores: Values, ood_scores: Values) -> float:
    """P(ID score > OOD score) + P(equal) / 2, for scores ``[N]`` and ``[M]``. Raises as ``detection_metrics`` does."""
    return float(detection_metrics(id_scores, ood_scores)["auroc"][0])


def fpr_at_tpr(id_scores: Values, ood_scores: Values, tpr: float = 0.95) -> float:
    """Share of OOD accepted (>=) at the highest threshold that accepts at least ``tpr`` of ID (ID positive).

    The convention of the MSP, energy and ReAct papers. Raises ``UserError`` for a ``tpr`` outside (0, 1].
    """
    if not 0 < tpr <= 1:
        raise UserError(f"tpr has to lie above 0 and be at most 1 (0.95, say), not {tpr}")
    return float(detection_metrics_of_sets(id_scores, None, [(ood_scores, None)], tpr)[0]["fpr95"][0])


def fpr95_ood_positive(id_scores: Values, ood_scores: Values) -> float:
    """Share of ID rejected (<=) at the lowest threshold that rejects at least 95 % of OOD: OpenOOD's, pytorch-ood's."""
    return float(detection_metrics(id_scores, ood_scores)["fpr95_ood_positive"][0])


def aupr_in(id_scores: Values, ood_scores: Values) -> float:
    """Average precision with ID positive: the sum of precision times the steps in recall, as scikit-learn's.

    Not the trapezoid under the same curve (OpenOOD, pytorch-ood). Depends on the share of ID images.
    """
    return float(detection_metrics(id_scores, ood_scores)["aupr_in"][0])


def aupr_out(id_scores: Values, ood_scores: Values) -> float:
    """Average precision with OOD positive (low scores first); otherwise as ``aupr_in``."""
    return float(detection_metrics(id_scores, ood_scores)["aupr_out"][0])


def detection_metrics(
    id_scores: Values, ood_scores: Values, id_counts: np.ndarray | None = None, ood_counts: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """All of ``DETECTION_METRICS`` for scores ``[N]`` and ``[M]``: each ``[R]`` float64, one value per resample.

    ``id_counts`` ``[R, N]`` and ``ood_counts`` ``[R, M]`` say how often each image occurs in each resample; without
    them R is 1. Raises ``UserError`` for an empty set, scores or counts that are no numbers, and NaN.
    """
    return detection_metrics_of_sets(id_scores, id_counts, [(ood_scores, ood_counts)])[0]


def detection_metrics_of_sets(
    id_scores: Values, id_counts: np.ndarray | None, ood: Sequence[tuple[Values, np.ndarray | None]], tpr: float = 0.95
) -> list[dict[str, np.ndarray]]:
    """``detection_metrics`` of several OOD sets, scores ``[M]`` and counts ``[R, M]``, against the same ID images."""
    ids = _scores(id_scores, "ID scores")
    id_order = np.argsort(ids)
    ids = ids[id_order]
    id_counts = np.ones((1, len(ids)), np.uint8) if id_counts is None else np.asarray(id_counts)
    below, sides = _ties(ids, "left"), []
    for ood_scores, ood_counts in ood:
        oods = _scores(ood_scores, "OOD scores")
        counts = np.ones((1, len(oods)), np.uint8) if ood_counts is None else np.asarray(ood_counts)
        sides.append((_Places.of(ids, oods), counts))
    for each, n in ((id_counts, len(ids)), *((counts, len(places.order)) for places, counts in sides)):
        if each.shape != (len(id_counts), n) or each.dtype.kind not in "bui" or each.min(initial=0) < 0:
            raise UserError(f"counts: {each.dtype} {list(each.shape)}, not whole numbers {[len(id_counts), n]} >= 0")
    values = np.empty((len(sides), len(DETECTION_METRICS), len(id_counts)))
    for rows in row_chunks(len(id_counts), len(ids)):
        id_side = _IdSide.of(id_counts[rows], id_order, below, tpr)
        for position, (places, counts) in enumerate(sides):
            values[position][:, rows] = _detection_chunk(id_side, places, counts[rows], tpr)
    return [dict(zip(DETECTION_METRICS, each, strict=True)) for each in values]


def _ties(ordered: np.ndarray, side: Literal["left", "right"]) -> np.ndarray | None:
    """Number of scores below each ("left") or up to it ("right"); None where no two are equal: 0, 1, 2 or 1, 2, 3."""
    return np.searchsorted(ordered, ordered, side) if (ordered[1:] == ordered[:-1]).any() else None


class _Places(NamedTuple):
    """Where the scores of an OOD set stand: numbers of scores of the one side below, or up to, each of the other."""

    order: np.ndarray  # [M], sorts the OOD images by score, lowest first
    ood_below_id: np.ndarray  # [N]
    id_upto_ood: np.ndarray  # [M]
    id_below_ood: np.ndarray | None  # [M]; None where no ID score equals an OOD score, so that it is id_upto_ood
    ood_upto_ood: np.ndarray | None  # [M], as of _ties

    @classmethod
    def of(cls, ids: np.ndarray, ood_scores: np.ndarray) -> "_Places":
        order = np.argsort(ood_scores)
        oods = ood_scores[order]
        below, upto = np.searchsorted(ids, oods, "left"), np.searchsorted(ids, oods, "right")
        tied = None if np.array_equal(below, upto) else below
        return cls(order, np.searchsorted(oods, ids, "left"), upto, tied, _ties(oods, "right"))


class _IdSide(NamedTuple):
    """What the detection metrics need of some resamples of the ID images: each image's score is tried as threshold."""

    before: np.ndarray  # [R, N + 1], images below each place in the order, and all
    total: np.ndarray  # [R]
    highest: np.ndarray  # [R], the place of the highest threshold that accepts enough of ID
    accepted: np.ndarray  # [R, N], accepted at each image's score, at least 1
    weighted: np.ndarray  # [R, N], the same times the image's own count; 0 where none is accepted

    @classmethod
    def of(cls, counts: np.ndarray, order: np.ndarray, below: np.ndarray | None, tpr: float) -> "_IdSide":
        weights, before = _sorted_cumulative(counts, order)
        total = before[:, -1].astype(np.float64)
        hits = before[:, -1:] - (before[:, :-1] if below is None else before.take(below, axis=1))
        highest = np.count_nonzero(hits >= _least_count(tpr, total).astype(hits.dtype)[:, None], axis=1) - 1
        weights *= hits
        # Where no image is accepted none has a weight either, and 1 keeps the quotient free of 0 / 0.
        return cls(before, total, highest, np.maximum(hits, 1, out=hits), weights)


def _detection_chunk(ids: _IdSide, places: _Places, ood_counts: np.ndarray, tpr: float) -> np.ndarray:
    """The detection metrics ``[5, rows]`` for counts ``[rows, M]`` in the order of the images."""
    weights, oods_before = _sorted_cumulative(ood_counts, places.order)
    n, m = ids.total, oods_before[:, -1].astype(np.float64)
    ids_upto = ids.before.take(places.id_upto_ood, axis=1)
    out_of_order = np.einsum("ij,ij->i", weights, ids_upto, dtype=np.float64)
    if places.id_below_ood is not None:
        ids_below = ids.before.take(places.id_below_ood, axis=1)
        out_of_order += np.einsum("ij,ij->i", weights, ids_below, dtype=np.float64)
        out_of_order /= 2

    # ID positive: accepted at an ID image's score are all scores >= it.
    rejected = oods_before.take(places.ood_below_id, axis=1)
    fpr = (m - np.take_along_axis(rejected, ids.highest[:, None], axis=1)[:, 0]) / m
    precision = np.subtract(oods_before[:, -1:], rejected, out=rejected) + ids.accepted
    aupr_in = np.divide(ids.weighted, precision, dtype=np.float64).sum(axis=1) / n

    # OOD positive: rejected at an OOD image's score are all scores <= it.
    hits = oods_before[:, 1:] if places.ood_upto_ood is None else oods_before.take(places.ood_upto_ood, axis=1)
    lowest = np.count_nonzero(hits < _least_count(tpr, m).astype(hits.dtype)[:, None], axis=1)
    fpr_ood_positive = np.take_along_axis(ids_upto, lowest[:, None], axis=1)[:, 0] / n
    weights *= hits
    # Where neither occurs no image with a weight stands, and 1 keeps the quotient free of 0 / 0.
    found = np.maximum(hits + ids_upto, 1)
    aupr_out = np.divide(weights, found, dtype=np.float64).sum(axis=1) / m

    return np.stack([(n * m - out_of_order) / (n * m), fpr, fpr_ood_positive, aupr_in, aupr_out])


def _sorted_cumulative(counts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[R, N]`` in sorted order, and the sums before each place and after the last ``[R, N+1]``."""
    # float32 is faster; whole numbers up to 2**24 are exact, here products of a count and a sum, and sums of two sums.
    exact = int(counts.max()) ** 2 * len(order) < 2**23
    padded = np.empty((len(counts), len(order) + 1), np.float32 if exact else np.float64)
    padded[:, 0], padded[:, 1:] = 0, counts.take(order, axis=1)
    # torch's cumulative sum is three times as fast as NumPy's.
    return padded[:, 1:], torch.cumsum(torch.from_numpy(padded), dim=1).numpy()


def _least_count(share: float, totals: np.ndarray) -> np.ndarray:
    """The least whole number k with k / total >= share in float64, for each total."""
    count = np.ceil(share * totals)  # can be one off either way: 0.07 * 100 comes out above 7
    count -= (count - 1) / totals >= share
    return count + (count / totals < share)


def cross_entropies(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """Each image's negative log-likelihood (natural logarithm), ``[N]`` float64, from logits ``[N, K]``."""
    values = logits.double().numpy()
    shifted = values - values.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def calibration_gaps(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> np.ndarray:
    """Each image's gap ``correct - confidence`` in the column of its bin: float64 ``[N, bins + 1]``.

    The expected calibration error (Guo et al. 2017, equation 3) is the sum over columns of the absolute mean over *all*
    images. A confidence on an edge belongs to the bin above it, and 1 has a bin of its own, as in torchmetrics.
    """
    gaps = np.zeros((len(confidence), bins + 1))
    bin_of_image = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, "right") - 1
    gaps[np.arange(len(confidence)), bin_of_image] = correct - confidence
    return gaps


def _scores(values: Values, what: str) -> np.ndarray:
    """Scores as float64 ``[N]``, N >= 1, without NaN; ``UserError`` otherwise."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    scores = np.asarray(values)
    if scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise UserError(f"{what} have to be numbers of shape [N], not {scores.dtype} of shape {list(scores.shape)}")
    if len(scores) == 0:
        raise UserError(f"there are no {what}; at least one is needed")
    if (missing := np.isnan(scores)).any():
        raise UserError(f"{int(missing.sum())} of {len(scores)} {what} are NaN (first: {int(missing.argmax())})")
    return scores.astype(np.float64)
