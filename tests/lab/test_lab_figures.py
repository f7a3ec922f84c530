"""What the lab's pictures draw is what its tables say: the artists are read back and compared with the input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import FillBetweenPolyCollection, LineCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import StepPatch
from synthetic_lab import make_lab

from bnood.errors import UserError
from bnood.lab.figures import (
    NORM_COLOURS,
    accuracy_curves,
    gradient_heat_map,
    lab_figure_names,
    preactivation_ridges,
    shown_steps,
    units_by_layer,
    write_lab_figures,
)
from bnood.lab.results import LabTables, broke_off, gradient_ratios, main_grid, read_lab

TITLES = {"none": "no norm", "bn": "BatchNorm", "ln": "LayerNorm", "gn": "GroupNorm"}


@pytest.fixture(scope="module")
def lab() -> LabTables:
    return make_lab(layers=4, epochs=4)


def by_title(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def is_cut_off(figure: Figure) -> bool:
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    collide = any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    return collide or box.x0 < -0.01 or box.y0 < -0.01 or box.x1 > width + 0.01 or box.y1 > height + 0.01


def measured(lab: LabTables, network: str, quantity: str) -> pd.DataFrame:
    rows = lab.measurements
    return rows[(rows["network"] == network) & (rows["quantity"] == quantity)]


def test_heat_map_holds_the_geometric_means_of_the_main_grid(lab: LabTables) -> None:
    figure = gradient_heat_map(lab.measurements, "mlp")
    assert not is_cut_off(figure)
    panels = by_title(figure)
    assert len(panels) == 8
    for title, axes in panels.items():
        activation, norm = title.splitlines()[0].split(", ")
        short = {label: name for name, label in TITLES.items()}[norm]
        rows = measured(lab, f"mlp-{activation}-{short}", "gradient_norm")
        logs = np.log10(rows["value"]).groupby([rows["layer"], rows["epoch"]]).mean().unstack()
        (mesh,) = (artist for artist in axes.collections if isinstance(artist, QuadMesh))
        np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(logs.shape), 10 ** logs.to_numpy())
        corners = mesh.get_coordinates()
        np.testing.assert_allclose(corners[:, 0, 1][:-1] + 0.5, [1, 2, 3, 4])
        np.testing.assert_allclose((corners[0, :-1, 0] + corners[0, 1:, 0]) / 2, logs.columns)
        assert mesh.norm is next(iter(panels.values())).collections[0].norm, "one scale of colours for all panels"
        last = rows[rows["step"] == rows["step"].max()].set_index(["seed", "layer"])["value"].unstack()
        assert title.endswith(f"{(last[1] / last[4]).median():.2g}")


def test_heat_map_leaves_a_gradient_of_zero_out_of_the_colours(lab: LabTables) -> None:
    dead = lab.measurements.copy()
    here = dead["network"].eq("mlp-relu-none") & dead["quantity"].eq("gradient_norm") & dead["layer"].eq(2)
    dead.loc[here & dead["seed"].eq(1), "value"] = 0.0
    axes = next(
        axes for title, axes in by_title(gradient_heat_map(dead, "mlp")).items() if title.startswith("relu, no")
    )
    mesh = axes.collections[0]
    values = np.asarray(mesh.get_array()).reshape(4, -1)
    assert (values[1] == 0).all() and (values[[0, 2, 3]] > 0).all()
    assert to_hex(mesh.cmap(mesh.norm(values))[1, 0]) == "#b9b9b9"


def test_ridges_are_the_histograms_of_the_last_layer(lab: LabTables) -> None:
    figure = preactivation_ridges(lab.histograms, lab.measurements, "mlp")
    assert not is_cut_off(figure)
    panels = by_title(figure)
    beside = ["no norm", "BatchNorm in training mode", "BatchNorm in evaluation mode"]
    assert list(panels) == [f"{activation}, {place}" for activation in ("sigmoid", "relu") for place in beside]
    for title, norm, mode, mean in (
        ("sigmoid, no norm", "none", "training", "preactivation_mean"),
        ("relu, BatchNorm in training mode", "bn", "training", "preactivation_mean"),
        ("sigmoid, BatchNorm in evaluation mode", "bn", "evaluation", "running_mean"),
    ):
        axes, activation = panels[title], title.split(",")[0]
        network = f"mlp-{activation}-{norm}"
        rows = lab.histograms.query("network == @network and seed == 0 and layer == 4")
        rows = rows[rows["mode"] == mode]
        ridges = [patch for patch in axes.patches if isinstance(patch, StepPatch) and patch.get_fill()]
        steps = shown_steps(rows["step"])
        assert len(ridges) == len(steps) == 9
        heights = []
        for place, (ridge, step) in enumerate(zip(ridges, steps, strict=True)):
            inside = rows[(rows["step"] == step) & np.isfinite(rows["bin_low"]) & np.isfinite(rows["bin_high"])]
            data = ridge.get_data()
            np.testing.assert_allclose(data.edges, np.linspace(-6, 6, 62))
            heights.append(np.c_[data.values + place, inside["share"]])
        drawn, shares = np.concatenate(heights).T
        np.testing.assert_allclose(drawn / drawn.max(), shares / shares.max(), atol=1e-12)
        means = measured(lab, network, mean).query("seed == 0 and layer == 4").set_index("step")["value"]
        dots = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(dots, [(means[step], -place) for place, step in enumerate(steps)])
        low, high = axes.get_xlim()
        assert low < min(0, *means) and max(0, *means) < high


def test_ridges_say_what_lies_beyond_the_bins(lab: LabTables) -> None:
    axes = by_title(preactivation_ridges(lab.histograms, lab.measurements, "mlp"))["sigmoid, no norm"]
    rows = lab.histograms.query("network == 'mlp-sigmoid-none' and seed == 0 and layer == 4 and bin_high == inf")
    said = [text.get_text() for text in axes.texts if text.get_text().endswith("→")]
    assert said == [f"{share:.0%} →" for share in rows.sort_values("step")["share"]]
    assert len(said) == 9


def test_accuracy_lines_are_means_and_bands_the_range_over_seeds(lab: LabTables) -> None:
    figure = accuracy_curves(lab.accuracy, "mlp")
    assert not is_cut_off(figure)
    for place, (name, activation) in enumerate(
        (name, activation) for name in ("validation_accuracy", "train_accuracy") for activation in ("sigmoid", "relu")
    ):
        axes = figure.axes[place]
        assert axes.get_title() == f"{activation} (learning rate 0.05)"
        drawn = {(line.get_color(), line.get_linestyle()): line for line in axes.lines}
        bands = [band for band in axes.collections if isinstance(band, FillBetweenPolyCollection)]
        assert len(drawn) == len(bands) == 5
        for norm, after in (("none", ""), ("bn", ""), ("bn", "-after"), ("ln", ""), ("gn", "")):
            rows = lab.accuracy[lab.accuracy["network"] == f"mlp-{activation}-{norm}{after}"]
            line = drawn[NORM_COLOURS[norm], "--" if after else "-"]
            np.testing.assert_allclose(line.get_xydata(), rows.groupby("epoch")[name].mean().reset_index())
            ends = rows.groupby("epoch")[name].agg(["min", "max"]).to_numpy()
            corners = [band.get_paths()[0].vertices[:, 1] for band in bands]
            assert any(np.isin(ends.ravel().round(9), corner.round(9)).all() for corner in corners)


def test_units_are_those_of_the_last_record_at_each_learning_rate(lab: LabTables) -> None:
    figure = units_by_layer(lab.measurements, "mlp")
    assert not is_cut_off(figure)
    panels = by_title(figure)
    labels = {title: axes.get_xlabel() for title, axes in panels.items() if axes.axison}
    assert labels == {  # sigmoid was run at one learning rate: nothing stands below it
        "sigmoid: saturated\n(learning rate 0.05)": "layer (1 = at the input)",
        **{f"relu: {kind}\n(learning rate 0.05)": "" for kind in ("dead", "always on")},
        **{f"relu: {kind}\n(learning rate 0.5)": "layer (1 = at the input)" for kind in ("dead", "always on")},
    }
    for rate, suffix in ((0.05, ""), (0.5, "-high")):
        axes = panels[f"relu: dead\n(learning rate {rate:g})"]
        assert len(axes.lines) == 4
        for line, norm in zip(axes.lines, TITLES, strict=True):
            rows = measured(lab, f"mlp-relu-{norm}{suffix}", "dead_share")
            last = rows[rows["step"] == rows["step"].max()].groupby("layer")["value"]
            assert line.get_color() == NORM_COLOURS[norm]
            np.testing.assert_array_equal(np.round(line.get_xdata()), [1, 2, 3, 4])
            np.testing.assert_allclose(line.get_ydata(), last.mean())
        bars = [bar for bar in axes.collections if isinstance(bar, LineCollection)]
        np.testing.assert_allclose([bar[:, 1] for bar in bars[-1].get_segments()], last.agg(["min", "max"]))
        highest = max(bar[:, 1].max() for each in bars for bar in each.get_segments())
        assert highest <= axes.get_ylim()[1] <= max(0.021, min(1.04, 1.31 * highest))


def test_a_network_that_broke_off_is_named(lab: LabTables) -> None:
    rows = lab.measurements
    gone = rows["network"].eq("mlp-relu-none-high") & rows["seed"].eq(1) & rows["epoch"].gt(1.5)
    figure = units_by_layer(rows[~gone], "mlp")
    said = [text.get_text() for text in by_title(figure)["relu: dead\n(learning rate 0.5)"].texts]
    assert said == ["no norm broke off in epoch 1.5"]
    assert broke_off(rows) == {}


def test_main_grid_takes_networks_without_suffix_and_the_norm_before_the_activation(lab: LabTables) -> None:
    networks = set(main_grid(lab.measurements)["network"])
    assert networks == {f"mlp-{activation}-{norm}" for activation in ("sigmoid", "relu") for norm in TITLES}
    both = set(main_grid(lab.measurements, both_positions=True)["network"])
    assert both - networks == {"mlp-sigmoid-bn-after", "mlp-relu-bn-after"}
    only_after = lab.measurements[lab.measurements["network"] != "mlp-relu-bn"]
    assert "mlp-relu-bn-after" in set(main_grid(only_after)["network"])


def test_gradient_ratio_by_hand() -> None:
    rows = pd.DataFrame(
        [("a", 0.1, seed, step, layer, 10.0 ** (layer + step + seed * layer)) for seed in (0, 1) for step in (0, 1)
         for layer in (1, 2, 3)],
        columns=["network", "learning_rate", "seed", "step", "layer", "value"],
    )  # fmt: skip
    rows.loc[(rows["step"] == 1) & (rows["layer"] == 1), "value"] = 7.0
    np.testing.assert_allclose(gradient_ratios(rows, last=False), [1e-2, 1e-4])
    np.testing.assert_allclose(gradient_ratios(rows), [7e-4, 7e-7])


def test_files_are_written_in_the_order_of_the_page(lab: LabTables, tmp_path: Path) -> None:
    few = replace(lab, measurements=lab.measurements.query("seed == 0"))
    paths = write_lab_figures(tmp_path, few)
    assert [path.stem for path in paths] == lab_figure_names(few)
    assert lab_figure_names(few) == ["gradient_norm_mlp", "preactivations_mlp", "accuracy_mlp", "units_mlp"]
    for path in paths:
        assert path.parent == tmp_path / "figures"
        assert imread(path).shape[1] > 1000
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)


def test_pictures_of_what_was_not_run_are_left_out(lab: LabTables) -> None:
    only = replace(
        lab,
        measurements=lab.measurements.query("norm == 'ln' and not quantity.str.endswith('_share')"),
        histograms=lab.histograms.query("norm == 'ln'"),
        accuracy=lab.accuracy.query("norm == 'ln'"),
    )
    assert lab_figure_names(only) == ["gradient_norm_mlp", "accuracy_mlp"]
    with pytest.raises(UserError, match="counted no dead"):
        units_by_layer(only.measurements, "mlp")
    with pytest.raises(UserError, match="no sigmoid or ReLU network"):
        preactivation_ridges(only.histograms, only.measurements, "mlp")
    with pytest.raises(UserError, match="no gradient norms of the architecture 'plain'"):
        gradient_heat_map(lab.measurements, "plain")


def save(lab: LabTables, folder: Path) -> None:
    lab.measurements.to_parquet(folder / "lab.parquet", index=False)
    lab.histograms.to_parquet(folder / "histograms.parquet", index=False)
    lab.accuracy.to_csv(folder / "accuracy.csv", index=False)
    (folder / "checks.json").write_text(json.dumps(lab.checks))
    (folder / "lab.json").write_text(json.dumps(lab.record))


def test_a_lab_is_read_back_as_it_was_written(lab: LabTables, tmp_path: Path) -> None:
    save(lab, tmp_path)
    found = read_lab(tmp_path, ["make lab"])
    assert (found.name, found.commands, found.checks, found.record) == (
        tmp_path.name, ["make lab"], lab.checks, lab.record
    )  # fmt: skip
    pd.testing.assert_frame_equal(found.measurements, lab.measurements)
    assert lab_figure_names(found) == lab_figure_names(lab)
    assert set(main_grid(found.accuracy)["network"]) == set(main_grid(lab.accuracy)["network"])


@pytest.mark.parametrize("name", ["lab.parquet", "histograms.parquet", "accuracy.csv", "checks.json", "lab.json"])
def test_missing_and_damaged_tables_are_said_in_one_line(lab: LabTables, name: str, tmp_path: Path) -> None:
    save(lab, tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name} can't be read \(.*run scripts/lab.py") as damaged:
        read_lab(tmp_path, [])
    assert "\n" not in str(damaged.value)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_lab(tmp_path, [])


def test_tables_without_columns_or_rows(lab: LabTables, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"accuracy\.csv .* lacks the column\(s\) validation_accuracy"):
        write_lab_figures(tmp_path, replace(lab, accuracy=lab.accuracy.drop(columns="validation_accuracy")))
    with pytest.raises(UserError, match=r"histograms\.parquet of lab 'synthetic' has no rows"):
        write_lab_figures(tmp_path, replace(lab, histograms=lab.histograms.iloc[:0]))
    assert list(tmp_path.iterdir()) == []
