"""What the normalisation lab measured, in sentences: numbers from its tables beside each statement of the notes.

The lab's checks (``checks.json``) say whether a statement holds; the sentences here say what was seen, for every
architecture of the lab, and are silent on what the lab did not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from bnood.lab.results import (
    ACTIVATIONS,
    ARCHITECTURES,
    NORM_LABELS,
    NORMS,
    UNIT_LABELS,
    LabTables,
    architectures,
    at_the_end,
    broke_off,
    first_positions,
    gradient_ratios,
    in_order,
    main_grid,
    percent,
    short,
)


class Statement(NamedTuple):
    """One statement of the notes: what was claimed, the letter of the check on it ("": none), and what measures it."""

    title: str
    claimed: str
    check: str
    measured: Callable[[LabTables], list[str]]


def over_seeds(values: pd.Series, text: Callable[[float], str] = short) -> str:
    """ "0.31 (0.28 to 0.33)": the median over the seeds and their range, if they differ as printed."""
    values = values.dropna()
    low, high = text(values.min()), text(values.max())
    return text(values.median()) + (f" ({low.removesuffix(' %')} to {high})" if low != high else "")


def listed(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"; parts that hold commas are parted by semicolons."""
    if len(parts) < 2:
        return "".join(parts)
    return (
        f"{'; '.join(parts[:-1])}; and {parts[-1]}"
        if "," in "".join(parts)
        else (f"{', '.join(parts[:-1])} and {parts[-1]}")
    )


def _named(architecture: str) -> str:
    return ARCHITECTURES.get(architecture, architecture)


def _with(norm: str) -> str:
    return "without norm" if norm == "none" else f"with {NORM_LABELS.get(norm, norm)}"


def _grid(frame: pd.DataFrame, architecture: str, activation: str) -> pd.DataFrame:
    own = frame[(frame["architecture"] == architecture) & (frame["activation"] == activation)]
    return own if own.empty else main_grid(own)


def ratios(lab: LabTables, architecture: str, activation: str) -> dict[str, tuple[pd.Series, pd.Series]]:
    """For each norm the first layer's gradient norm over the last's, of each seed: at the first and last record."""
    frame = _grid(lab.measurements[lab.measurements["quantity"] == "gradient_norm"], architecture, activation)
    by_norm = {norm: frame[frame["norm"] == norm] for norm in in_order(frame["norm"], NORMS)}
    return {norm: (gradient_ratios(rows, last=False), gradient_ratios(rows)) for norm, rows in by_norm.items()}


def final_accuracy(lab: LabTables, architecture: str, activation: str) -> dict[str, pd.Series]:
    """For each norm the validation accuracy after the last epoch, of each seed; NaN for one that did not get there."""
    frame = _grid(lab.accuracy, architecture, activation)
    frame = frame.assign(final=frame["validation_accuracy"].where(frame["epoch"] == frame["epoch"].max()))
    by_norm = {norm: frame[frame["norm"] == norm] for norm in in_order(frame["norm"], NORMS)}
    return {norm: rows.groupby("seed")["final"].max() for norm, rows in by_norm.items()}


def last_layer(lab: LabTables, architecture: str, activation: str, norm: str, quantity: str) -> tuple[pd.Series, ...]:
    """A quantity of the last hidden layer for each seed, at the first and at the last record; empty if not measured."""
    frame = _grid(lab.measurements[lab.measurements["quantity"] == quantity], architecture, activation)
    frame = frame[(frame["norm"] == norm) & (frame["layer"] == frame["layer"].max())]
    first = frame[frame["step"] == frame["step"].min()]
    return tuple(rows.set_index("seed")["value"] for rows in (first, at_the_end(frame)))


def _each(lab: LabTables, activation: str, sentence: Callable[[LabTables, str, str], str]) -> list[str]:
    """One sentence for each architecture; none for those that did not run with that activation."""
    found = [sentence(lab, architecture, activation) for architecture in architectures(lab)]
    return [text for text in found if text]


def _ratio_without_norm(lab: LabTables, architecture: str, activation: str) -> str:
    found = ratios(lab, architecture, activation)
    if "none" not in found:
        return ""
    first, last = found["none"]
    return (
        f"{_named(architecture)}, {activation}, without norm: the first layer's gradient norm was "
        f"{over_seeds(first)} of the last hidden layer's at the first record and {over_seeds(last)} at the last."
    )


def _ratio_by_norm(lab: LabTables, architecture: str, activation: str) -> str:
    found = [f"{_with(norm)} {over_seeds(last)}" for norm, (_, last) in ratios(lab, architecture, activation).items()]
    name = f"{_named(architecture)}, {activation}"
    return f"{name}: gradient norm of the first layer over the last hidden layer's at the end: {listed(found)}." * bool(
        found
    )


def _accuracy_by_norm(lab: LabTables, architecture: str, activation: str) -> str:
    found = []
    for norm, values in final_accuracy(lab, architecture, activation).items():
        lost = f" ({values.isna().sum()} of {len(values)} seeds broke off)" if values.isna().any() else ""
        found.append(f"{_with(norm)} {over_seeds(values, percent)}{lost}")
    return f"{_named(architecture)}, {activation}: final validation accuracy {listed(found)}." * bool(found)


# Norm and the place where the units' distance from zero is taken, in words.
PLACES = (
    ("none", "preactivation", "without norm"),
    ("bn", "running", "with BatchNorm in evaluation mode"),
    ("bn", "preactivation", "with BatchNorm in training mode"),
    ("bn", "linear", "before that BatchNorm"),
)


def _moves(lab: LabTables, architecture: str, activation: str) -> str:
    found = []
    for norm, place, words in PLACES:
        first, last = last_layer(lab, architecture, activation, norm, f"{place}_offset")
        if len(last):
            found.append(f"{words} from {over_seeds(first)} to {over_seeds(last)}")
    name = f"{_named(architecture)}, {activation}, last hidden layer"
    return f"{name}: the distance of the units' means from zero, in standard deviations, went {listed(found)}." * bool(
        found
    )


def _replaced(lab: LabTables, norm: str) -> list[str]:
    """What the norm got and what it gave, in the last hidden layer at the end of training."""
    found = []
    for architecture in architectures(lab):
        for activation in in_order(lab.measurements["activation"], ACTIVATIONS):
            sides = []
            for place, word in (("linear", "in"), ("preactivation", "out")):
                values = {
                    title: last_layer(lab, architecture, activation, norm, f"{place}_{of}")[1]
                    for of, title in (("mean", "mean"), ("std", "std"), ("offset", "units' distance from zero"))
                }
                parts = [f"{title} {over_seeds(value)}" for title, value in values.items() if len(value)]
                sides += [f"{word}: {', '.join(parts)}"] * bool(parts)
            name = f"{_named(architecture)}, {activation}, last hidden layer at the end"
            found += [f"{name}: {'; '.join(sides)}."] * bool(sides)
    return found


def _lost_units(lab: LabTables) -> list[str]:
    found = []
    for architecture in architectures(lab):
        own = lab.measurements[(lab.measurements["architecture"] == architecture)]
        own = own[(own["activation"] == "relu") & own["quantity"].isin(["dead_share", "always_on_share"])]
        if own.empty:
            continue
        own = at_the_end(first_positions(own))
        rate = own["learning_rate"].max()
        own = own[own["learning_rate"] == rate]
        own = own[own["suffix"] == own["suffix"].min()]
        for quantity in in_order(own["quantity"], UNIT_LABELS):
            rows = own[own["quantity"] == quantity]
            early = {norm: f" (broke off in epoch {epoch:.3g})" for norm, epoch in broke_off(rows).items()}
            means = rows.groupby(["norm", "seed"])["value"].mean()
            parts = [
                f"{_with(norm)} {over_seeds(means[norm], percent)}{early.get(norm, '')}"
                for norm in in_order(rows["norm"], NORMS)
            ]
            what = f"{_named(architecture)}, relu, learning rate {rate:g}: share of units {UNIT_LABELS[quantity]}"
            found.append(f"{what} at the last record (mean of the layers): {listed(parts)}.")
    return found


STATEMENTS = (
    Statement(
        "Sigmoid nets starve their lower layers",
        "Through layers of sigmoids the gradient shrinks, so that the lower layers hardly learn.",
        "a",
        lambda lab: _each(lab, "sigmoid", _ratio_without_norm),
    ),
    Statement(
        "ReLU cures that",
        "With ReLU the gradient reaches the lower layers.",
        "",
        lambda lab: _each(lab, "relu", _ratio_without_norm),
    ),
    Statement(
        "ReLU units die, or turn linear",
        "A ReLU unit dies when all its inputs fall below zero, and is a plain linear unit when all lie above; a norm "
        "keeps units from it.",
        "e",
        _lost_units,
    ),
    Statement(
        "BatchNorm re-places each unit's inputs",
        "BatchNorm moves the inputs of each unit to a learned place before the activation.",
        "",
        lambda lab: _replaced(lab, "bn"),
    ),
    Statement(
        "LayerNorm does the like per layer",
        "LayerNorm re-places the inputs too, but with one mean for all units of a layer and sample.",
        "",
        lambda lab: _replaced(lab, "ln"),
    ),
    Statement(
        "With sigmoid, a norm makes a large difference",
        "With sigmoid, BatchNorm made a large difference; so should LayerNorm, by letting the gradient through.",
        "b",
        lambda lab: _each(lab, "sigmoid", _ratio_by_norm) + _each(lab, "sigmoid", _accuracy_by_norm),
    ),
    Statement(
        "With ReLU, BatchNorm makes little difference",
        "With ReLU, BatchNorm changed the accuracy little.",
        "c",
        lambda lab: _each(lab, "relu", _accuracy_by_norm),
    ),
    Statement(
        "Pre-activations move to around zero",
        "With BatchNorm the last layer's pre-activations moved from far off to around zero over the epochs.",
        "d",
        lambda lab: _each(lab, "sigmoid", _moves) + _each(lab, "relu", _moves),
    ),
    Statement(
        "GroupNorm: between LayerNorm and BatchNorm?",
        "Nothing was claimed; the question is where GroupNorm falls between LayerNorm and BatchNorm.",
        "f",
        lambda lab: [text for name in ("sigmoid", "relu") for text in _each(lab, name, _accuracy_by_norm)],
    ),
)


def caption(lab: LabTables, kind: str, architecture: str) -> str:
    """One sentence on a picture (``gradient_norm``, ``preactivations``, ``accuracy``, ``units``), with its numbers."""
    return {
        "gradient_norm": _gradient_caption,
        "preactivations": _preactivation_caption,
        "accuracy": _accuracy_caption,
        "units": _unit_caption,
    }[kind](lab, architecture)


def _activations(lab: LabTables, architecture: str) -> list[str]:
    return in_order(lab.measurements.loc[lab.measurements["architecture"] == architecture, "activation"], ACTIVATIONS)


def _gradient_caption(lab: LabTables, architecture: str) -> str:
    found = {
        f"{activation} {_with(norm)}": last.median()
        for activation in _activations(lab, architecture)
        for norm, (_, last) in ratios(lab, architecture, activation).items()
    }
    ends = pd.Series(found).dropna()
    if ends.empty:
        return "Where it is grey, no gradient reached the layer."
    return (
        "At the end of training the gradient of the first layer, relative to the last hidden layer's, was smallest for "
        f"{ends.idxmin()} ({short(ends.min())}) and largest for {ends.idxmax()} ({short(ends.max())}; "
        "medians of the seeds)."
    )


def _preactivation_caption(lab: LabTables, architecture: str) -> str:
    found = []
    places = (("none", "preactivation", ""), ("bn", "preactivation", " in training mode"),
              ("bn", "running", " in evaluation mode"))  # fmt: skip
    for activation in ("sigmoid", "relu"):
        for norm, place, mode in places:
            first, last = last_layer(lab, architecture, activation, norm, f"{place}_mean")
            if len(last):
                start, end = first.sort_index().iloc[0], last.sort_index().iloc[0]
                found.append(f"from {short(start)} to {short(end)} for {activation} {_with(norm)}{mode}")
    seen = "numbers at the rims: the share of values beyond the recorded range"
    return f"While training, the mean (dot) went {listed(found)} (lowest seed; {seen})."


def _accuracy_caption(lab: LabTables, architecture: str) -> str:
    found = {
        f"{activation} {_with(norm)}": values.mean()
        for activation in _activations(lab, architecture)
        for norm, values in final_accuracy(lab, architecture, activation).items()
    }
    ends = pd.Series(found).dropna()
    if ends.empty:
        return "No validation accuracy was recorded."
    return (
        f"The final validation accuracy was highest for {ends.idxmax()} ({percent(ends.max())}) and lowest for "
        f"{ends.idxmin()} ({percent(ends.min())}; means over the seeds)."
    )


def _unit_caption(lab: LabTables, architecture: str) -> str:
    own = lab.measurements[lab.measurements["architecture"] == architecture]
    own = own[own["quantity"].isin(list(UNIT_LABELS)) & own["value"].notna()]
    keys = ["quantity", "activation", "norm", "learning_rate", "layer"]
    means = at_the_end(first_positions(own)).groupby(keys)["value"].mean()
    found = []
    for quantity in in_order(own["quantity"], UNIT_LABELS):
        largest = means[quantity].idxmax()
        activation, norm, rate, layer = largest
        where = f"layer {layer}, {activation} {_with(norm)}, learning rate {rate:g}"
        found.append(f"{percent(means[quantity].max())} {UNIT_LABELS[quantity]} ({where})")
    return f"The largest shares at the end of training, means over the seeds: {listed(found)}."
