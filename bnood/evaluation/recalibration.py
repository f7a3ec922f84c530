"""Will new BatchNorm statistics, estimated on unlabelled traffic, help or harm? Asked before anything is deployed.

Half of the traffic estimates one set of statistics. In-distribution (ID) images and the other half of the traffic are
then looked at under the running statistics and under the traffic's::

    check = check_recalibration(network, id_set, traffic)
    print(check)
    check.advice, check.reason
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnood.data.image_set import Images
from bnood.data.reading import read_batches
from bnood.data.splits import halves
from bnood.errors import UserError
from bnood.evaluation.bootstrap import interval, set_counts, weighted_means
from bnood.evaluation.metrics import auroc
from bnood.evaluation.scores import energy, msp
from bnood.networks.network import Network
from bnood.statistics import BatchNormStatistics, estimate_statistics, has_batchnorm, read_statistics, use_statistics

FEWEST = 40  # images of a set
SMALLEST_PART = 16
Logits = tuple[Tensor, Tensor]  # of the same images, under the running and under the new statistics


@dataclass(frozen=True)
class RecalibrationCheck:
    """What recalibrating on the traffic would do.

    Attributes:
        advice: ``"recalibrate"``, ``"do not: nothing to gain"``, ``"do not: out-of-distribution"`` or
            ``"cannot tell"``; the rule stands in :func:`advise`.
        reason: one line.
        figures: one row per set and quantity: under running and under the traffic's statistics, the difference with its
            bootstrap interval where images are paired, and, if OOD images were given, the figure under statistics of
            traffic with a stated OOD fraction. Accuracy, flips and AUROC are fractions 0..1.
        layers: per layer, how far the traffic's statistics are from the running ones (``mean_shift`` in running
            standard deviations, ``log_std_ratio``; root mean squares over channels), and the same for the second half
            of the ID images (``id_``).
        stability: how far apart the estimates of two disjoint parts of n images are, mean over layers, as a fraction
            of the traffic's distance from the running statistics. Below 0.5, n images are enough to see the shift.
        statistics: the traffic's statistics; ``bake(model, check.statistics)`` makes them permanent. None for a network
            without BatchNorm.
    """

    advice: str
    reason: str
    figures: pd.DataFrame
    layers: pd.DataFrame
    stability: pd.DataFrame
    statistics: BatchNormStatistics | None

    def __str__(self) -> str:
        lines = [f"{self.advice} ({self.reason})"]
        for title, table in (("", self.figures), ("layers", self.layers), ("stability", self.stability)):
            if len(table):
                lines += ["", *([title] if title else []), table.to_string(index=False, float_format="%.3f", na_rep="")]
        return "\n".join(lines)


def check_recalibration(
    network: Network,
    id_set: Images,
    traffic: Images,
    *,
    ood_set: Images | None = None,
    ood_fraction: float = 0.1,
    stability: bool = True,
    seed: int = 0,
    resamples: int = 1000,
    forward_batch: int = 128,
    estimation_batch: int = 500,
    workers: int = 0,
) -> RecalibrationCheck:
    """Measure what the traffic's statistics would do to a network, and advise; the network is left as it is.

    Args:
        network: the network as it is deployed.
        id_set: images like those that it was trained on, but held out of training; labels are used if there are any.
        traffic: unlabelled images that the network meets.
        ood_set: images that do not belong in the traffic: what if ``ood_fraction`` of it were such images?
        ood_fraction: above 0 and below 1.
        stability: also estimate on ever smaller parts of the traffic (as many images again as half the traffic).
        seed: of the halves and the bootstrap.
        resamples: behind each interval.
        forward_batch: images per pass that are scored.
        estimation_batch: images per pass that statistics are estimated on.
        workers: processes that decode images.

    Raises:
        UserError: for fewer than 40 images in a set, a fraction outside (0, 1), or images that cannot be read.
    """
    for images in (id_set, traffic, *([ood_set] if ood_set is not None else [])):
        if len(images) < FEWEST:
            raise UserError(f"{images.name}: {len(images)} images are too few to advise; give at least {FEWEST}")
    if not 0 < ood_fraction < 1:
        raise UserError(f"the OOD fraction is {ood_fraction}; it has to lie between 0 and 1")
    if not has_batchnorm(network.model):
        return RecalibrationCheck(
            "do not: nothing to gain", "the network has no BatchNorm layer, so it keeps no statistics",
            pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), None,
        )  # fmt: skip

    def estimate(*sets: Images) -> BatchNormStatistics:
        return _estimate(network, sets, seed, estimation_batch, workers)

    def logits(images: Images, statistics: BatchNormStatistics) -> Tensor:
        return _logits(network, images, statistics, forward_batch, workers)

    adaptation, scoring = (traffic.subset(half) for half in halves(len(traffic), seed, traffic.name))
    second_half = id_set.subset(halves(len(id_set), seed, id_set.name)[1]).at_most(len(adaptation), seed)
    target = estimate(adaptation)
    running = read_statistics(network.model)
    running = BatchNormStatistics({name: running[name] for name in target})  # the layers that run
    of_id, of_traffic = ((logits(images, running), logits(images, target)) for images in (id_set, scoring))
    figures = _figures(id_set, scoring, of_id, of_traffic, seed, resamples)
    if ood_set is not None:
        mixed = estimate(adaptation, ood_set.at_most(round(len(adaptation) * ood_fraction / (1 - ood_fraction)), seed))
        of_id, of_traffic = (
            (old[0], logits(images, mixed)) for old, images in ((of_id, id_set), (of_traffic, scoring))
        )
        column = f"with_{100 * ood_fraction:g}%_ood"
        figures[column] = _figures(id_set, scoring, of_id, of_traffic, seed, resamples)["traffic_statistics"]
    layers = _layers(running, target, estimate(second_half))
    parts = _stability(running, target, adaptation, estimate) if stability else pd.DataFrame()
    advice, reason = advise(figures)
    return RecalibrationCheck(advice, reason, figures, layers, parts, target)


def advise(figures: pd.DataFrame) -> tuple[str, str]:
    """The advice and its reason, from the figures of :func:`check_recalibration`."""
    return "cannot tell", "to be written"


def _figures(
    id_set: Images, traffic: Images, of_id: Logits, of_traffic: Logits, seed: int, resamples: int
) -> pd.DataFrame:
    rows = []

    def add(images: Images, quantity: str, pair: Sequence[np.ndarray | Tensor]) -> None:
        """One figure that is a mean over images, under both statistics, the difference paired by image."""
        columns = np.stack([np.asarray(each, dtype=np.float64) for each in pair], axis=1)
        means = weighted_means(columns, set_counts(images.name, len(images), resamples, seed))
        difference = means[:, 1] - means[:, 0]
        rows.append((images.name, quantity, len(images), *means[0], difference[0], *interval(difference[1:])))

    for images, pair in ((id_set, of_id), (traffic, of_traffic)):
        for score in (msp, energy):
            add(images, f"mean_{score.__name__}", [score(logits) for logits in pair])
        predictions = [logits.argmax(dim=1) for logits in pair]
        add(images, "predictions_flipped", [predictions[0] != predictions[0], predictions[0] != predictions[1]])
        if images is id_set and images.labels is not None:
            add(images, "accuracy", [each.numpy() == images.labels for each in predictions])
    for score in (msp, energy):
        found = [auroc(score(inside), score(outside)) for inside, outside in zip(of_id, of_traffic, strict=True)]
        rows.append(
            (traffic.name, f"auroc_{score.__name__}", len(traffic), *found, found[1] - found[0], np.nan, np.nan)
        )
    names = ["set", "quantity", "n", "running", "traffic_statistics", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _layers(
    running: BatchNormStatistics, target: BatchNormStatistics, second_half: BatchNormStatistics
) -> pd.DataFrame:
    of_traffic, of_id = running.distance(target), running.distance(second_half)
    names = ["layer", "mean_shift", "log_std_ratio", "id_mean_shift", "id_log_std_ratio"]
    return pd.DataFrame([(name, *of_traffic[name], *of_id[name]) for name in running], columns=names)


def _stability(
    running: BatchNormStatistics,
    target: BatchNormStatistics,
    images: Images,
    estimate: Callable[[Images], BatchNormStatistics],
) -> pd.DataFrame:
    """Two estimates on disjoint parts of n images, n halved from half of the images down to 16."""
    whole, rows, n = _mean_shift(running, target), [], len(images) // 2
    while n >= SMALLEST_PART:
        parts = [images.subset(np.arange(start, start + n)) for start in (0, n)]
        rows.append((n, _mean_shift(*map(estimate, parts)) / whole))
        n //= 2
    return pd.DataFrame(rows, columns=["n", "relative_distance"])


def _mean_shift(first: BatchNormStatistics, second: BatchNormStatistics) -> float:
    return float(np.mean([shift for shift, _ in first.distance(second).values()]))


def _estimate(network: Network, sets: Sequence[Images], seed: int, batch: int, workers: int) -> BatchNormStatistics:
    """One pass over all images, shuffled: a batch is normalised by itself, so it should be like the whole."""
    pairs = np.concatenate([_pairs(position, len(images)) for position, images in enumerate(sets)])
    pairs = pairs[np.random.RandomState(seed).permutation(len(pairs))]
    batches = np.array_split(pairs, -(-len(pairs) // batch))
    read = read_batches(sets, batches, network.transform, workers)
    return estimate_statistics(network.model, read, call=network.call)


def _pairs(position: int, count: int) -> np.ndarray:
    return np.stack([np.full(count, position), np.arange(count)], axis=1)


def _logits(network: Network, images: Images, statistics: BatchNormStatistics, batch: int, workers: int) -> Tensor:
    pairs = _pairs(0, len(images))
    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    with use_statistics(network.model, statistics):
        read = read_batches([images], batches, network.transform, workers)
        return torch.cat([network.outputs(each).logits for each in read])
