"""What pages and pictures call things: one dictionary of display names, and how numbers are printed."""

import math
import re

NAMES = {
    # detectors
    "msp": "MSP",
    "energy": "energy",
    "max_logit": "max logit",
    "react": "ReAct",
    "temperature": "MSP, temperature-scaled",
    "entropy": "entropy",
    "gen": "GEN",
    "knn": "KNN",
    "mahalanobis": "Mahalanobis",
    "gaussian": "Mahalanobis, one class",
    "rmd": "Relative Mahalanobis",
    "vim": "ViM",
    "she": "SHE",
    "dice": "DICE",
    "nnguide": "NNGuide",
    "fdbd": "fDBD",
    "nci": "NCI",
    "klmatching": "KL matching",
    "openmax": "OpenMax",
    "bats": "BATS",
    "nmd": "Neural mean discrepancy",
    # networks and norms
    "bn": "BatchNorm",
    "ln": "LayerNorm",
    "gn": "GroupNorm",
    "none": "no norm",
    "bn-at-ln": "BatchNorm, stopped at LayerNorm's accuracy",
    "bn-at-gn": "BatchNorm, stopped at GroupNorm's accuracy",
    "mlp": "MLP",
    "plain": "plain ConvNet",
    "sigmoid": "sigmoid",
    "relu": "ReLU",
    "tanh": "tanh",
    "gelu": "GELU",
    # image sets
    "svhn": "SVHN",
    "dtd": "Textures (DTD)",
    "dtd-256": "Textures (DTD)",
    "flowers-256": "Flowers",
    "scenes15-256": "Scenes",
    "imagenet-flickr": "ImageNet (Flickr)",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    # metrics
    "auroc": "AUROC",
    "fpr95": "FPR95",
    "fpr95_ood_positive": "FPR95, OOD positive",
    "aupr_in": "AUPR, ID positive",
    "aupr_out": "AUPR, OOD positive",
    "accuracy": "accuracy",
    "unit_mean_max_ratio": "largest unit mean, relative to ID",
    # statistics
    "running": "running",
    "recalibrated:id": "re-estimated on ID",
    "recalibrated:augmented": "re-estimated on augmented ID",
    "recalibrated:target": "target",
}
PATTERNS = (  # of the statistics that carry numbers; first match wins
    (r"batch:(\d+)@(?P<percent>.+)", "batch of {0}, {percent}\u00a0%\u00a0OOD"),
    (r"batch:(\d+)", "batch of {0}, pure"),
    (r"recalibrated:mixture@(?P<percent>.+)", "mixture, {percent}\u00a0%\u00a0OOD"),
    (r"recalibrated:target/(first|last):(\d+)", "target in the {0} {1} layers"),
    (r"recalibrated:target/only:(\d+)", "target in layer {0} alone"),
    (r"recalibrated:target/mean", "target means alone"),
    (r"recalibrated:target/variance", "target variances alone"),
    (r"path:(.+)", "running to target, λ = {0}"),
    (r"prior:(\d+)/batch:(\d+)", "batch of {1} with a prior of {0}"),
    (r"prior:(\d+)", "batch with a prior of {0}"),
)
PLAIN_METRICS = ("energy", "max_logit", "unit_mean_max_ratio", "unit_mean_spread_ratio", "nll")
"""What is printed as it is; every other quantity is a fraction and is printed in per cent."""


def display(name: str) -> str:
    """The display name of a detector, norm, image set, metric or kind of statistics."""
    if name in NAMES:
        return NAMES[name]
    for pattern, template in PATTERNS:
        if found := re.fullmatch(pattern, name):
            named = {key: f"{100 * float(value):.0f}" for key, value in found.groupdict().items()}
            return template.format(*found.groups(), **named)
    return name.replace("_", " ")


def number(value: float, quantity: str) -> str:
    """A value as it is printed: fractions in per cent with one digit, everything else with two."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if quantity in PLAIN_METRICS else f"{100 * value:.1f} %"


def change(value: float, low: float, high: float, quantity: str) -> str:
    """A difference with its interval: fractions in points."""
    if not math.isfinite(value):
        return "–"
    factor, digits = (1, 2) if quantity in PLAIN_METRICS else (100, 1)
    text = f"{factor * value:+.{digits}f}".replace("-", "−")
    if math.isfinite(low) and math.isfinite(high):
        text += f" [{factor * low:.{digits}f}, {factor * high:.{digits}f}]".replace("-", "−")
    return text if factor == 1 else f"{text} points"
