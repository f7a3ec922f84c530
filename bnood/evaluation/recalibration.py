"""Will new BatchNorm statistics, estimated on unlabelled traffic, help or harm? Asked before anything is deployed.

Half of the traffic estimates them; ID images and the other half are looked at under the running ones and under these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from bnood.data.image_set import Images, check_images, folder_labels, halves
from bnood.errors import UserError
from bnood.evaluation.conditions import Estimate
from bnood.evaluation.intervals import interval, set_counts, weighted_means
from bnood.evaluation.metrics import auroc
from bnood.evaluation.options import EvaluationOptions, options_with
from bnood.evaluation.passes import Passes
from bnood.evaluation.scores import energy, msp
from bnood.networks.network import Network
from bnood.statistics import BatchNormStatistics, has_batchnorm, read_statistics, use_statistics
from bnood.statistics.layers import fixed_layers

FEWEST = 40  # images of a set
SMALLEST_PART = 16
UNFAMILIAR, SUITED, STILL_UNFAMILIAR = 0.66, 0.46, 0.56  # AUROC before, after and after; see advise


@dataclass(frozen=True)
class RecalibrationCheck:
    """What recalibrating on the traffic would do.

    ``figures``: per set and quantity, the value under running and under the traffic's statistics and the difference.
    ``layers``: how far the traffic's statistics, and those of half of the ID images (``id_``), are from running ones.
    ``stability``: how far apart the estimates of two disjoint parts of n images are, as a fraction of the traffic's
    distance from the running statistics; below 0.5, n images are enough to see the shift.
    """

    advice: str  # recalibrate, do not: nothing to gain, do not: out-of-distribution or cannot tell; see advise
    reason: str  # one line
    notes: list[str]  # one line for everything else that a reader should know
    figures: pd.DataFrame
    layers: pd.DataFrame
    stability: pd.DataFrame
    statistics: BatchNormStatistics | None  # the traffic's, for ``bake``; None without BatchNorm

    def __str__(self) -> str:
        lines = []
        for title, table in (("figures", self.figures), ("layers", self.layers), ("stability", self.stability)):
            if len(table):
                lines += [title, table.to_string(index=False, float_format="%.3f", na_rep=""), ""]
        return "\n".join([*lines, *self.notes, f"{self.advice} ({self.reason})"])


def check_recalibration(
    network: Network, id_set: Images, traffic: Images, *, classes: Sequence[str] | None = None,
    ood_set: Images | None = None, ood_fraction: float = 0.1, **settings: Any,
) -> RecalibrationCheck:  # fmt: skip
    """Measure what the traffic's statistics would do to a network, and advise; the network is left as it is.

    Args:
        network: the network as it is deployed.
        id_set: images like those that it was trained on, but held out of training; labels are used if there are any.
        traffic: images that the network meets; labels are not needed, and never decide the advice.
        classes: names of the classes in the order of the logits, for ID images in folders.
        ood_set: images that do not belong in the traffic: what if ``ood_fraction`` of it were such images?
        ood_fraction: above 0 and below 1; the table says which one the numbers of images allow.
        settings: seed, resamples, forward_batch, estimation_batch and workers, as in :class:`EvaluationOptions`.
    """
    options = options_with(settings)
    seed = options.seed
    if not isinstance(network, Network):
        raise UserError(f"network is a {type(network).__name__}; expected bnood.Network(model, transform)")
    given = {"id_set": id_set, "traffic": traffic} | ({} if ood_set is None else {"ood_set": ood_set})
    check_images(given)
    for images in given.values():
        if len(images) < FEWEST:
            raise UserError(f"{images.name}: {len(images)} images are too few to advise; give at least {FEWEST}")
    if not (isinstance(ood_fraction, int | float) and 0 < ood_fraction < 1):
        raise UserError(f"the OOD fraction is {ood_fraction}; it has to lie between 0 and 1")
    if not has_batchnorm(network.model):
        nothing, reason = pd.DataFrame(), fixed_layers(network.model) or "the network has no BatchNorm layer"
        return RecalibrationCheck("do not: nothing to gain", reason, [], nothing, nothing, nothing, None)

    def estimate(*parts: Images) -> BatchNormStatistics:
        named = {str(position): images for position, images in enumerate(parts)}
        wanted = Estimate(tuple((name, len(images)) for name, images in named.items()))
        return Passes(network, named, options).statistics(wanted)

    def logits(images: Images, statistics: BatchNormStatistics) -> Tensor:
        passes, context = Passes(network, {}, options), partial(use_statistics, network.model, statistics)
        return passes.outputs([images], passes.whole(images), [context])[0].logits

    adaptation, scoring = (traffic.subset(half) for half in halves(len(traffic), seed, traffic.name))
    second_half = id_set.subset(halves(len(id_set), seed, id_set.name)[1]).at_most(len(adaptation), seed)
    target = estimate(adaptation)
    all_running = read_statistics(network.model)
    running = BatchNormStatistics({name: all_running[name] for name in target})  # of the layers that run
    before, after = ([logits(images, each) for images in (id_set, scoring)] for each in (running, target))
    id_set, note = folder_labels(id_set, classes, before[0].shape[1])
    figures = _figures([id_set, scoring], before, after, options)
    if ood_set is not None:
        of_one = ood_fraction / (1 - ood_fraction)  # OOD images for each other one
        ood = min(len(ood_set), max(1, round(len(adaptation) * of_one)))
        known = min(len(adaptation), max(1, round(ood / of_one)))
        mixed = estimate(adaptation.at_most(known, seed), ood_set.at_most(ood, seed))
        after = [logits(images, mixed) for images in (id_set, scoring)]
        with_ood = _figures([id_set, scoring], before, after, options)
        figures[f"with_{100 * ood / (ood + known):.2g}%_ood"] = with_ood["traffic_statistics"]
    of_traffic, of_id = running.distance(target), running.distance(estimate(second_half))
    names = ["layer", "mean_shift", "log_std_ratio", "id_mean_shift", "id_log_std_ratio"]
    layers = pd.DataFrame([(name, *of_traffic[name], *of_id[name]) for name in running], columns=names)
    rows, n = [], len(adaptation) // 2
    while n >= SMALLEST_PART:
        parts = [estimate(adaptation.subset(np.arange(start, start + n))) for start in (0, n)]
        rows.append((n, _mean_shift(*parts) / _mean_shift(running, target)))
        n //= 2
    apart = pd.DataFrame(rows, columns=["n", "relative_distance"])
    return RecalibrationCheck(*advise(figures), [note] if note else [], figures, layers, apart, target)


def advise(figures: pd.DataFrame) -> tuple[str, str]:
    """The advice and its reason, from the figures of :func:`check_recalibration`; labels play no part.

    Two AUROCs of the MSP tell ID images from traffic: ``before`` under the running statistics, and ``after`` under the
    traffic's, for both sides. Statistics that suit the traffic make ID images the odd ones out (below 0.5); OOD images
    stay less confident than ID images under any statistics.

    1. ``before`` >= 0.66, ``after`` <= 0.46 and the traffic's mean MSP rises: **recalibrate**.
    2. ``before`` >= 0.66 and ``after`` >= 0.56: **do not**, the traffic holds many out-of-distribution images.
    3. ``before`` < 0.66 and ``after`` > 0.46: **do not**, the traffic looks like ID images: nothing to gain.
    4. Otherwise **cannot tell**: the shift is too small, or the figures contradict each other.

    The numbers were chosen on two ResNet-18s trained on CIFAR-10, with noise, blur and SVHN, from 200 scored images.
    Known mistake there: strong noise with 25 % of OOD images is taken for OOD, although recalibrating would help.
    """
    of_traffic = figures[figures["set"] == "traffic"].set_index("quantity")
    before, after = of_traffic.loc["auroc_msp", ["running", "traffic_statistics"]]
    rise = of_traffic.loc["mean_msp", "difference"]
    told = f"AUROC of ID images against traffic {before:.2f}, under its statistics {after:.2f}; MSP {rise:+.3f}"
    if before >= UNFAMILIAR and after <= SUITED and rise > 0:
        return "recalibrate", f"the new statistics suit the traffic: {told}"
    if before >= UNFAMILIAR and after >= STILL_UNFAMILIAR:
        return "do not: out-of-distribution", f"the traffic stays unfamiliar under its own statistics: {told}"
    if before < UNFAMILIAR and after > SUITED:
        return "do not: nothing to gain", f"the traffic looks like the ID images: {told}"
    return "cannot tell", f"the shift is small, or the figures contradict each other: {told}"


def _figures(sets: list[Images], before: list[Tensor], after: list[Tensor], options: EvaluationOptions) -> pd.DataFrame:
    rows = []
    for role, images, *pair in zip(("id", "traffic"), sets, before, after, strict=True):
        old, new = (logits.argmax(dim=1).numpy() for logits in pair)
        means = {f"mean_{score.__name__}": [score(logits).numpy() for logits in pair] for score in (msp, energy)}
        means["predictions_flipped"] = [old != old, old != new]
        if images.labels is not None and images.folders is None:
            means["accuracy"] = [old == images.labels, new == images.labels]
        counts = set_counts(role, len(images), options.resamples, options.seed)
        for quantity, values in means.items():
            found = weighted_means(np.stack(values, axis=1), counts)
            difference = found[:, 1] - found[:, 0]
            rows.append((role, quantity, len(images), *found[0], difference[0], *interval(difference[1:])))
    own = "auroc_msp_each_under_its_own"
    for quantity, score, known in (("auroc_msp", msp, after), ("auroc_energy", energy, after), (own, msp, before)):
        first, second = auroc(score(before[0]), score(before[1])), auroc(score(known[0]), score(after[1]))
        rows.append(("traffic", quantity, len(sets[1]), first, second, second - first, np.nan, np.nan))
    names = ["set", "quantity", "n", "running", "traffic_statistics", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _mean_shift(first: BatchNormStatistics, second: BatchNormStatistics) -> float:
    return float(np.mean([shift for shift, _ in first.distance(second).values()]))
