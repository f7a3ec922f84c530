"""What pages and pictures call things: one dictionary of display names, and how numbers are printed."""

import math
import re

NAMES = {
    # detectors
    "msp": "MSP", "energy": "energy", "max_logit": "max logit", "react": "ReAct", "temperature": "MSP with temperature",
    "entropy": "entropy", "gen": "GEN", "knn": "KNN", "mahalanobis": "Mahalanobis", "gaussian": "Gaussian",
    "rmd": "Relative Mahalanobis", "vim": "ViM", "she": "SHE", "dice": "DICE", "nnguide": "NNGuide", "fdbd": "fDBD",
    "nci": "NCI", "klmatching": "KL matching", "openmax": "OpenMax", "bats": "BATS", "nmd": "Neural mean discrepancy",
    # networks
    "bn": "BatchNorm", "ln": "LayerNorm", "gn": "GroupNorm", "none": "no norm",
    "bn-at-ln": "BatchNorm at LayerNorm's accuracy", "bn-at-gn": "BatchNorm at GroupNorm's accuracy",
    "mlp": "MLP", "plain": "plain ConvNet", "relu": "ReLU", "gelu": "GELU",
    # image sets
    "svhn": "SVHN", "dtd": "Textures (DTD)", "dtd-256": "Textures (DTD)", "flowers-256": "Flowers", "mnist": "MNIST",
    "scenes15-256": "Scenes", "imagenet-flickr": "ImageNet (Flickr)", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
    # statistics without a number
    "running": "running", "recalibrated:id": "re-estimated on ID", "recalibrated:target": "target",
    "recalibrated:augmented": "re-estimated on augmented ID",
}  # fmt: skip
PATTERNS = (  # statistics with a number; the first match wins
    (r"batch:(\d+)@(?P<percent>.+)", "batch of {0}, {percent}\u00a0%\u00a0OOD"),
    (r"batch:(\d+)", "batch of {0}, pure"),
    (r"recalibrated:mixture@(?P<percent>.+)", "mixture, {percent}\u00a0%\u00a0OOD"),
)
MINUS, DASH = "\u2212", "\u2013"
NO_FRACTIONS = ("energy", "max_logit", "nll", "unit_mean_max_ratio", "unit_mean_spread_ratio")


def display(name: str) -> str:
    """The display name of a detector, norm, network, image set or kind of statistics."""
    if name in NAMES:
        return NAMES[name]
    for pattern, template in PATTERNS:
        if found := re.fullmatch(pattern, name):
            named = {key: f"{100 * float(value):.0f}" for key, value in found.groupdict().items()}
            return template.format(*found.groups(), **named)
    return name.replace("_", " ")


def scale(metric: str, detector: str) -> float:
    """What a value is multiplied with before it is shown: 100 for fractions, which are shown in per cent."""
    return 1.0 if metric in NO_FRACTIONS or (metric == "mean" and detector in NO_FRACTIONS) else 100.0


def factor_of(unit: str) -> float:
    """The same, by the unit that a verdict states."""
    return 100.0 if unit in ("AUROC", "probability") or unit.startswith("share") else 1.0


def number(value: float, factor: float) -> str:
    """A value as it is printed: "91.5 %" with factor 100, else "1.62"."""
    if not math.isfinite(value):
        return DASH
    return f"{100 * value:.1f}\u00a0%" if factor == 100 else f"{value:.2f}"


def change(value: float, low: float, high: float, factor: float) -> str:
    """A difference with its interval: in points with factor 100."""
    if not math.isfinite(value):
        return DASH
    digits = 1 if factor == 100 else 2
    ends = f" [{factor * low:.{digits}f}, {factor * high:.{digits}f}]" if math.isfinite(low) else ""
    return f"{factor * value:+.{digits}f}{ends}{' points' if factor == 100 else ''}".replace("-", MINUS)
