"""Draws docs/normalisation.png, what each norm averages over: python docs/normalisation.py

A feature map ``[N, C, H, W]`` is drawn as one tile per sample, with the channels across and the pixels H x W down. The
coloured values share one mean: found by trial, with the project's own layers.
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from bnood.networks.norm import norm_layer
from bnood.report.charts import COLOURS, INK, STYLE

SAMPLES, CHANNELS, SIDE = 4, 6, 2  # of the feature map; H = W = SIDE
NORMS = (  # name, layer, groups, what shares a mean
    ("BatchNorm", "bn", 1, "over N, H, W: one mean per channel"),
    ("LayerNorm", "ln", 1, "over C, H, W: one mean per sample"),
    ("GroupNorm", "gn", 2, "over C / 2, H, W: one mean per sample and group"),
    ("InstanceNorm", "gn", CHANNELS, "over H, W: one mean per sample and channel"),
)


def share_a_mean(norm: str, groups: int) -> torch.Tensor:
    """Which values share a mean with the first of the last channel: those whose output changes with it."""
    block = torch.randn(SAMPLES, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    layer = norm_layer(norm, CHANNELS, groups).double().train()
    changed = block.clone()
    changed[0, CHANNELS - 1, 0, 0] += 1.0
    with torch.no_grad():
        return ((layer(changed) - layer(block)).abs() > 1e-9).flatten(2)


with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for part, (name, norm, groups, means), colour in zip(
        figure.subfigures(len(NORMS), 1), NORMS, COLOURS, strict=False
    ):
        part.suptitle(f"{name}: {means}", x=0.01, ha="left", color=INK, fontweight="bold", fontsize=11)
        shared, colours = share_a_mean(norm, groups), ListedColormap(["#D6D6D6", colour])
        for sample, axes in enumerate(part.subplots(1, SAMPLES)):
            axes.pcolormesh(shared[sample].T, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
            axes.set(aspect="equal", xticks=[], yticks=[], xlabel=f"sample {sample + 1}: channels")
            axes.set_ylabel("pixels" if sample == 0 else "")
            axes.spines[:].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)
