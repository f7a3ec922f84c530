"""The statements that the lab looks into, as a table, and the one function that judges a row of it.

Each statement is one number per seed. Its interval (Student's t over seeds) is held against a threshold that was stated
before. Learning is judged on training accuracy, validation accuracy stands beside it. What a lab has not trained, or
where the networks have not learnt enough to tell, is "not tested here".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from bnood.evaluation.intervals import Replicates
from bnood.lab.options import Thresholds
from bnood.report.names import DASH, MINUS, display

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = "supported", "refuted", "undecided", "not tested here"


class NotTested(Exception):
    """The lab has nothing to judge a statement by; the message says why."""


@dataclass(frozen=True)
class Records:
    """The lab's long table (:mod:`bnood.lab.train`) of one architecture; measures are one number per seed."""

    table: pd.DataFrame

    def rows(self, quantity: str, activation: str, norm: str) -> pd.DataFrame:
        """The rows of one quantity of one network."""
        wanted = {"activation": activation, "norm": norm, "quantity": quantity}
        rows = self.table[(self.table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        if rows.empty:
            raise NotTested(f"no {display(activation)} network with {display(norm)}")
        return rows

    def accuracy(self, activation: str, norm: str, kind: str = "train") -> pd.Series:
        """Final accuracy on training or on validation images."""
        return _at_end(self.rows(f"{kind}_accuracy", activation, norm))

    def gain(self, activation: str, norm: str) -> pd.Series:
        """Accuracy with a norm minus accuracy without."""
        return self.accuracy(activation, norm) - self.accuracy(activation, "none")

    def inside(self) -> pd.Series:
        """How far GroupNorm's accuracy lies inside those of LayerNorm and BatchNorm (below 0: outside), sigmoid."""
        group, layer, batch = (self.accuracy("sigmoid", norm) for norm in ("gn", "ln", "bn"))
        low, high = (layer, batch) if layer.mean() <= batch.mean() else (batch, layer)
        return pd.concat([group - low, high - group], axis=1).min(axis=1, skipna=False)

    def gradient_ratio(self, norm: str) -> pd.Series:
        """log10 of the first layer's gradient over the last one's, mean over the first epoch, sigmoid."""
        rows = self.rows("gradient_norm", "sigmoid", norm)
        layers = rows[rows["epoch"] <= 1].pivot_table("value", ["seed", "step"], "layer")
        ratio = np.log10(layers[layers.columns.min()]) - np.log10(layers[layers.columns.max()])
        return ratio.groupby("seed").mean()

    def rise(self, norm: str) -> pd.Series:
        """How much a norm raises that ratio."""
        return self.gradient_ratio(norm) - self.gradient_ratio("none")

    def centring(self) -> pd.Series:
        """How log10 of the last layer's distance from zero changes in training, with sigmoid and BatchNorm."""
        rows = self.rows("offset", "sigmoid", "bn")
        rows = rows[rows["layer"] == rows["layer"].max()]
        return np.log10(_at_end(rows)) - np.log10(rows[rows["step"] == 0].set_index("seed")["value"])


def _at_end(rows: pd.DataFrame) -> pd.Series:
    return rows.sort_values(["seed", "step"]).groupby("seed").tail(1).set_index("seed")["value"]


class Statement(NamedTuple):
    """A claim."""

    text: str
    measure: Callable[[Records], pd.Series]  # its number per seed
    threshold: str  # a field of Thresholds
    wanted: Literal["above", "below", "small", "inside"]  # above +, below -, within +- or above - the threshold
    printed: str  # the number in words, {} being the number
    activation: str = ""  # of the networks whose accuracy it is about; "" if it is not about accuracy
    norms: tuple[str, ...] = ()  # of these networks


POWERS_OF_TEN = ("starved", "raised", "centred")  # thresholds of measures that are log10 of a factor
POINTS = "{} points of training accuracy"
STATEMENTS = [
    Statement(
        "Without a norm, the first layer of a sigmoid network gets far less gradient than the last.",
        partial(Records.gradient_ratio, norm="none"), "starved", "below", "{} of the last layer's gradient",
    ),
    *(
        Statement(
            f"{display(norm)} raises that share of the gradient.",
            partial(Records.rise, norm=norm), "raised", "above", "{} times as much",
        )
        for norm in ("bn", "ln")
    ),
    *(
        Statement(
            f"{display(norm)} lets sigmoid networks learn better.",
            partial(Records.gain, activation="sigmoid", norm=norm), "gained", "above", POINTS,
            "sigmoid", ("none", norm),
        )
        for norm in ("bn", "ln")
    ),
    Statement(
        "With ReLU, BatchNorm makes little difference to what is learnt.",
        partial(Records.gain, activation="relu", norm="bn"), "small", "small", POINTS, "relu", ("none", "bn"),
    ),
    Statement(
        "With BatchNorm, the last layer's inputs come to lie around zero while a sigmoid network trains.",
        Records.centring, "centred", "below", "{} of the distance before training",
    ),
    Statement(
        "With GroupNorm, sigmoid networks learn between LayerNorm and BatchNorm, give or take a point.",
        Records.inside, "between", "inside", "{} points inside the two", "sigmoid", ("bn", "ln", "gn"),
    ),
]  # fmt: skip


class Check(NamedTuple):
    """A judged statement; effect, low, high and threshold are in powers of ten or fractions, None if not tested."""

    statement: str
    architecture: str
    verdict: str
    number: str  # the effect with its interval in words
    note: str  # accuracies, or why there is no verdict
    effect: float | None
    low: float | None
    high: float | None
    threshold: float


def check_lab(table: pd.DataFrame, classes: int, thresholds: Thresholds) -> list[Check]:
    """Judge every statement for every architecture of a lab's long table."""
    return [
        judge(statement, Records(own), display(architecture), 1 / classes, thresholds)
        for architecture, own in table.groupby("architecture")
        for statement in STATEMENTS
    ]


def judge(statement: Statement, records: Records, architecture: str, chance: float, thresholds: Thresholds) -> Check:
    """Judge one statement by its interval over seeds.

    A gain in accuracy is seen as soon as one of the networks learns. All else about accuracy waits until one of them
    has learnt its training images: networks that are still learning differ in speed.
    """
    threshold = getattr(thresholds, statement.threshold)
    try:
        values = statement.measure(records).dropna()
        if values.empty or not np.isfinite(values).all():
            raise NotTested("its figures are not finite; has the training diverged?")
        effect, low, high = _interval(values)
        verdict = _verdict(low, high, threshold, statement.wanted)
        learnt = [_learnt(records, statement.activation, norm, thresholds) for norm in statement.norms]
        is_gain = verdict == SUPPORTED and statement.wanted == "above"
        needed = chance + thresholds.gained if is_gain else thresholds.learnt
        if learnt and max(accuracy for accuracy, _ in learnt) < needed:
            shown = "; ".join(text for _, text in learnt)
            raise NotTested(f"these networks have not learnt enough to tell: {shown}")
    except NotTested as reason:
        return Check(statement.text, architecture, NOT_TESTED, DASH, str(reason), None, None, None, threshold)
    notes = [text for _, text in learnt] + ["one seed has no interval"] * (low is None)
    number = _printed(statement, effect, low, high)
    return Check(statement.text, architecture, verdict, number, "; ".join(notes), effect, low, high, threshold)


def _learnt(records: Records, activation: str, norm: str, thresholds: Thresholds) -> tuple[float, str]:
    """Training accuracy of a network, and in words beside validation accuracy, and whether it is overfitted."""
    train, validation = (float(records.accuracy(activation, norm, kind).mean()) for kind in ("train", "validation"))
    found = f"{display(norm)} {100 * train:.0f} % in training, {100 * validation:.0f} % in validation"
    return train, found + (", overfitted" if train - validation > thresholds.overfitted else "")


def _interval(values: pd.Series) -> tuple[float, float | None, float | None]:
    """Mean and Student's 95 % interval over seeds; images are not resampled. One seed has no interval."""
    if len(values) < 2:
        return float(values.iloc[0]), None, None
    array = values.to_numpy(np.float64)
    found = Replicates(tuple(map(int, values.index)), array, np.repeat(array[:, None], 2, axis=1)).interval()
    return found.effect, found.low, found.high


def _verdict(low: float | None, high: float | None, threshold: float, wanted: str) -> str:
    if low is None or high is None:
        return UNDECIDED
    if wanted == "small":
        met, missed = -threshold < low and high < threshold, low > threshold or high < -threshold
    elif wanted == "below":
        met, missed = high < -threshold, low > -threshold
    else:
        bound = -threshold if wanted == "inside" else threshold
        met, missed = low > bound, high < bound
    return SUPPORTED if met else REFUTED if missed else UNDECIDED


def _printed(statement: Statement, effect: float, low: float | None, high: float | None) -> str:
    """Effect and interval: powers of ten as factors, fractions in points."""

    def shown(number: float) -> str:
        if statement.threshold in POWERS_OF_TEN:
            return _factor(10**number)
        return f"{round(100 * number, 1) + 0.0:{'+' * (statement.printed == POINTS)}.1f}"

    ends = "" if low is None or high is None else f" [{shown(low)}, {shown(high)}]"
    return statement.printed.replace("{}", f"{shown(effect)}{ends}").replace("-", MINUS)


def _factor(value: float) -> str:
    """ "4.2", "1,300" or "1/1,300": two digits that matter."""
    if value < 1:
        return f"1/{_factor(1 / value)}"
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1) if math.isfinite(value) else 1
    return f"{round(value / digits) * digits:,}" if value >= 10 else f"{value:.1f}"
