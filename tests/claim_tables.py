"""Pooled tables of a made-up study whose truth is known: what each network, condition and set measures on average."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from bnood.study.claim import ClaimOptions, gather
from bnood.study.claim.causes import h4
from bnood.study.claim.estimates import Estimate
from bnood.study.claim.hypotheses import h1, h2, h3
from bnood.study.claim.judging import Hypothesis
from bnood.study.claim.places import h5

HEADLINE = ("svhn", "dtd", "cifar100")
ID_SET, NOISE = "cifar10", "gaussian_noise"
MIXTURE = "recalibrated:mixture"
LAYERS = 4
JUDGES = {"H1": h1, "H2": h2, "H3": h3, "H4": h4, "H5": h5}
RESAMPLES = 40


@dataclass(frozen=True)
class Truth:
    """Means over all seeds and images. By default every hypothesis holds; on ID images statistics change nothing.

    Attributes:
        running_maximum, matched_maximum: largest unit mean, relative to ID.
        class_mix: the same of ID images weighted to the predicted classes; None: not measured.
        share_above_p99: of single activations, under running statistics; of BN at equal accuracy over LN and GN it is
            over_activations.
        reestimated: which part of all that statistics change on OOD images re-estimation on ID images changes already.
        id_maximum: how much lower re-estimation makes the largest unit mean on ID images.
        energy, max_logit, msp: how much higher running statistics make them on OOD images.
        id_energy: the same on ID images, over re-estimated statistics.
        auroc, fpr95: what matched statistics gain for both scores (fpr95 falls by it).
        msp_auroc: of MSP alone, where it differs.
        over_ln, over_gn: how far BN at equal accuracy is above LN and GN, in each of the figures of H4.
        shares: share of the effect that matched statistics move at each kind of place.
        energy_shares: of energy alone, where they differ.
        whole: factor on the whole effect of the interventions.
        over_id_msp: how far MSP on ID images of BN at equal accuracy is above that of LN and GN.
        gaps: accuracy of BN stopped at a norm's minus that norm's, by (norm, seed).
    """

    running_maximum: float = 1.9
    matched_maximum: float = 1.05
    class_mix: float | None = 1.1
    share_above_p99: float = 0.05
    over_activations: float = 0.02
    reestimated: float = 0.0
    id_maximum: float = 0.0
    energy: float = 1.0
    max_logit: float = 1.0
    msp: float = 0.1
    id_energy: float = 0.0
    id_accuracy: float = 0.0
    auroc: float = 0.05
    msp_auroc: float | None = None
    fpr95: float = 0.1
    over_ln: float = 0.3
    over_gn: float = 0.3
    over_id_msp: float = 0.0
    shares: dict[str, float] = field(
        default_factory=lambda: {"first": 0.2, "last": 0.7, "only": 0.4, "mean": 0.6, "variance": 0.1}
    )
    energy_shares: dict[str, float] | None = None
    whole: float = 1.0
    gaps: dict[tuple[str, int], float] = field(default_factory=dict)


@dataclass
class Study:
    """The three tables, as :func:`bnood.study.claim.judge` takes them."""

    draws: pd.DataFrame
    interventions: pd.DataFrame
    networks: pd.DataFrame

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        return self.draws, self.interventions, self.networks


def judged(name: str, study: Study, options: ClaimOptions | None = None) -> Hypothesis:
    """One hypothesis, judged by a study's tables."""
    return JUDGES[name](gather(*study.tables(), options))


def find(hypothesis: Hypothesis, quantity: str, dataset: str) -> Estimate:
    """The one estimate of this quantity on this set."""
    everything = (hypothesis.headline, *hypothesis.estimates, *hypothesis.controls)
    (found,) = [one for one in everything if (one.quantity, one.dataset) == (quantity, dataset)]
    return found


class _Noise:
    """Noise of its own for every row and seed, and draws around it that all seeds share."""

    def __init__(self, seed_noise: float, image_noise: float) -> None:
        self.random = np.random.default_rng(0)
        self.seed_noise, self.image_noise = seed_noise, image_noise
        self.shared: dict[tuple[object, ...], np.ndarray] = {}

    def measured(self, mean: float, key: tuple[object, ...]) -> dict[str, Any]:
        if key not in self.shared:
            self.shared[key] = self.random.normal(size=RESAMPLES)
        value = mean + self.seed_noise * self.random.normal()
        return {"value": value, "draws": value + self.image_noise * self.shared[key]}


def made_study(
    truth: Truth | None = None,
    by_set: dict[str, dict[str, Any]] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    seed_noise: float = 0.003,
    image_noise: float = 0.003,
) -> Study:
    """The tables of a study in which ``truth`` holds; ``by_set`` gives some sets another truth."""
    truth, noise = truth or Truth(), _Noise(seed_noise, image_noise)
    truths = {name: replace(truth, **(by_set or {}).get(name, {})) for name in (*HEADLINE, NOISE)}
    draws = [
        _row(network, seed, noise, statistics=statistics, dataset=dataset, role=role, score=score, metric=metric)
        | noise.measured(mean, (network, statistics, dataset, score, metric))
        for seed in seeds
        for network, statistics, dataset, role, score, metric, mean in _conditions(truth, truths)
    ]
    interventions = [
        _row("bn", seed, noise, kind=kind, place="x", position=position, share=np.nan, dataset=dataset, role="ood",
             score=score, metric=metric)
        | noise.measured(mean, (kind, position, dataset, score))
        for seed in seeds
        for kind, position, dataset, score, metric, mean in _interventions(truths)
    ]  # fmt: skip
    networks = [
        {"network": network, "seed": seed, "accuracy": accuracy + truth.gaps.get((network[6:], seed), 0.0)}
        for seed in seeds
        for network, accuracy in (("bn", 0.9), ("ln", 0.87), ("gn", 0.85), ("bn-at-ln", 0.875), ("bn-at-gn", 0.855))
    ]
    return Study(pd.DataFrame(draws), pd.DataFrame(interventions), pd.DataFrame(networks))


def _row(network: str, seed: int, noise: _Noise, **key: object) -> dict[str, Any]:
    common = {"run": f"{network}-s{seed}", "norm": network[:2], "seed": seed, "network": network}
    mixed = key.get("statistics") == MIXTURE
    common |= {
        "composition": "mixed 0.5" if mixed else "",
        "companion": "svhn" if mixed and key["role"] == "id" else "",
    }
    # Of the figures of a set alone, as an evaluation writes them, none compares with ID images.
    alone = key["metric"] not in ("auroc", "fpr95", "fpr95_ood_positive")
    return common | {"batch_size": 0, "n": 100, "n_id": 0 if alone else 50} | key


def _conditions(truth: Truth, truths: dict[str, Truth]) -> Iterator[tuple[str, str, str, str, str, str, float]]:
    for statistics in ("running", "recalibrated:id", "recalibrated:target", MIXTURE):
        shifted = 0.0 if statistics == "running" else 1.0
        for score, metric, mean in _id_figures(truth, shifted):
            yield "bn", statistics, ID_SET, "id", score, metric, mean
        for name, true in truths.items():
            parts = {"running": 0.0, "recalibrated:id": true.reestimated, "recalibrated:target": 1.0, MIXTURE: 0.5}
            for score, metric, mean in _ood_figures(true, parts[statistics]):
                yield "bn", statistics, name, "ood", score, metric, mean
    for network, lower in (("ln", "over_ln"), ("gn", "over_gn"), ("bn-at-ln", ""), ("bn-at-gn", "")):
        yield network, "running", ID_SET, "id", "", "accuracy", 0.86
        yield network, "running", ID_SET, "id", "msp", "mean", 0.8 - (truth.over_id_msp if lower else 0.0)
        for name, true in truths.items():
            below = getattr(true, lower) if lower else 0.0
            for score, metric in (("penultimate", "unit_mean_max_ratio"), ("msp", "mean"), ("msp", "share_above_0.9")):
                yield network, "running", name, "ood", score, metric, 0.9 - below
            fewer = true.over_activations if lower else 0.0
            yield network, "running", name, "ood", "penultimate", "share_above_id_p99", 0.05 - fewer
            if true.class_mix is not None:
                yield network, "running", name, "ood", "penultimate", "class_mix_max_ratio", 0.7


def _id_figures(truth: Truth, shifted: float) -> Iterator[tuple[str, str, float]]:
    yield "", "accuracy", 0.9 + shifted * truth.id_accuracy
    yield "penultimate", "unit_mean_max_ratio", 1.0 - shifted * truth.id_maximum
    yield "energy", "mean", 9.5 - shifted * truth.id_energy
    yield "max_logit", "mean", 9.4
    yield "msp", "mean", 0.92


def _ood_figures(true: Truth, matched: float) -> Iterator[tuple[str, str, float]]:
    rise_of_maximum = true.running_maximum - true.matched_maximum
    yield "penultimate", "unit_mean_max_ratio", true.running_maximum - rise_of_maximum * matched
    yield "penultimate", "unit_mean_spread_ratio", 1.4 - 0.3 * matched
    yield "penultimate", "share_above_id_p99", true.share_above_p99
    if true.class_mix is not None:
        yield "penultimate", "class_mix_max_ratio", true.class_mix
    for score, rise in (("energy", true.energy), ("max_logit", true.max_logit), ("msp", true.msp)):
        yield score, "mean", 5.0 - rise * matched
    yield "msp", "share_above_0.9", 0.2
    for score in ("energy", "msp"):
        gain = true.msp_auroc if score == "msp" and true.msp_auroc is not None else true.auroc
        yield score, "auroc", 0.85 + gain * matched
        yield score, "fpr95", 0.5 - true.fpr95 * matched
        yield score, "fpr95_ood_positive", 0.4 - true.fpr95 * matched


def _interventions(truths: dict[str, Truth]) -> Iterator[tuple[str, float, str, str, str, float]]:
    metrics = (("penultimate", "unit_mean_max_ratio"), ("energy", "mean"), ("max_logit", "mean"))
    for name, true in truths.items():
        for score, metric in metrics:
            shares = true.energy_shares if score == "energy" and true.energy_shares else true.shares
            base = {"penultimate": true.running_maximum}.get(score, 5.0)
            effects = {"penultimate": true.running_maximum - true.matched_maximum, "energy": true.energy}
            whole = true.whole * effects.get(score, true.max_logit)
            yield "none", np.nan, name, score, metric, base
            yield "all", np.nan, name, score, metric, base - whole
            for kind in ("mean", "variance"):
                yield kind, np.nan, name, score, metric, base - shares[kind] * whole
            for position in range(LAYERS):
                last = position == LAYERS - 1
                yield "only", position, name, score, metric, base - shares["only"] * whole * last
            for position in range(1, LAYERS + 1):
                for kind in ("first", "last"):
                    share = {LAYERS: 1.0, LAYERS // 2: shares[kind]}.get(position, 0.5)
                    yield kind, position, name, score, metric, base - share * whole
            yield "path", 0.5, name, score, metric, base
