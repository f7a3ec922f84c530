"""A picture of what each norm averages over: ``python -m bnood.lab.norm_picture docs/normalisation.png``.

A feature map ``[N, C, H, W]`` is drawn as one tile per sample, with the channels across and the pixels H x W down. The
coloured values share one mean, as the project's own layers have it (:func:`share_a_mean`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from bnood.networks.norm import Norm, norm_layer
from bnood.report.charts import COLOURS, DPI, INK, STYLE

SAMPLES, CHANNELS, SIDE = 4, 6, 2  # of the feature map; H = W = SIDE
NORMS: tuple[tuple[str, Norm, int, str], ...] = (  # name, layer, groups, what shares a mean
    ("BatchNorm", "bn", 1, "over N, H, W: one mean per channel"),
    ("LayerNorm", "ln", 1, "over C, H, W: one mean per sample"),
    ("GroupNorm", "gn", 2, "over C / 2, H, W: one mean per sample and group"),
    ("InstanceNorm", "gn", CHANNELS, "over H, W: one mean per sample and channel"),
)


def share_a_mean(norm: Norm, groups: int = 1, place: tuple[int, int, int] = (0, CHANNELS - 1, 0)) -> np.ndarray:
    """Which values of the feature map share a mean with the value at `place`: booleans ``[N, C, H * W]``.

    Found by trial: one value of a random feature map is changed, and the layer's outputs (in training mode) that
    change with it are those whose mean it entered.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(SAMPLES, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    layer = norm_layer(norm, CHANNELS, groups).double().train()
    changed = block.clone()
    changed.view(SAMPLES, CHANNELS, -1)[place] += 1.0
    with torch.no_grad():
        difference = (layer(changed) - layer(block)).abs()
    return (difference > 1e-9).view(SAMPLES, CHANNELS, -1).numpy()


def write_norm_picture(path: Path) -> Path:
    """Draw the picture into the PNG file `path`."""
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        rows = list(figure.subfigures(len(NORMS), 1))  # type: ignore[arg-type]
        for part, (name, norm, groups, means), colour in zip(rows, NORMS, COLOURS, strict=False):
            part.suptitle(f"{name}: {means}", x=0.01, ha="left", color=INK, fontweight="bold", fontsize=11)
            shared = share_a_mean(norm, groups)
            for sample, axes in enumerate(part.subplots(1, SAMPLES)):
                axes.pcolormesh(
                    shared[sample].T, cmap=ListedColormap(["#D6D6D6", colour]), vmin=0, vmax=1, edgecolors="white",
                    linewidth=1.5,
                )  # fmt: skip
                axes.set(aspect="equal", xticks=[], yticks=[], xlabel=f"sample {sample + 1}: channels")
                axes.set_ylabel("pixels" if sample == 0 else "")
                axes.spines[:].set_visible(False)
        figure.savefig(path, dpi=DPI)
    return path


if __name__ == "__main__":
    print(write_norm_picture(Path(sys.argv[1])))
