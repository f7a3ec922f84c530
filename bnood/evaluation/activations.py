"""What the penultimate units do: the figures behind ReAct's picture (Sun, Guo & Li 2021).

An activation is abnormal only in relation to what is normal for the same network: raw magnitudes cannot be compared
across norms, nor across runs. The reference is the network's in-distribution images under its own running statistics
(for networks without BatchNorm: as it is), so that one reference serves every condition and a figure moves only
because the activations do.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.bootstrap import weighted_means
from bnood.evaluation.conditions import Images, evaluation_mode
from bnood.networks.features import check_gives_features
from bnood.statistics import (
    BatchNormStatistics,
    LayerStatistics,
    Mode,
    decide_statistics,
    has_batchnorm,
    measure_statistics,
    read_statistics,
    use_statistics,
)
from bnood.statistics.moments import PooledMoments

UNIT_FIGURES = ("unit_mean_spread_ratio", "unit_mean_max_ratio", "share_above_id_p99")
# Of the lens: its columns, and the images that percentiles are taken over, at most.
LENS_COLUMNS = ["layer", "position", "unit", "mean", "std", "max", "share_above_id_p99"]
REFERENCE_IMAGES = 2000


@dataclass(frozen=True)
class UnitReference:
    """The in-distribution reference of one network.

    Attributes:
        p99: float64 ``[D]``, each unit's 99th percentile over the reference images.
        spread: float64 ``[R]``, standard deviation over units (ddof 1) of the per-unit means, per resample.
        maximum: float64 ``[R]``, largest per-unit mean, per resample.
    """

    p99: np.ndarray
    spread: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, counts: np.ndarray) -> "UnitReference":
        """From features ``[N, D]`` of the reference images and resample counts ``[R, N]``; raises as ``of_means``."""
        return cls.of_means(unit_p99(features), weighted_means(features, counts))

    @classmethod
    def of_means(cls, p99: np.ndarray, means: np.ndarray) -> "UnitReference":
        """From the reference images' ``unit_p99`` and their features' means ``[R, D]`` in each resample.

        Raises ``UserError`` where the per-unit means do not differ, as in a network whose units are all dead: nothing
        can be measured relative to them.
        """
        spread = means.std(axis=1, ddof=1)
        if not (spread > 0).all():
            raise UserError(
                "the penultimate units all have the same mean on in-distribution images (all zero, perhaps), so "
                "activations cannot be compared with it: has the training diverged?"
            )
        return cls(p99, spread, means.max(axis=1))


def unit_p99(features: np.ndarray) -> np.ndarray:
    """Each unit's 99th percentile over images, features ``[N, D]`` -> float64 ``[D]``."""
    return np.percentile(features, 99, axis=0).astype(np.float64)


def share_above(features: np.ndarray, p99: np.ndarray) -> np.ndarray:
    """The share of each image's units, features ``[N, D]``, that are above ``p99`` ``[D]``: float64 ``[N]``."""
    return (features > p99).mean(axis=1, dtype=np.float64)


def unit_figures(features: np.ndarray, counts: np.ndarray, reference: UnitReference) -> dict[str, np.ndarray]:
    """The three figures of :data:`UNIT_FIGURES` for features ``[N, D]``, each ``[R]`` for resample counts ``[R, N]``.

    - ``unit_mean_spread_ratio``: spread over units of the per-unit mean, relative to the reference's.
    - ``unit_mean_max_ratio``: the largest per-unit mean, relative to the reference's.
    - ``share_above_id_p99``: share of (image, unit) pairs above the unit's 99th percentile in the reference, which is
      0.01 for the reference itself.
    """
    shares = weighted_means(share_above(features, reference.p99)[:, None], counts)[:, 0]
    return figures_of_means(weighted_means(features, counts), shares, reference)


def figures_of_means(means: np.ndarray, shares: np.ndarray, reference: UnitReference) -> dict[str, np.ndarray]:
    """As ``unit_figures``, from the means over images: ``[R, D]`` of features, ``[R]`` of their ``share_above``."""
    return {
        "unit_mean_spread_ratio": means.std(axis=1, ddof=1) / reference.spread,
        "unit_mean_max_ratio": means.max(axis=1) / reference.maximum,
        "share_above_id_p99": shares,
    }


@dataclass(frozen=True)
class ClassMix:
    """The reference images by predicted class: what a set's mix of classes alone does to the units.

    A penultimate unit serves some classes more than others, so that in-distribution images of one class alone have a
    largest unit mean several times that of all classes together, without anything being abnormal. An OOD set that the
    network sorts into few classes is to be compared with in-distribution images in that mix of classes.

    Attributes:
        means: float32 ``[R, K, D]``, mean features of the images of each predicted class, per resample; 0 where a
            class has none. Kept in single precision for its size.
        present: bool ``[R, K]``, which classes have images.
        maximum: float64 ``[R]``, largest mean over all images.
    """

    means: np.ndarray
    present: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, prediction: np.ndarray, classes: int, counts: np.ndarray) -> "ClassMix":
        """From reference features ``[N, D]``, predicted classes ``[N]`` in 0..K-1 and resample counts ``[R, N]``."""
        means = np.zeros((len(counts), classes, features.shape[1]), np.float32)
        present = np.zeros((len(counts), classes), bool)
        for label in np.unique(prediction):
            own = np.flatnonzero(prediction == label)
            drawn = counts[:, own]
            present[:, label] = drawn.any(axis=1)
            # A resample without any image of the class gets a mean that is never used.
            drawn[~present[:, label], 0] = 1
            means[:, label] = weighted_means(features[own], drawn)
        return cls(means, present, weighted_means(features, counts).max(axis=1))

    def max_ratio(self, prediction: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Largest unit mean of the reference images in the mix of a set's predicted classes, relative to their own.

        Args:
            prediction: int ``[n]``, the set's predicted classes.
            counts: ``[R, n]``, its resample counts.

        Returns:
            float64 ``[R]``. Classes that no reference image was sorted into are left out of the mix; where no other
            is left, the mix is the reference's own, and the ratio 1.
        """
        mix = weighted_means(prediction[:, None] == np.arange(self.means.shape[1]), counts) * self.present
        total = mix.sum(axis=1)
        mix /= np.where(total > 0, total, 1)[:, None]
        largest = np.matmul(mix[:, None, :], self.means)[:, 0].max(axis=1)
        return np.where(total > 0, largest / self.maximum, 1.0)


def unit_table(features: np.ndarray, reference: UnitReference) -> dict[str, np.ndarray]:
    """Per unit ``[D]``: number, mean, std (ddof 1), maximum and share above the reference's 99th percentile."""
    return {
        "unit": np.arange(features.shape[1]),
        "mean": features.mean(axis=0, dtype=np.float64),
        "std": features.std(axis=0, ddof=1, dtype=np.float64) if len(features) > 1 else np.zeros(features.shape[1]),
        "max": features.max(axis=0).astype(np.float64),
        "share_above_id_p99": (features > reference.p99).mean(axis=0, dtype=np.float64),
    }


# The lens: what the units of every normalisation layer do.


def lens(
    classifier: nn.Module,
    images: ImageSet,
    statistics: BatchNormStatistics | Mode | None,
    reference: Mapping[str, np.ndarray] | None = None,
    chunk: int = 128,
) -> pd.DataFrame:
    """What each unit of each normalisation layer does on a set; memory is bounded by ``chunk`` images.

    A unit is a channel of the output of a BatchNorm or GroupNorm layer (LayerNorm of feature maps is one), after ReLU
    where the network rectifies that very output, averaged over space: one value per image. (The second norm of a
    residual block and that of a shortcut are rectified only after they were added up, so they count as they come.) The
    last layer is ``penultimate``, the features.

    Args:
        classifier: called as ``model(images, return_features=True)`` with uint8 ``[n, H, W, 3]``, for logits
            ``[n, K]`` and features ``[n, D]``; left as it was.
        images: the set.
        statistics: as for ``use_statistics``; None for networks without BatchNorm.
        reference: of :func:`lens_reference`, each unit's 99th percentile on in-distribution images.
        chunk: images per forward pass.

    Returns:
        Columns layer, position (in the order of the forward pass, from 0), unit, mean, std (ddof 1; 0 for one image),
        max, share_above_id_p99 (NaN without a reference), over the images.

    Raises:
        UserError: if the network can't be called so, if it runs a normalisation layer twice in a forward pass, whose
            outputs would be two units under one name, or if the set is empty.
    """
    moments: dict[str, PooledMoments] = {}
    maxima: dict[str, np.ndarray] = {}
    above: dict[str, np.ndarray] = {}
    for batch in _unit_values(classifier, images, statistics, chunk):
        for layer, values in batch.items():
            exact = values.astype(np.float64)
            mean = exact.mean(axis=0)
            deviations = np.square(exact - mean).sum(axis=0)
            pooled = moments.setdefault(layer, PooledMoments())
            pooled.merge(len(values), torch.from_numpy(mean), torch.from_numpy(deviations))
            largest = exact.max(axis=0)
            maxima[layer] = np.maximum(maxima.get(layer, largest), largest)
            threshold = np.nan if reference is None else reference[layer]
            above[layer] = above.get(layer, 0) + (exact > threshold).sum(axis=0)
    tables = [
        pd.DataFrame(
            {
                "layer": layer,
                "position": position,
                "unit": np.arange(len(pooled.mean)),
                "mean": pooled.mean.numpy(),
                "std": np.sqrt(pooled.deviations.numpy() / max(1, pooled.count - 1)),
                "max": maxima[layer],
                "share_above_id_p99": np.nan if reference is None else above[layer] / pooled.count,
            }
        )
        for position, (layer, pooled) in enumerate(moments.items())
    ]
    return pd.concat(tables, ignore_index=True)


def lens_reference(
    classifier: nn.Module, images: ImageSet, statistics: BatchNormStatistics | Mode | None, chunk: int = 128
) -> dict[str, np.ndarray]:
    """Layer -> each unit's 99th percentile ``[C]`` float64 on in-distribution images, of which 2,000 at most are used.

    More than that are thinned to 2,000 evenly spaced ones, so that what has to be kept at once is bounded.
    """
    some = np.linspace(0, len(images) - 1, min(len(images), REFERENCE_IMAGES)).round().astype(np.int64)
    parts: dict[str, list[np.ndarray]] = {}
    for batch in _unit_values(classifier, images.subset(some), statistics, chunk):
        for layer, values in batch.items():
            parts.setdefault(layer, []).append(values)
    return {
        layer: np.percentile(np.concatenate(values), 99, axis=0).astype(np.float64) for layer, values in parts.items()
    }


def layer_distances(running: BatchNormStatistics, own: BatchNormStatistics, eps: float = 1e-5) -> pd.DataFrame:
    """How far a set's own statistics are from the running ones, per BatchNorm layer, as means over its channels.

    With m and v mean and variance (plus ``eps``, as the layer adds it, which keeps constant channels finite), r for
    running and o for own:

    - ``mean_shift``: |m_o - m_r| / sqrt(v_r), the mean of the layer's normalised values, which it takes for 0.
    - ``log_var_ratio``: ln(v_o / v_r), with its sign: above 0 where the set varies more than the layer expects.
    - ``symmetric_kl``: KL(r || o) + KL(o || r) of the two Gaussians (Jeffreys' divergence), in nats:
      (v_o / v_r + v_r / v_o - 2 + (m_o - m_r)^2 (1 / v_o + 1 / v_r)) / 2.

    Returns:
        Columns layer, position (from 0, in the order of ``running``), mean_shift, log_var_ratio, symmetric_kl.
    """
    rows = []
    for position, layer in enumerate(running):
        expected, found = running[layer], own[layer]
        var_r, var_o, shift = expected.var + eps, found.var + eps, found.mean - expected.mean
        divergence = (var_o / var_r + var_r / var_o - 2 + shift.square() * (1 / var_o + 1 / var_r)) / 2
        rows.append(
            {
                "layer": layer,
                "position": position,
                "mean_shift": float((shift.abs() / var_r.sqrt()).mean()),
                "log_var_ratio": float((var_o / var_r).log().mean()),
                "symmetric_kl": float(divergence.mean()),
            }
        )
    return pd.DataFrame(rows, columns=["layer", "position", "mean_shift", "log_var_ratio", "symmetric_kl"])


def lens_tables(
    classifier: nn.Module,
    images: Images,
    targets: Mapping[str, BatchNormStatistics] | None = None,
    *,
    calibration_images: int = 1000,
    chunk: int = 128,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``layers.parquet`` and ``layer_distances.csv`` of all sets of an evaluation.

    Networks with BatchNorm are looked at under ``running`` and ``recalibrated:target``, others as they are, which the
    table calls ``running`` too. The reference is the in-distribution set under ``running``.

    Args:
        classifier: the network; left as it was.
        images: the sets: their scored images are looked at; a set's own statistics are those of its calibration images
            (of in-distribution training images for the in-distribution set).
        targets: set name -> the statistics of ``recalibrated:target``. None: they are matched here, exactly.
        calibration_images: of each set, at most.
        chunk: images per forward pass.
    """
    normalised = has_batchnorm(classifier)
    reference = lens_reference(classifier, images.id_set, "running" if normalised else None, chunk)
    running = read_statistics(classifier) if normalised else None
    layers, distances = [], []
    sets = [("id", images.id_calibration, images.id_set), *(("ood", *pair) for pair in images.ood.values())]
    for role, calibration, scored in sets:
        keys = {"dataset": scored.name, "role": role}
        modes: dict[str, BatchNormStatistics | Mode | None] = {"running": "running" if normalised else None}
        if running is not None:
            # Evenly spaced over the set, which may be sorted by class.
            some = np.linspace(0, len(calibration) - 1, min(len(calibration), calibration_images)).astype(np.int64)
            known = torch.from_numpy(calibration.images[some])
            own = measure_statistics(classifier, known.split(chunk), "running")
            distances.append(layer_distances(running, own).assign(**keys))
            modes["recalibrated:target"] = _matched(classifier, known) if targets is None else targets[scored.name]
        for name, statistics in modes.items():
            layers.append(lens(classifier, scored, statistics, reference, chunk).assign(statistics=name, **keys))
    table = pd.concat(layers, ignore_index=True)[["statistics", "dataset", "role", *LENS_COLUMNS]]
    columns = ["dataset", "role", "layer", "position", "mean_shift", "log_var_ratio", "symmetric_kl"]
    return table, pd.concat(distances, ignore_index=True)[columns] if distances else pd.DataFrame(columns=columns)


def _matched(classifier: nn.Module, images: Tensor) -> BatchNormStatistics:
    """The fixed point of sequential estimation: all images pass as one batch."""
    found: dict[str, LayerStatistics] = {}

    def take(name: str, own: LayerStatistics) -> LayerStatistics:
        found[name] = LayerStatistics(own.mean.cpu(), own.var.cpu(), own.count)
        return own

    with decide_statistics(classifier, take):
        classifier(images.to(next(classifier.parameters()).device))
    return BatchNormStatistics(found)


def rectified_layers(model: nn.Module, images: Tensor) -> set[str]:
    """Names of the normalisation layers whose output the network puts through ReLU directly, seen on a few images."""
    found = set()
    outputs: dict[int, tuple[str, Tensor]] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__name__", "") in ("relu", "relu_") and id(args[0]) in outputs:
                found.add(outputs[id(args[0])][0])
            return function(*args, **(kwargs or {}))

    def look(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        # The tensor is kept as well: the number of one that is gone could be that of another.
        return lambda layer, inputs, output: outputs.update({id(output): (name, output)})

    handles = [layer.register_forward_hook(look(name)) for name, layer in _norm_layers(model)]
    try:
        with Watch(), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            model(images, return_features=True)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _norm_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm | nn.GroupNorm)]


def _unit_values(
    classifier: nn.Module, images: ImageSet, statistics: BatchNormStatistics | Mode | None, chunk: int
) -> Iterator[dict[str, np.ndarray]]:
    """For each chunk of the images, layer -> values ``[n, C]`` in the order of the forward pass, penultimate last."""
    check_gives_features(classifier)
    if not len(images):
        raise UserError(f"{images.name} has no images to look at")
    device = next((tensor.device for tensor in classifier.parameters()), torch.device("cpu"))
    seen: dict[str, np.ndarray] = {}

    def in_mode() -> AbstractContextManager[nn.Module]:
        return evaluation_mode(classifier) if statistics is None else use_statistics(classifier, statistics)

    def look(name: str, rectified: bool) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if name in seen:
                raise UserError(f"layer {name!r} runs twice in a forward pass: its outputs can't be told apart")
            # At once: a ReLU in place would overwrite it.
            values = output.relu() if rectified else output
            values = values.flatten(2).mean(dim=2) if values.ndim > 2 else values
            seen[name] = values.float().cpu().numpy().copy()

        return keep

    with in_mode():
        rectified = rectified_layers(classifier, torch.from_numpy(images.images[:2]).to(device))
    for start in range(0, len(images), chunk):
        batch = torch.from_numpy(images.images[start : start + chunk]).to(device)
        seen.clear()
        handles = [
            layer.register_forward_hook(look(name, name in rectified)) for name, layer in _norm_layers(classifier)
        ]
        try:
            with in_mode(), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
                _, features = classifier(batch, return_features=True)
        finally:
            for handle in handles:
                handle.remove()
        yield {**seen, "penultimate": features.float().cpu().numpy()}
