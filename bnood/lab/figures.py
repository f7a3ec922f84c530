"""The pictures of the normalisation lab: tables in, matplotlib figures out.

:class:`bnood.lab.results.LabTables` holds what a lab wrote; the four functions below each draw one picture of one of
its architectures. They are pure, use no global state (no pyplot), and draw what stands in the tables. A norm has one
colour and one marker in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bnood.errors import UserError
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
    checked,
    first_positions,
    gradient_ratios,
    in_order,
    main_grid,
    short,
)
from bnood.report.figures import DPI, NORM_MARKERS, STYLE
from bnood.training.run_folder import write_beside

NORM_COLOURS = {"none": "#333333", "bn": "#0072B2", "ln": "#D55E00", "gn": "#009E73"}  # Okabe and Ito's, and grey
DECADES = 12  # smaller gradients than this many powers of ten below the largest share the darkest colour
RIDGES = 9  # epochs in a ridge plot
RIDGE_ACTIVATIONS = ("sigmoid", "relu")
MEANS = {"training": "preactivation_mean", "evaluation": "running_mean"}  # of the ridges, by mode
SMALLEST_AXIS = 0.02  # of the shares of units: smaller ones need not be told apart
NOTHING = "#B9B9B9"  # where a gradient is exactly zero, or not a number


def title_of(frame: pd.DataFrame) -> str:
    """ "MLP, 3 seeds"."""
    name, seeds = str(frame["architecture"].iloc[0]), frame["seed"].nunique()
    return f"{ARCHITECTURES.get(name, name)}, {seeds} seed{'s' if seeds != 1 else ''}"


def _part(frame: pd.DataFrame, architecture: str, what: str) -> pd.DataFrame:
    own = frame[frame["architecture"] == architecture]
    if own.empty:
        raise UserError(f"the lab has no {what} of the architecture '{architecture}'")
    return own


def _blank(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="#777777")
    axes.set_axis_off()


def _rate(frame: pd.DataFrame) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(frame["learning_rate"].unique()))


@matplotlib.rc_context(STYLE)
def gradient_heat_map(measurements: pd.DataFrame, architecture: str) -> Figure:
    """Gradient norm of each layer's weights over the epochs: a panel per activation (rows) and norm (columns).

    Colours are logarithmic and the same in all panels; a cell is the geometric mean over the seeds.
    """
    frame = main_grid(_part(measurements[measurements["quantity"] == "gradient_norm"], architecture, "gradient norms"))
    rows, columns = in_order(frame["activation"], ACTIVATIONS), in_order(frame["norm"], NORMS)
    positive = frame.loc[(frame["value"] > 0) & np.isfinite(frame["value"]), "value"]
    if positive.empty:
        raise UserError(f"every gradient norm of the architecture '{architecture}' is zero or not a number")
    lowest = max(positive.min(), positive.max() / 10**DECADES)
    scale = LogNorm(lowest, positive.max() if positive.max() > lowest else 2 * lowest)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=NOTHING)
    figure = Figure(figsize=(2.2 + 2.35 * len(columns), 1.3 + 2.35 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
    for activation, line in zip(rows, grid, strict=True):
        for norm, axes in zip(columns, line, strict=True):
            own = frame[(frame["activation"] == activation) & (frame["norm"] == norm)]
            axes.set_title(f"{activation}, {NORM_LABELS.get(norm, norm)}", fontweight="bold")
            if own.empty:
                _blank(axes)
                continue
            ends = gradient_ratios(own)
            axes.set_title(f"{axes.get_title()}\nfirst ÷ last layer: {short(ends.median())}")
            with np.errstate(divide="ignore"):
                logs = own.assign(value=np.log(own["value"])).pivot_table("value", "layer", "epoch", dropna=False)
            mesh = axes.pcolormesh(
                logs.columns, logs.index, np.exp(logs), norm=scale, cmap=colours, shading="nearest", rasterized=True
            )
            axes.set_yticks(_layer_ticks(logs.index.to_list()))
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid[:, 0]:
        axes.set_ylabel("layer (1 = at the input)")
    label = "gradient norm (nats per unit of weight)"
    extend = "min" if positive.min() < lowest else "neither"
    figure.colorbar(mesh, ax=grid, label=label, extend=extend, format=_power_of_ten, shrink=0.9, pad=0.015)
    figure.suptitle(
        f"Gradient norm by layer over the epochs: {title_of(frame)} (geometric mean; grey: zero)\n"
        "Above each panel: the first layer's gradient over the last layer's at the end, median of seeds"
    )
    return figure


def _power_of_ten(value: float, place: int | None = None) -> str:
    """ "10⁻⁴" without the mathematical text that the style switches off."""
    exponent = round(np.log10(value))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _layer_ticks(layers: list[int]) -> list[int]:
    """The first and the last layer, and of the others every one, every second, ..."""
    between = max(1, round(len(layers) / 6))
    return sorted({layers[0], layers[-1], *(layer for layer in layers[::between] if layer <= layers[-1] - between)})


@matplotlib.rc_context(STYLE)
def preactivation_ridges(histograms: pd.DataFrame, measurements: pd.DataFrame, architecture: str) -> Figure:
    """How the last layer's pre-activations drift over the epochs: without norm (left), with BatchNorm beside it.

    With BatchNorm there are two: in training mode the batch's own statistics put each unit at the norm's shift, in
    evaluation mode the running averages do what they can. One ridge per epoch, the first at the top, of the lowest
    seed; the panels of an activation share their axis. Dots are the means (``preactivation_mean``, ``running_mean``);
    numbers at the rims say what share lies beyond the recorded bins.
    """
    frame = main_grid(_part(histograms, architecture, "histograms"))
    frame = frame[frame["norm"].isin(["none", "bn"]) & frame["activation"].isin(RIDGE_ACTIVATIONS)]
    if frame.empty:
        raise UserError(f"the lab has no sigmoid or ReLU network, without norm or with bn, of the '{architecture}'")
    seed, layer = int(frame["seed"].min()), int(frame["layer"].max())
    frame = frame[(frame["seed"] == seed) & (frame["layer"] == layer)]
    means = main_grid(_part(measurements, architecture, "measurements"))
    means = means[(means["seed"] == seed) & (means["layer"] == layer) & means["quantity"].isin(list(MEANS.values()))]
    rows = in_order(frame["activation"], ACTIVATIONS)
    columns = [("none", "training"), ("bn", "training"), ("bn", "evaluation")]
    columns = columns[: 3 if frame["mode"].eq("evaluation").any() else 2]
    figure = Figure(figsize=(1.5 + 4 * len(columns), 1.2 + 3.4 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex="row")
    for activation, line in zip(rows, grid, strict=True):
        own, centres = frame[frame["activation"] == activation], means[means["activation"] == activation]
        for (norm, mode), axes in zip(columns, line, strict=True):
            title = f"{activation}, {NORM_LABELS[norm]}" + (f" in {mode} mode" if norm == "bn" else "")
            axes.set_title(title, color=NORM_COLOURS[norm], fontweight="bold")
            part = own[own["norm"].eq(norm) & own["mode"].eq(mode)]
            dots = centres[centres["norm"].eq(norm) & centres["quantity"].eq(MEANS[mode])]
            _blank(axes) if part.empty else _ridges(axes, part, dots.set_index("step")["value"], NORM_COLOURS[norm])
        line[0].set_xlim(_central(own, centres["value"]))
        line[0].set_ylabel("epoch (later ones below)")
    for axes in grid[-1]:
        axes.set_xlabel("pre-activation (input of the activation, no unit)")
    name = ARCHITECTURES.get(architecture, architecture)
    what = f"Pre-activations of the last hidden layer ({layer})"
    figure.suptitle(f"{what}: {name}, seed {seed}, probe images (dots: means)")
    return figure


def shown_steps(steps: Iterable[int], most: int = RIDGES) -> list[int]:
    """At most `most` of the recorded steps, evenly spaced, the first and the last among them."""
    found = sorted(set(steps))
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[place] for place in places]


def _ridges(axes: Axes, rows: pd.DataFrame, means: pd.Series, colour: str) -> None:
    """Densities under each other; the highest reaches 1.7 rows up."""
    inside = rows[np.isfinite(rows["bin_low"]) & np.isfinite(rows["bin_high"])]
    ridges = {step: inside[inside["step"] == step].sort_values("bin_low") for step in shown_steps(inside["step"])}
    densities = {step: (r["share"] / (r["bin_high"] - r["bin_low"])).to_numpy() for step, r in ridges.items()}
    tallest = max(density.max() for density in densities.values()) or 1.0
    for place, (step, ridge) in enumerate(ridges.items()):
        edges = np.append(ridge["bin_low"], ridge["bin_high"].iloc[-1])
        heights = densities[step] * 1.7 / tallest
        strength = 0.4 + 0.5 * place / max(len(ridges) - 1, 1)  # later ones darker; opaque, so that they do not mix
        tint = tuple(1 - strength * (1 - np.array(to_rgb(colour))))
        axes.stairs(heights - place, edges, baseline=-place, fill=True, color=tint, zorder=3 * place + 2)
        axes.stairs(heights - place, edges, baseline=None, color="white", linewidth=1.1, zorder=3 * place + 3)
        axes.axhline(-place, color=tint, linewidth=0.7, zorder=3 * place + 4)
        if np.isfinite(means.get(step, np.nan)):
            axes.plot(means[step], -place, "o", color=colour, markeredgecolor="white", markersize=6, zorder=100)
        _beyond(axes, rows[rows["step"] == step], place)
    axes.axvline(0, color="#777777", linewidth=1, linestyle=(0, (4, 2)), zorder=99)
    epochs = [ridge["epoch"].iloc[0] for ridge in ridges.values()]
    axes.set_yticks([-place for place in range(len(epochs))], [f"{round(epoch, 1):g}" for epoch in epochs])
    axes.set_ylim(0.4 - len(epochs), 1.9)


def _beyond(axes: Axes, rows: pd.DataFrame, place: int) -> None:
    """At the rims of a ridge, the shares below the lowest and above the highest bin, where they are a percent."""
    below, above = (rows.loc[np.isinf(rows[edge]), "share"].sum() for edge in ("bin_low", "bin_high"))
    for share, x, text, side in ((below, 0.01, "← {:.0%}", "left"), (above, 0.99, "{:.0%} →", "right")):
        if share >= 0.01:
            style: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
            label = axes.text(x, 0.3 - place, text.format(share), transform=axes.get_yaxis_transform(), bbox=style)
            label.set(ha=side, va="center", fontsize=8.5, zorder=101)


def _central(rows: pd.DataFrame, means: pd.Series) -> tuple[float, float]:
    """Where all but 0.4 % of the pre-activations in bins lie, in any epoch; zero and all means are within."""
    rows = rows[rows["share"] > 0].sort_values("bin_low")
    below = rows["share"].cumsum() / rows["share"].sum()
    lows = rows["bin_low"].where(np.isfinite(rows["bin_low"]), rows["bin_high"])
    highs = rows["bin_high"].where(np.isfinite(rows["bin_high"]), rows["bin_low"])
    centres = means[np.isfinite(means)]
    low = min(lows[below >= 0.002].min(), centres.min() if len(centres) else 0.0, 0.0)
    high = max(highs[(below.shift(fill_value=0.0) < 0.998)].max(), centres.max() if len(centres) else 0.0, 0.0)
    room = 0.06 * (high - low)
    return low - room, high + room


@matplotlib.rc_context(STYLE)
def accuracy_curves(accuracy: pd.DataFrame, architecture: str) -> Figure:
    """Validation (top) and training accuracy over the epochs: a panel per activation, a line per norm.

    Lines are means over the seeds, bands their range; broken lines are nets with the norm after the activation.
    """
    frame = main_grid(_part(accuracy, architecture, "accuracies"), both_positions=True)
    frame = frame.assign(after=frame["norm_position"].eq("after"))
    columns = in_order(frame["activation"], ACTIVATIONS)
    figure = Figure(figsize=(max(9.0, 1.4 + 2.9 * len(columns)), 6.4), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False, sharex=True, sharey=True)
    for name, line in zip(("validation_accuracy", "train_accuracy"), grid, strict=True):
        for activation, axes in zip(columns, line, strict=True):
            own = frame[frame["activation"] == activation]
            for norm in in_order(own["norm"], NORMS):
                for after, rows in own[own["norm"] == norm].groupby("after"):
                    over = rows.groupby("epoch")[name].agg(["mean", "min", "max"]).dropna()
                    _curve(axes, over, norm, broken=bool(after))
            axes.set_title(f"{activation} (learning rate {_rate(own)})", fontweight="bold")
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        line[0].set_ylabel(f"{name.replace('_', ' ').replace('train ', 'training ')}\n(share of images)")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    handles = _norm_legend(in_order(frame["norm"], NORMS))
    if frame["after"].any():
        handles.append(Line2D([], [], color="#777777", linestyle="--", label="norm after the activation"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(f"Accuracy by activation and norm: {title_of(frame)} (line: mean; band: range over seeds)")
    return figure


def _curve(axes: Axes, over: pd.DataFrame, norm: str, broken: bool) -> None:
    colour = NORM_COLOURS.get(norm, "#777777")
    axes.fill_between(over.index, over["min"], over["max"], color=colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(over.index, over["mean"], color=colour, linewidth=1.7, linestyle="--" if broken else "-")
    line.set(marker=NORM_MARKERS.get(norm, "v"), markersize=5, markevery=max(1, len(over) // 5))


def _norm_legend(norms: list[str]) -> list[Line2D]:
    colours, markers = (lambda norm: NORM_COLOURS.get(norm, "#777777")), (lambda norm: NORM_MARKERS.get(norm, "v"))
    return [Line2D([], [], color=colours(n), marker=markers(n), label=NORM_LABELS.get(n, n)) for n in norms]


@matplotlib.rc_context(STYLE)
def units_by_layer(measurements: pd.DataFrame, architecture: str) -> Figure:
    """Dead, always-on and saturated units by layer at the last recorded step: a line per norm, a row per setting.

    Dots are means over the seeds, bars their range. Each panel's axis begins at 0 and ends a little above its highest
    bar.
    """
    own = _part(measurements, architecture, "measurements")
    frame = own[own["quantity"].isin(list(UNIT_LABELS)) & own["value"].notna()]
    if frame.empty:
        raise UserError(f"the lab counted no dead, always-on or saturated units of the architecture '{architecture}'")
    frame = at_the_end(first_positions(frame))
    columns = [
        (activation, quantity)
        for activation in in_order(frame["activation"], ACTIVATIONS)
        for quantity in in_order(frame.loc[frame["activation"] == activation, "quantity"], UNIT_LABELS)
    ]
    settings = {
        activation: sorted(rows.groupby(["suffix", "learning_rate"]).groups)
        for activation, rows in frame.groupby("activation")
    }
    rows = max(len(own) for own in settings.values())
    size = (max(7.5, 1.2 + 3.1 * len(columns)), 1.6 + 2.5 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    norms = in_order(frame["norm"], NORMS)
    for row, line in enumerate(grid):
        for (activation, quantity), axes in zip(columns, line, strict=True):
            if row >= len(settings[activation]):
                axes.set_axis_off()
                continue
            suffix, rate = settings[activation][row]
            found = frame["activation"].eq(activation) & frame["quantity"].eq(quantity)
            axes.set_title(f"{activation}: {UNIT_LABELS[quantity]}\n(learning rate {rate:g})", fontweight="bold")
            setting = frame["learning_rate"].eq(rate) & frame["suffix"].eq(suffix)
            _shares(axes, frame[found & setting], norms)
            if row == len(settings[activation]) - 1:
                axes.set_xlabel("layer (1 = at the input)")
    figure.supylabel("share of the layer's units", fontsize=10)
    figure.legend(handles=_norm_legend(norms), loc="outside lower center", ncols=len(norms))
    figure.suptitle(
        f"Units at the end of training: {title_of(frame)} (dot: mean; bar: range over seeds; the axes end differently)"
    )
    return figure


def _shares(axes: Axes, rows: pd.DataFrame, norms: list[str]) -> None:
    if rows.empty:
        return _blank(axes)
    for norm in in_order(rows["norm"], NORMS):
        over = rows[rows["norm"] == norm].groupby("layer")["value"].agg(["mean", "min", "max"])
        place = over.index + 0.17 * (norms.index(norm) - (len(norms) - 1) / 2)  # beside each other, not on top
        colour = NORM_COLOURS.get(norm, "#777777")
        axes.vlines(place, over["min"], over["max"], color=colour, linewidth=1.6, alpha=0.6)
        axes.plot(place, over["mean"], color=colour, marker=NORM_MARKERS.get(norm, "v"), markersize=5, linewidth=1.4)
    early = [f"{NORM_LABELS.get(norm, norm)} broke off in epoch {epoch:.3g}" for norm, epoch in broke_off(rows).items()]
    axes.text(0.02, 0.98, "\n".join(early), transform=axes.transAxes, va="top", fontsize=9, color="#555555")
    top = min(1.0, max(SMALLEST_AXIS, 1.25 * rows["value"].max()))  # room for the names of nets that broke off
    axes.set(ylim=(-0.04 * top, 1.04 * top), xticks=_layer_ticks(sorted(rows["layer"].unique())))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.05 else 1))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    return None


def lab_figure_names(lab: LabTables) -> list[str]:
    """Names of the pictures that the lab's tables allow (``gradient_norm_mlp``), in the order shown."""
    ridged = lab.histograms["norm"].isin(["none", "bn"]) & lab.histograms["activation"].isin(RIDGE_ACTIVATIONS)
    counted = lab.measurements["quantity"].isin(list(UNIT_LABELS)) & lab.measurements["value"].notna()
    names = []
    for name in architectures(lab):
        names += [f"gradient_norm_{name}"]
        names += [f"preactivations_{name}"] * bool((ridged & lab.histograms["architecture"].eq(name)).any())
        names += [f"accuracy_{name}"]
        names += [f"units_{name}"] * bool((counted & lab.measurements["architecture"].eq(name)).any())
    return names


def lab_figure(lab: LabTables, name: str) -> Figure:
    """The picture of that name."""
    kind = next(kind for kind in ("gradient_norm", "preactivations", "accuracy", "units") if name.startswith(kind))
    architecture = name.removeprefix(f"{kind}_")
    if kind == "gradient_norm":
        return gradient_heat_map(lab.measurements, architecture)
    if kind == "preactivations":
        return preactivation_ridges(lab.histograms, lab.measurements, architecture)
    if kind == "accuracy":
        return accuracy_curves(lab.accuracy, architecture)
    return units_by_layer(lab.measurements, architecture)


@matplotlib.rc_context(STYLE)
def write_lab_figures(folder: Path, lab: LabTables) -> list[Path]:
    """Draw all pictures as PNGs into ``figures/`` of the lab's `folder`; give their paths in the order shown.

    Raises:
        UserError: a table is empty or lacks columns, or a file cannot be written.
    """
    checked(lab)
    paths = []
    for name in lab_figure_names(lab):
        paths.append(Path(folder) / "figures" / f"{name}.png")
        write_beside(paths[-1], partial(lab_figure(lab, name).savefig, format="png", dpi=DPI))
    return paths
