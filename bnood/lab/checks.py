"""The statements that the lab looks into, as a table, and the one function that judges a row of it.

Each statement is one number per seed. Its interval (Student's t over seeds) is held against a threshold that was stated
before. Learning is judged on training accuracy, since a small set is soon learnt by heart; validation accuracy stands
beside it, and a network that is overfitted is called so. What a lab has not trained, or where none of the compared
networks learns, is "not tested here".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from bnood.evaluation.intervals import Replicates
from bnood.lab.options import Thresholds
from bnood.report.names import DASH, MINUS, display

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = "supported", "refuted", "undecided", "not tested here"
Network = tuple[str, str, bool]  # activation, norm, high rate


class NotTested(Exception):
    """The lab has nothing to judge a statement by; the message says why."""


class Records:
    """The lab's long table (:mod:`bnood.lab.train`) of one architecture; quantities are one number per seed."""

    def __init__(self, table: pd.DataFrame, classes: int) -> None:
        self.table, self.chance = table, 1 / classes

    def quantity(self, network: Network, quantity: str) -> pd.DataFrame:
        """The rows of one quantity of one network."""
        activation, norm, high = network
        wanted = {"activation": activation, "norm": norm, "high_rate": high, "quantity": quantity}
        rows = self.table[(self.table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        if rows.empty:
            rate = " at a high learning rate" if high else ""
            raise NotTested(f"no {display(activation)} network with {display(norm)}{rate}")
        return rows

    def gradient_ratio(self, activation: str, norm: str) -> pd.Series:
        """log10 of the first layer's gradient over the last one's, mean over the first epoch."""
        rows = self.quantity((activation, norm, False), "gradient_norm")
        layers = rows[rows["epoch"] <= 1].pivot_table("value", ["seed", "step"], "layer")
        ratio = np.log10(layers[layers.columns.min()]) - np.log10(layers[layers.columns.max()])
        return ratio.groupby("seed").mean()

    def accuracy(self, network: Network, kind: str = "train_accuracy") -> pd.Series:
        """Final accuracy."""
        return self._at_end(self.quantity(network, kind)).set_index("seed")["value"]

    def best(self, activation: str) -> float:
        """The highest training accuracy among the norms, mean over seeds."""
        rows = self.table[(self.table["activation"] == activation) & (self.table["quantity"] == "train_accuracy")]
        return float(self._at_end(rows).groupby("norm")["value"].mean().max())

    def dead(self, norm: str) -> pd.Series:
        """Share of dead ReLU units at the high rate, mean over layers, at the end."""
        return self._at_end(self.quantity(("relu", norm, True), "dead_share")).groupby("seed")["value"].mean()

    def centring(self) -> pd.Series:
        """How log10 of the last layer's distance from zero changes in training, with sigmoid and BatchNorm."""
        rows = self.quantity(("sigmoid", "bn", False), "offset")
        rows = rows[rows["layer"] == rows["layer"].max()]
        end, start = (part.set_index("seed")["value"] for part in (self._at_end(rows), rows[rows["step"] == 0]))
        return np.log10(end) - np.log10(start)

    def gain(self, activation: str, norm: str) -> pd.Series:
        """Accuracy with a norm minus accuracy without."""
        return self.accuracy((activation, norm, False)) - self.accuracy((activation, "none", False))

    def inside(self) -> pd.Series:
        """How far GroupNorm's accuracy lies inside those of LayerNorm and BatchNorm (below 0: outside), sigmoid."""
        group, layer, batch = (self.accuracy(("sigmoid", norm, False)) for norm in ("gn", "ln", "bn"))
        low, high = (layer, batch) if layer.mean() <= batch.mean() else (batch, layer)
        return pd.concat([group - low, high - group], axis=1).min(axis=1, skipna=False)

    @staticmethod
    def _at_end(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["step"] == rows.groupby(["norm", "seed"])["step"].transform("max")]


@dataclass(frozen=True)
class Statement:
    """A claim.

    Attributes:
        text: the claim in words.
        measure: its number per seed.
        threshold: the field of :class:`bnood.lab.options.Thresholds`.
        wanted: above +threshold, below -threshold, small (within ± threshold), or inside (above -threshold).
        printed: the number in words, `{}` being the number.
        learning: the networks whose accuracy it is about; none if it is not about accuracy.
    """

    text: str
    measure: Callable[[Records], pd.Series]
    threshold: str
    wanted: Literal["above", "below", "small", "inside"]
    printed: str
    learning: tuple[Network, ...] = ()


def _compared(activation: str, *norms: str) -> tuple[Network, ...]:
    return tuple((activation, norm, False) for norm in norms)


POWERS_OF_TEN = ("starved", "raised", "centred")  # thresholds of measures that are log10 of a factor
POINTS = "{} points of training accuracy"
STATEMENTS = (
    Statement(
        "Without a norm, the first layer of a sigmoid network gets far less gradient than the last.",
        lambda lab: lab.gradient_ratio("sigmoid", "none"), "starved", "below", "{} of the last layer's gradient",
    ),
    *(
        Statement(
            f"{display(norm)} raises that share of the gradient.",
            lambda lab, norm=norm: lab.gradient_ratio("sigmoid", norm) - lab.gradient_ratio("sigmoid", "none"),  # type: ignore[misc]
            "raised", "above", "{} times as much",
        )
        for norm in ("bn", "ln")
    ),
    *(
        Statement(
            f"{display(norm)} lets sigmoid networks learn better.",
            lambda lab, norm=norm: lab.gain("sigmoid", norm), "gained", "above", POINTS,  # type: ignore[misc]
            _compared("sigmoid", "none", norm),
        )
        for norm in ("bn", "ln")
    ),
    Statement(
        "With ReLU, BatchNorm makes little difference to what is learnt.",
        lambda lab: lab.gain("relu", "bn"), "small", "small", POINTS, _compared("relu", "none", "bn"),
    ),
    Statement(
        "With BatchNorm, the last layer's inputs come to lie around zero while a sigmoid network trains.",
        lambda lab: lab.centring(), "centred", "below", "{} of the distance before training",
    ),
    Statement(
        "At a high learning rate, deep ReLU networks without a norm lose units.",
        lambda lab: lab.dead("none"), "lost", "above", "{} % of units are dead",
    ),
    *(
        Statement(
            f"{display(norm)} keeps these units alive.",
            lambda lab, norm=norm: lab.dead("none") - lab.dead(norm), "lost", "above", "{} % of units fewer are dead",  # type: ignore[misc]
        )
        for norm in ("bn", "ln")
    ),
    Statement(
        "With GroupNorm, sigmoid networks learn between LayerNorm and BatchNorm, give or take a point.",
        lambda lab: lab.inside(), "between", "inside", "{} points inside the two",
        _compared("sigmoid", "bn", "ln", "gn"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A judged statement: `number` is the effect with its interval in words; effect, low, high and threshold are in
    powers of ten or fractions, NaN if not tested; `note` has validation accuracies, or why there is no verdict."""

    statement: str
    architecture: str
    verdict: str
    number: str
    effect: float
    low: float
    high: float
    threshold: float
    note: str

    @property
    def row(self) -> list[str]:
        """As the page shows it."""
        return [self.statement, self.architecture, self.verdict, self.number, self.note]

    def to_json(self) -> dict[str, Any]:
        """As ``checks.json`` holds it: None for what is not finite."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def check_lab(table: pd.DataFrame, classes: int, thresholds: Thresholds) -> list[Check]:
    """Judge every statement for every architecture of a lab's long table."""
    return [
        judge(statement, Records(own, classes), architecture, thresholds)
        for architecture, own in table.groupby("architecture")
        for statement in STATEMENTS
    ]


def judge(statement: Statement, records: Records, architecture: str, thresholds: Thresholds) -> Check:
    """Judge one statement by its interval over seeds."""
    threshold, nan = getattr(thresholds, statement.threshold), math.nan
    try:
        values = statement.measure(records).dropna()
        if statement.learning and records.best(statement.learning[0][0]) < records.chance + thresholds.gained:
            raise NotTested("none of these networks learns anything")
        if not np.isfinite(values).all() or values.empty:
            raise NotTested("its figures are not finite; has the training diverged?")
    except NotTested as reason:
        return Check(statement.text, display(architecture), NOT_TESTED, DASH, nan, nan, nan, threshold, str(reason))
    effect, low, high = _interval(values)
    number = _printed(statement, effect, low, high)
    notes = [_learning_note(records, network, thresholds) for network in statement.learning]
    if len(values) < 2:
        notes.append("one seed has no interval")
    verdict = _verdict(low, high, threshold, statement.wanted)
    return Check(statement.text, display(architecture), verdict, number, effect, low, high, threshold, "; ".join(notes))


def _interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and Student's 95 % interval over seeds; images are not resampled."""
    if len(values) < 2:
        return float(values.iloc[0]), math.nan, math.nan
    array = values.to_numpy(np.float64)
    found = Replicates(tuple(map(int, values.index)), array, np.repeat(array[:, None], 2, axis=1)).interval()
    return found.effect, found.low, found.high


def _verdict(low: float, high: float, threshold: float, wanted: str) -> str:
    """NaN ends, of one seed, decide nothing."""
    if wanted == "small":
        met, missed = -threshold < low and high < threshold, low > threshold or high < -threshold
    elif wanted == "below":
        met, missed = high < -threshold, low > -threshold
    else:
        bound = -threshold if wanted == "inside" else threshold
        met, missed = low > bound, high < bound
    return SUPPORTED if met else REFUTED if missed else UNDECIDED


def _printed(statement: Statement, *numbers: float) -> str:
    """Effect and interval: powers of ten as factors, fractions in points or per cent."""
    if statement.threshold in POWERS_OF_TEN:
        texts = [_factor(10**number) for number in numbers]
    else:
        sign = "+" if statement.printed == POINTS else ""
        texts = [f"{round(100 * number, 1) + 0.0:{sign}.1f}" for number in numbers]
    ends = f" [{texts[1]}, {texts[2]}]" if math.isfinite(numbers[1]) else ""
    return statement.printed.replace("{}", f"{texts[0]}{ends}").replace("-", MINUS)


def _factor(value: float) -> str:
    """ "4.2", "1,300" or "1/1,300": two digits that matter."""
    if value < 1:
        return f"1/{_factor(1 / value)}"
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1) if math.isfinite(value) else 1
    return f"{round(value / digits) * digits:,}" if value >= 10 else f"{value:.1f}"


def _learning_note(records: Records, network: Network, thresholds: Thresholds) -> str:
    """Training and validation accuracy, and whether the network is overfitted."""
    train, validation = (records.accuracy(network, f"{kind}_accuracy").mean() for kind in ("train", "validation"))
    found = f"{display(network[1])} {100 * train:.0f} % in training, {100 * validation:.0f} % in validation"
    return found + (", overfitted" if train - validation > thresholds.overfitted else "")
