"""What the penultimate units do: the figures behind ReAct's picture (Sun, Guo & Li 2021).

An activation is abnormal only in relation to what is normal for the same network: raw magnitudes cannot be compared
across norms, nor across runs. The reference is the network's in-distribution images under its own running statistics
(for networks without BatchNorm: as it is), so that one reference serves every condition and a figure moves only
because the activations do.
"""

from dataclasses import dataclass

import numpy as np

from bnood.bootstrap import weighted_means
from bnood.errors import UserError

UNIT_FIGURES = ("unit_mean_spread_ratio", "unit_mean_max_ratio", "share_above_id_p99")


@dataclass(frozen=True)
class UnitReference:
    """The in-distribution reference of one network.

    Attributes:
        p99: float64 ``[D]``, each unit's 99th percentile over the reference images.
        spread: float64 ``[R]``, standard deviation over units (ddof 1) of the per-unit means, per resample.
        maximum: float64 ``[R]``, largest per-unit mean, per resample.
    """

    p99: np.ndarray
    spread: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, counts: np.ndarray) -> "UnitReference":
        """From features ``[N, D]`` of the reference images and resample counts ``[R, N]``.

        Raises ``UserError`` where the per-unit means do not differ, as in a network whose units are all dead: nothing
        can be measured relative to them.
        """
        means = weighted_means(features, counts)
        if not (means.std(axis=1, ddof=1) > 0).all():
            raise UserError(
                "the penultimate units all have the same mean on in-distribution images (all zero, perhaps), so "
                "activations cannot be compared with it: has the training diverged?"
            )
        p99 = np.percentile(features, 99, axis=0).astype(np.float64)
        return cls(p99, means.std(axis=1, ddof=1), means.max(axis=1))


def unit_figures(features: np.ndarray, counts: np.ndarray, reference: UnitReference) -> dict[str, np.ndarray]:
    """The three figures of :data:`UNIT_FIGURES` for features ``[N, D]``, each ``[R]`` for resample counts ``[R, N]``.

    - ``unit_mean_spread_ratio``: spread over units of the per-unit mean, relative to the reference's.
    - ``unit_mean_max_ratio``: the largest per-unit mean, relative to the reference's.
    - ``share_above_id_p99``: share of (image, unit) pairs above the unit's 99th percentile in the reference, which is
      0.01 for the reference itself.
    """
    means = weighted_means(features, counts)
    above = (features > reference.p99).mean(axis=1, dtype=np.float64)
    return {
        "unit_mean_spread_ratio": means.std(axis=1, ddof=1) / reference.spread,
        "unit_mean_max_ratio": means.max(axis=1) / reference.maximum,
        "share_above_id_p99": weighted_means(above[:, None], counts)[:, 0],
    }


def unit_table(features: np.ndarray, reference: UnitReference) -> dict[str, np.ndarray]:
    """Per unit ``[D]``: number, mean, std (ddof 1), maximum and share above the reference's 99th percentile."""
    return {
        "unit": np.arange(features.shape[1]),
        "mean": features.mean(axis=0, dtype=np.float64),
        "std": features.std(axis=0, ddof=1, dtype=np.float64) if len(features) > 1 else np.zeros(features.shape[1]),
        "max": features.max(axis=0).astype(np.float64),
        "share_above_id_p99": (features > reference.p99).mean(axis=0, dtype=np.float64),
    }
