"""Replicates of a made-up study whose truth is known: what each network, statistics and set measures on average."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bnood.study.claim import ClaimOptions
from bnood.study.verdict import Record, judge

PRIMARY = ("svhn", "dtd", "cifar100")
ID_SET, NOISE = "cifar10", "gaussian_noise"
TARGET, ID, MIXTURE = "recalibrated:target", "recalibrated:id", "recalibrated:mixture@0.5"
LAYERS = 4
RESAMPLES = 40
MEAN = "mean of svhn, dtd, cifar100"


@dataclass(frozen=True)
class Truth:
    """Means over all seeds and images. By default every hypothesis holds; on ID images statistics change nothing."""

    running_maximum: float = 1.9  # largest unit mean, relative to ID
    target_maximum: float = 1.05
    class_mix: float | None = 1.1  # the same of ID images weighted to the predicted classes
    effective_n: float | None = 400.0  # behind the class mix
    over_activations: float = 0.02  # share above ID's 99th percentile of BN at equal accuracy, over LN and GN
    reestimated: float = 0.0  # the part of what statistics change on OOD images that re-estimation on ID brings
    id_maximum: float = 0.0  # how much lower re-estimation makes the largest unit mean on ID images
    energy: float = 1.0  # how much higher running statistics make it on OOD images
    max_logit: float = 1.0
    msp: float = 0.1
    id_energy: float = 0.0  # the same on ID images, over re-estimated statistics
    id_accuracy: float = 0.0
    auroc: float = 0.05  # what target statistics gain, for both scores
    msp_auroc: float | None = None  # of MSP, where it differs
    fpr95: float = 0.1
    over_ln: float = 0.3  # how far BN at equal accuracy is above LN, in each of the figures of H4
    over_gn: float = 0.3
    shares: dict[str, float] = field(  # of the effect that target statistics move at each kind of place
        default_factory=lambda: {"first": 0.2, "last": 0.7, "only": 0.4, "mean": 0.6, "variance": 0.1}
    )
    energy_shares: dict[str, float] | None = None  # of energy, where they differ
    placebo: float | None = None  # its AUROC
    gaps: dict[tuple[str, int], float] = field(default_factory=dict)  # accuracy of BN stopped at a norm's minus that


class Study(NamedTuple):
    """The two tables that a verdict is made of."""

    draws: pd.DataFrame
    networks: pd.DataFrame

    def where(self, rows: pd.Series) -> "Study":
        return Study(self.draws[rows], self.networks)


def attributes(row: Record) -> Any:
    """A row of the verdict, or one of its estimates, as an object."""
    parts = [attributes(one) for one in row.get("estimates", ())]
    return SimpleNamespace(**{**row, "estimates": parts, "headline": parts[0] if parts else None})


def rows_of(study: Study, options: ClaimOptions | None = None) -> list[Any]:
    return list(map(attributes, judge(*study, options)["rows"]))


def judged(name: str, study: Study, options: ClaimOptions | None = None) -> Any:
    (found,) = [row for row in rows_of(study, options) if row.hypothesis == name]
    return found


def find(hypothesis: Any, quantity: str, dataset: str) -> Any:
    (found,) = [one for one in hypothesis.estimates if (one.quantity, one.dataset) == (quantity, dataset)]
    return found


def made_study(
    truth: Truth = Truth(), by_set: dict[str, dict[str, Any]] | None = None, seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    seed_noise: float = 0.003, image_noise: float = 0.003, family: str = "",
) -> Study:  # fmt: skip
    """The tables of a study in which ``truth`` holds; ``by_set`` gives some sets another truth."""
    random = np.random.default_rng(0)
    truths = {name: replace(truth, **(by_set or {}).get(name, {})) for name in (*PRIMARY, NOISE)}
    shared: dict[tuple[Any, ...], np.ndarray] = {}  # the images' noise, the same for all seeds
    draws = []
    for seed in seeds:
        for key, mean in ((condition[:-1], condition[-1]) for condition in _conditions(truth, truths)):
            network, statistics, dataset, role, detector, metric = key
            if key not in shared:
                shared[key] = random.normal(size=RESAMPLES)
            value = mean + seed_noise * random.normal()
            is_id = role == "id"
            draws.append({
                "run": f"{family}{network}-s{seed}", "network": family + network, "seed": seed,
                "statistics": statistics, "fitted_under": "", "dataset": dataset,
                "role": "ood" if role == "placebo" else role,
                "companion": "svhn" if statistics == MIXTURE and is_id else "",
                "comparison": "placebo" if role == "placebo" else "" if is_id else "ood",
                "detector": detector, "metric": metric,
                "n_id": 50 if is_id or metric.startswith(("auroc", "fpr95")) else 0, "n_ood": 0 if is_id else 100,
                "value": value, "replicates": value + image_noise * shared[key],
            })  # fmt: skip
    networks = [
        {"network": family + network, "seed": seed, "accuracy": accuracy + truth.gaps.get((network[6:], seed), 0.0)}
        for seed in seeds
        for network, accuracy in (("bn", 0.9), ("ln", 0.87), ("gn", 0.85), ("bn-at-ln", 0.875), ("bn-at-gn", 0.855))
    ]
    return Study(pd.DataFrame(draws), pd.DataFrame(networks))


def _conditions(truth: Truth, truths: dict[str, Truth]) -> Iterator[tuple[Any, ...]]:
    for statistics in ("running", ID, TARGET, MIXTURE):
        shifted = 0.0 if statistics == "running" else 1.0
        on_id = "bn", statistics, ID_SET, "id"
        yield *on_id, "", "accuracy", 0.9 + shifted * truth.id_accuracy
        yield *on_id, "units", "unit_mean_max_ratio", 1.0 - shifted * truth.id_maximum
        yield *on_id, "energy", "mean", 9.5 - shifted * truth.id_energy
        yield *on_id, "max_logit", "mean", 9.4
        yield *on_id, "msp", "mean", 0.92
        for name, true in truths.items():
            parts = {"running": 0.0, ID: true.reestimated, TARGET: 1.0, MIXTURE: 0.5}
            for detector, metric, mean in _ood_figures(true, parts[statistics]):
                yield "bn", statistics, name, "ood", detector, metric, mean
    for name, true in truths.items():
        yield from _layer_forms(name, true)
    for detector in ("energy", "msp") if truth.placebo is not None else ():
        yield "bn", TARGET, ID_SET, "placebo", detector, "auroc", truth.placebo
    for network, lower in (("ln", "over_ln"), ("gn", "over_gn"), ("bn-at-ln", ""), ("bn-at-gn", "")):
        yield network, "running", ID_SET, "id", "", "accuracy", 0.86
        yield network, "running", ID_SET, "id", "msp", "mean", 0.8
        for name, true in truths.items():
            below = getattr(true, lower) if lower else 0.0
            for detector, metric in (("units", "unit_mean_max_ratio"), ("msp", "mean"), ("msp", "share_above_0.9")):
                yield network, "running", name, "ood", detector, metric, 0.9 - below
            fewer = true.over_activations if lower else 0.0
            yield network, "running", name, "ood", "units", "share_above_id_p99", 0.05 - fewer
            if true.class_mix is not None:
                yield network, "running", name, "ood", "units", "class_mix_max_ratio", 0.7


def _ood_figures(true: Truth, target: float) -> Iterator[tuple[str, str, float]]:
    rise_of_maximum = true.running_maximum - true.target_maximum
    yield "units", "unit_mean_max_ratio", true.running_maximum - rise_of_maximum * target
    yield "units", "unit_mean_spread_ratio", 1.4 - 0.3 * target
    yield "units", "share_above_id_p99", 0.05
    for metric, mean in (("class_mix_max_ratio", true.class_mix), ("class_mix_effective_n", true.effective_n)):
        if mean is not None:
            yield "units", metric, mean
    for detector, rise in (("energy", true.energy), ("max_logit", true.max_logit), ("msp", true.msp)):
        yield detector, "mean", 5.0 - rise * target
    yield "msp", "share_above_0.9", 0.2
    for detector in ("energy", "msp"):
        gain = true.msp_auroc if detector == "msp" and true.msp_auroc is not None else true.auroc
        yield detector, "auroc", 0.85 + gain * target
        yield detector, "fpr95", 0.5 - true.fpr95 * target
        yield detector, "fpr95_ood_positive", 0.4 - true.fpr95 * target


def _layer_forms(name: str, true: Truth) -> Iterator[tuple[Any, ...]]:
    for detector, metric in (("units", "unit_mean_max_ratio"), ("energy", "mean"), ("max_logit", "mean")):
        shares = true.energy_shares if detector == "energy" and true.energy_shares else true.shares
        base = true.running_maximum if detector == "units" else 5.0
        effects = {"units": true.running_maximum - true.target_maximum, "energy": true.energy}
        whole = effects.get(detector, true.max_logit)
        last, half = LAYERS - 1, LAYERS // 2
        moved = {"mean": shares["mean"], "variance": shares["variance"], f"only:{last}": shares["only"]}
        moved |= {f"{form}:{half}": shares[form] for form in ("first", "last")}
        for form, share in moved.items():
            yield "bn", f"{TARGET}/{form}", name, "ood", detector, metric, base - share * whole
