"""Figures of single seeds, taken from the lab's tables: what the checks on its statements compare."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.evaluation.intervals import Replicates, Unusable
from bnood.lab.results import ARCHITECTURES

SMALLEST_GRADIENT = 1e-30  # in place of 0, of which there is no logarithm


class LabFigures(NamedTuple):
    """The tables that checks are made from: ``lab.parquet`` and ``accuracy.csv``.

    ``diverged`` names the networks and seeds whose training broke off: they have no figures of trained networks.
    """

    quantities: pd.DataFrame
    accuracy: pd.DataFrame
    diverged: frozenset[tuple[str, int]] = frozenset()

    def architectures(self) -> list[str]:
        """Those that the lab has, the MLP first."""
        found = set(self.quantities["architecture"])
        return [name for name in ARCHITECTURES if name in found]

    def gradient_ratio(self, network: str, first_epoch: bool) -> Replicates:
        """log10(first layer's / last layer's gradient norm), untrained or averaged over the first epoch."""
        rows = self._rows(network, "gradient_norm")
        rows = rows[rows["epoch"] <= 1] if first_epoch else rows[rows["step"] == 0]
        norms = rows.pivot_table("value", ["seed", "step"], "layer").clip(lower=SMALLEST_GRADIENT)
        ratios = np.log10(norms.iloc[:, 0] / norms.iloc[:, -1])
        return replicates(ratios.groupby("seed").mean())

    def final_accuracy(self, network: str) -> Replicates:
        """Validation accuracy after the last epoch."""
        rows = self.accuracy[self.accuracy["network"] == network]
        if rows.empty:
            raise Unusable(f"the lab has no accuracy of {network}")
        return self._at_end(network, rows, "validation_accuracy")

    def last_layer(self, network: str, quantity: str, at_end: bool) -> Replicates:
        """A quantity of the last hidden layer, untrained or trained."""
        rows = self._rows(network, quantity)
        rows = rows[rows["layer"] == rows["layers"]]
        return self._at_end(network, rows) if at_end else replicates(rows[rows["step"] == 0].set_index("seed")["value"])

    def mean_over_layers(self, network: str, quantity: str, at_end: bool) -> Replicates:
        """A quantity's mean over all layers, untrained or trained."""
        means = self._rows(network, quantity).groupby(["seed", "step"], as_index=False)["value"].mean()
        if at_end:
            return self._at_end(network, means)
        return replicates(means[means["step"] == 0].set_index("seed")["value"])

    def centre_and_spread(self, network: str, place: str, at_end: bool) -> tuple[Replicates, Replicates]:
        """Of the last hidden layer: root mean square of the units' means, and of their standard deviations.

        Their ratio is ``<place>_offset``, which is recorded beside mean and standard deviation of all values.
        """
        mean, std, offset = (self.last_layer(network, f"{place}_{name}", at_end) for name in ("mean", "std", "offset"))
        spread = np.sqrt((std.values**2 + mean.values**2) / (1 + offset.values**2))
        return tuple(
            replace(mean, values=values, draws=np.repeat(values[:, None], 2, axis=1))
            for values in (offset.values * spread, spread)
        )  # type: ignore[return-value]

    def _at_end(self, network: str, rows: pd.DataFrame, column: str = "value") -> Replicates:
        """The last figure of each seed that was trained to its end."""
        broken = {seed for name, seed in self.diverged if name == network}
        ends = rows[~rows["seed"].isin(broken)].sort_values("step").groupby("seed")[column].last()
        return replicates(ends)

    def _rows(self, network: str, quantity: str) -> pd.DataFrame:
        rows = self.quantities[self.quantities["network"] == network]
        rows = rows[rows["quantity"] == quantity]
        if rows.empty:
            raise Unusable(f"the lab has no {quantity} of {network}")
        return rows


def replicates(per_seed: pd.Series) -> Replicates:
    """Figures of single seeds, without any spread over images."""
    # Beside the empty table of a network that diverged at once, pandas makes the column one of objects.
    numbers = per_seed.astype(np.float64)
    finite = numbers[np.isfinite(numbers)].sort_index()
    if finite.empty:
        raise Unusable("no seed has a figure (not in the lab, or all diverged)")
    values = finite.to_numpy(dtype=np.float64)
    return Replicates(tuple(int(seed) for seed in finite.index), values, np.repeat(values[:, None], 2, axis=1))


def log10(figures: Replicates) -> Replicates:
    """The decimal logarithm of figures above 0; of others, which have none, that of a very small number."""
    values = np.log10(np.maximum(figures.values, SMALLEST_GRADIENT))
    return replace(figures, values=values, draws=np.repeat(values[:, None], 2, axis=1))
