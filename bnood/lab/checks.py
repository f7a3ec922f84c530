"""The statements that the lab looks into, as a table, and the one function that judges a row of it.

Each is one number per seed: supported if its interval over seeds lies inside the range that was stated before, refuted
if outside. What was not trained, or not for long enough to tell, is "not tested here".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.evaluation.intervals import seeds_interval
from bnood.report.names import DASH, MINUS, display

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = "supported", "refuted", "undecided", "not tested here"
LEARNT = 0.8  # training accuracy of a network that has learnt most of its images
GAINED = 0.05  # a gain in accuracy: five points, which nobody would call small
OVERFITTED = 0.1  # training accuracy this far above validation accuracy is called so


class NotTested(Exception):
    """The lab has nothing to judge a statement by; the message says why."""


def rows_of(table: pd.DataFrame, quantity: str, activation: str, norm: str) -> pd.DataFrame:
    wanted = {"activation": activation, "norm": norm, "quantity": quantity}
    rows = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if rows.empty:
        raise NotTested(f"no {display(activation)} network with {display(norm)}")
    return rows


def accuracy(table: pd.DataFrame, activation: str, norm: str, kind: str = "train") -> pd.Series:
    """Final accuracy on training or on validation images, per seed."""
    return rows_of(table, f"{kind}_accuracy", activation, norm).sort_values("step").groupby("seed")["value"].last()


def gradient_ratio(table: pd.DataFrame, activation: str, norm: str) -> pd.Series:
    """log10 of the first layer's gradient over the last one's, mean over the first epoch, per seed."""
    rows = rows_of(table, "gradient_norm", activation, norm)
    layers = rows[rows["epoch"] <= 1].pivot_table("value", ["seed", "step"], "layer")
    return np.log10(layers.iloc[:, 0] / layers.iloc[:, -1]).groupby("seed").mean()


class Statement(NamedTuple):
    """A claim about a network, or about its difference to the same network without a norm."""

    activation: str
    norm: str
    text: str
    quantity: Callable[..., pd.Series]  # accuracy, or log10 of a factor
    claimed: tuple[float, float]  # the range that it claims
    printed: str = "{} points of training accuracy"  # the number in words


STARVED = "Without a norm, the first layer of a sigmoid network gets far less gradient than the last."
RAISED = "raises that share of the gradient."
STATEMENTS = [
    # A tenth: the first layer then takes ten times as long. And a factor of two.
    Statement("sigmoid", "none", STARVED, gradient_ratio, (-math.inf, -1.0), "{} of the last layer's gradient"),
    Statement("sigmoid", "bn", f"BatchNorm {RAISED}", gradient_ratio, (0.3, math.inf), "{} times as much"),
    Statement("sigmoid", "ln", f"LayerNorm {RAISED}", gradient_ratio, (0.3, math.inf), "{} times as much"),
    Statement("sigmoid", "bn", "BatchNorm lets sigmoid networks learn better.", accuracy, (GAINED, math.inf)),
    Statement("sigmoid", "ln", "LayerNorm lets sigmoid networks learn better.", accuracy, (GAINED, math.inf)),
    Statement("sigmoid", "gn", "GroupNorm lets sigmoid networks learn better.", accuracy, (GAINED, math.inf)),
    Statement("relu", "bn", "With ReLU, BatchNorm makes little difference to what is learnt.", accuracy, (-0.03, 0.03)),
]


class Check(NamedTuple):
    """A judged statement; effect, low, high and threshold are log10 of factors or fractions, None if not tested."""

    statement: str
    architecture: str
    verdict: str
    number: str  # the effect with its interval in words
    note: str  # accuracies, or why there is no verdict
    effect: float | None
    low: float | None
    high: float | None
    threshold: float


def check_lab(table: pd.DataFrame, classes: int) -> list[Check]:
    """Judge every statement for every architecture of a lab's long table."""
    return [
        judge(statement, own, display(str(architecture)), 1 / classes)
        for architecture, own in table.groupby("architecture")
        for statement in STATEMENTS
    ]


def judge(statement: Statement, table: pd.DataFrame, architecture: str, chance: float) -> Check:
    """Judge one statement by its interval over seeds.

    All about accuracy but a gain waits until a network has learnt its training images: before, they differ in speed.
    """
    activation, norm, text, quantity, (start, end), printed = statement
    threshold = min(abs(start), abs(end))
    try:
        values = quantity(table, activation, norm)
        if norm != "none":
            values = values - quantity(table, activation, "none")
        array = values.dropna().to_numpy(np.float64)
        if len(array) < 2 or not np.isfinite(array).all():
            raise NotTested("an interval needs finite figures of two seeds or more")
        # Images are not resampled: Student's interval over seeds alone.
        effect, low, high, _ = map(float, seeds_interval(array, np.repeat(array[:, None], 2, axis=1)))
        verdict = SUPPORTED if start < low and high < end else REFUTED if high < start or low > end else UNDECIDED
        learnt = [_learnt(table, activation, one) for one in ("none", norm)] if quantity is accuracy else []
        notes = "; ".join(found for _, found in learnt)
        needed = chance + GAINED if verdict == SUPPORTED and end == math.inf else LEARNT
        if learnt and max(reached for reached, _ in learnt) < needed:
            raise NotTested(f"these networks have not learnt enough to tell: {notes}")
    except NotTested as reason:
        return Check(text, architecture, NOT_TESTED, DASH, str(reason), None, None, None, threshold)
    in_words = _points if quantity is accuracy else _factor
    number = printed.format(f"{in_words(effect)} [{in_words(low)}, {in_words(high)}]").replace("-", MINUS)
    return Check(text, architecture, verdict, number, notes, effect, low, high, threshold)


def _learnt(table: pd.DataFrame, activation: str, norm: str) -> tuple[float, str]:
    """Training accuracy of a network, and in words beside validation accuracy, and whether it is overfitted."""
    train, validation = (float(accuracy(table, activation, norm, kind).mean()) for kind in ("train", "validation"))
    found = f"{display(norm)} {100 * train:.0f} % in training, {100 * validation:.0f} % in validation"
    return train, found + (", overfitted" if train - validation > OVERFITTED else "")


def _points(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def _factor(power: float) -> str:
    """10 to the power as "4.2", "1,300" or "1/1,300": two digits that matter."""
    value = float(f"{10 ** min(abs(power), 300):.2g}")
    return f"{'1/' * (power < 0)}{value:,.{int(value < 10)}f}"
