"""The statements that the normalisation lab looks into, as checks with intervals over seeds.

Each check takes figures of single seeds from the lab's tables, forms their effects per seed and holds the interval over
seeds against a threshold that was stated before. The code of intervals and verdicts is the claim study's
(:mod:`bnood.evaluation.intervals`, :mod:`bnood.study.claim.estimates`); here the images are not resampled, so that an interval is
Student's t interval over seeds, on the lab's one probe batch and one set of validation images.

A check's estimates are necessary parts of its statement for each architecture (:func:`bnood.study.claim.estimates.every`);
architectures that go both ways make it inconclusive (:func:`bnood.study.claim.estimates.agreeing`). Controls are only
reported.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from bnood.evaluation.intervals import Replicates, Unusable, linear
from bnood.lab.results import ARCHITECTURES
from bnood.lab.seed_figures import LabFigures, log10
from bnood.lab.thresholds import CheckOptions
from bnood.study.claim.estimates import (
    FAILED,
    INCONCLUSIVE,
    PASSED,
    REFUTED,
    SUPPORTED,
    Estimate,
    Wanted,
    agreeing,
    estimated,
    every,
    figure,
    not_estimated,
)

# Nets that have not learnt anything name one class, and have the same accuracy to the last digit. Elsewhere seeds that
# do not differ are a sign of one network counted several times, and no verdict follows from them.
SAME_IN_ALL = "every seed gave exactly the same figure"
DECADES, ACCURACY, SHARE, SPREADS = "powers of ten", "accuracy", "share of units", "standard deviations"


@dataclass
class Check:
    """One statement with what was found.

    Attributes:
        check: its letter in the issue's list.
        statement: what is claimed.
        reading: how it is measured.
        estimates: by architecture, those that decide.
        controls: by architecture, those that are only reported.
        notes: what a reader has to know beside the figures.
    """

    check: str
    statement: str
    reading: str
    estimates: dict[str, list[Estimate]] = field(default_factory=dict)
    controls: dict[str, list[Estimate]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def by_architecture(self) -> dict[str, str]:
        """The verdict for each architecture."""
        return {name: every([each.verdict for each in found]) for name, found in self.estimates.items()}

    @property
    def verdict(self) -> str:
        """Supported, refuted or inconclusive."""
        return agreeing(list(self.by_architecture().values()))

    @property
    def sentence(self) -> str:
        """The estimates in words, and the notes."""
        parts = [
            f"{ARCHITECTURES[name]} ({self.by_architecture()[name]}): "
            + "; ".join(f"{each.quantity} {figure(each)} {each.unit}" for each in found)
            for name, found in self.estimates.items()
        ]
        return " ".join(f"{part}." for part in [*parts, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """As ``checks.json`` holds it."""
        return {
            "check": self.check,
            "statement": self.statement,
            "reading": self.reading,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "by_architecture": self.by_architecture(),
            "estimates": [each.to_json() for found in self.estimates.values() for each in found],
            "controls": [each.to_json() for found in self.controls.values() for each in found],
            "notes": self.notes,
        }


Measure = Callable[[], Replicates]


class _Asker:
    """Makes estimates of one architecture (their ``dataset``)."""

    def __init__(self, lab: LabFigures, options: CheckOptions, architecture: str) -> None:
        self.lab, self.options, self.architecture = lab, options, architecture

    def network(self, activation: str, norm: str, suffix: str = "") -> str:
        return "-".join(part for part in (self.architecture, activation, norm, suffix) if part)

    def ask(
        self, measure: Measure, quantity: str, unit: str, threshold: float | None = None, wanted: Wanted = "any"
    ) -> Estimate:
        """The estimate of a measured effect, or of why there is none."""
        level = self.options.level
        try:
            found = estimated(measure(), quantity, self.architecture, unit, threshold, wanted, level)
        except Unusable as reason:
            return not_estimated(str(reason), quantity, self.architecture, unit, threshold, level)
        if unit == ACCURACY and len(found.per_seed) > 1 and found.low == found.high and threshold is not None:
            return replace(found, verdict=_exactly(found.effect, threshold, wanted), reason=SAME_IN_ALL)
        words = {PASSED: SUPPORTED, FAILED: REFUTED}  # a small difference is what is claimed here, and no control
        why = found.reason.replace("the interval is over images and not over seeds", "there is no interval over seeds")
        return replace(found, verdict=words.get(found.verdict, found.verdict), reason=why)

    def gain(self, activation: str, norm: str) -> Measure:
        """Accuracy with a norm minus accuracy without."""
        return lambda: (
            self.lab.final_accuracy(self.network(activation, norm))
            - self.lab.final_accuracy(self.network(activation, "none"))
        )

    def rise(self, activation: str, norm: str) -> Measure:
        """log10(first / last) over the first epoch, with a norm minus without."""
        return lambda: (
            self.lab.gradient_ratio(self.network(activation, norm), True)
            - self.lab.gradient_ratio(self.network(activation, "none"), True)
        )


def _exactly(effect: float, threshold: float, wanted: Wanted) -> str:
    """The verdict on an effect that is the same in all seeds."""
    met = abs(effect) < threshold if wanted == "small" else (effect > threshold) == (wanted == "above")
    return SUPPORTED if met else REFUTED


def check_lab(lab: LabFigures, options: CheckOptions) -> list[Check]:
    """All six checks."""
    checks = [
        Check(
            "a",
            "In a sigmoid net without norm the gradient of the first layer is far smaller than that of the last.",
            f"log10 of the first hidden layer's gradient norm over the last one's is below {-options.starved:g}, both "
            "untrained and on average over the first epoch.",
        ),
        Check(
            "b",
            "In sigmoid nets BN and LN raise that ratio, and the accuracy.",
            f"log10(first / last) over the first epoch rises by more than {options.raised:g} and the final validation "
            f"accuracy by more than {options.gained:g}, for BN and for LN, against no norm.",
        ),
        Check(
            "c",
            "With ReLU the norm makes little difference to accuracy.",
            f"Final validation accuracy with BN and without differ by less than {options.small:g} either way.",
        ),
        Check(
            "d",
            "With BN the last layer's pre-activations move from far off to around zero over the epochs.",
            "Sigmoid net, last hidden layer. In training mode BN puts each unit's mean at its shift, which starts at "
            "0: nothing is left to move. So the input of the activation is taken in evaluation mode, with the running "
            "averages; log10 of the distance of the units' means from zero (root mean square, in standard deviations) "
            f"falls by more than {options.centred:g} from the untrained to the trained net. Such a distance falls "
            "where the units' means come nearer to zero, and where their standard deviations grow: both are reported "
            "apart. What the weights learn is the same distance of the linear map's output, before the norm: it is "
            "reported beside.",
        ),
        Check(
            "e",
            "Deep ReLU nets lose units without norm at a high learning rate, and fewer with it.",
            f"High learning rate, share of units dead on the whole probe batch, mean over layers, at the end: above "
            f"{options.lost:g} without norm, and above that with BN, and with LN, by more than {options.lost:g}.",
        ),
        Check(
            "f",
            "GN falls between LN and BN.",
            f"Sigmoid nets: GN's final accuracy lies between LN's and BN's or within {options.between:g} of them, and "
            f"so does its log10(first / last) over the first epoch, within {options.between_ratio:g}.",
        ),
    ]
    parts = {"a": _starved, "b": _raised, "c": _small, "d": _centred, "e": _lost, "f": _between}
    for check in checks:
        for architecture in lab.architectures():
            estimates, controls = parts[check.check](_Asker(lab, options, architecture))
            check.estimates[architecture], check.controls[architecture] = estimates, controls
        check.notes += _notes(check)
    return checks


Found = tuple[list[Estimate], list[Estimate]]


def _starved(asker: _Asker) -> Found:
    sigmoid, lab, bound = asker.network("sigmoid", "none"), asker.lab, -asker.options.starved
    moments = {"untrained": False, "first epoch": True}
    estimates = [
        asker.ask(
            lambda late=late: lab.gradient_ratio(sigmoid, late),  # type: ignore[misc]
            f"log10(first / last gradient), {when}", DECADES, bound, "below",
        )
        for when, late in moments.items()
    ]  # fmt: skip
    relu = asker.network("relu", "none")
    control = asker.ask(lambda: lab.gradient_ratio(relu, True), "ReLU without norm, first epoch", DECADES)
    return estimates, [control]


def _raised(asker: _Asker) -> Found:
    def both(norm: str) -> Iterator[Estimate]:
        bounds = (asker.options.raised, asker.options.gained) if norm != "gn" else (None, None)
        wanted: Wanted = "above" if norm != "gn" else "any"
        rise, gain = asker.rise("sigmoid", norm), asker.gain("sigmoid", norm)
        yield asker.ask(rise, f"{norm.upper()}: rise of log10(first / last)", DECADES, bounds[0], wanted)
        yield asker.ask(gain, f"{norm.upper()}: gain", ACCURACY, bounds[1], wanted)

    return [*both("bn"), *both("ln")], [*both("gn")]


def _small(asker: _Asker) -> Found:
    bound = asker.options.small
    estimate = asker.ask(asker.gain("relu", "bn"), "ReLU, BN minus none", ACCURACY, bound, "small")
    controls = [
        asker.ask(asker.gain("relu", norm), f"ReLU, {norm.upper()} minus none", ACCURACY) for norm in ("ln", "gn")
    ]
    return [estimate], [*controls, asker.ask(asker.gain("sigmoid", "bn"), "sigmoid, BN minus none", ACCURACY)]


def _centred(asker: _Asker) -> Found:
    def change(network: str, quantity: str) -> Measure:
        lab = asker.lab
        return lambda: lab.last_layer(network, quantity, True) - lab.last_layer(network, quantity, False)

    def fall(network: str, quantity: str) -> Measure:
        lab = asker.lab
        return lambda: log10(lab.last_layer(network, quantity, True)) - log10(lab.last_layer(network, quantity, False))

    def part(place: int) -> Measure:
        lab = asker.lab
        return lambda: (
            log10(lab.centre_and_spread(bn, "running", True)[place])
            - log10(lab.centre_and_spread(bn, "running", False)[place])
        )

    bn, bound = asker.network("sigmoid", "bn"), -asker.options.centred
    moved = asker.ask(
        fall(bn, "running_offset"), "log10 of the distance from zero, evaluation mode, change", DECADES, bound, "below"
    )
    controls = [
        asker.ask(lambda: asker.lab.last_layer(bn, "running_offset", False), "the distance, untrained", SPREADS),
        asker.ask(lambda: asker.lab.last_layer(bn, "running_offset", True), "the distance, trained", SPREADS),
        asker.ask(part(0), "the units' means alone, log10 of their root mean square, change", DECADES),
        asker.ask(part(1), "the units' standard deviations alone, the same", DECADES),
        asker.ask(change(bn, "preactivation_offset"), "the distance, training mode, change", SPREADS),
        asker.ask(fall(bn, "linear_offset"), "linear map's output, log10 of the distance, change", DECADES),
        asker.ask(fall(asker.network("sigmoid", "none"), "linear_offset"), "the same without norm", DECADES),
        asker.ask(fall(asker.network("relu", "bn"), "linear_offset"), "the same with ReLU and BN", DECADES),
    ]
    return [moved], controls


def _lost(asker: _Asker) -> Found:
    def dead(norm: str, suffix: str = "high", at_end: bool = True) -> Measure:
        network = asker.network("relu", norm, suffix)
        return lambda: asker.lab.mean_over_layers(network, "dead_share", at_end)

    bound = asker.options.lost
    estimates = [asker.ask(dead("none"), "dead without norm", SHARE, bound, "above")]
    controls = [
        asker.ask(dead("none", at_end=False), "dead without norm, untrained", SHARE),
        asker.ask(dead("none", suffix=""), "dead without norm, main learning rate", SHARE),
    ]
    for norm in ("bn", "ln", "gn"):
        decides = norm != "gn"
        fewer = asker.ask(
            lambda norm=norm: dead("none")() - dead(norm)(),  # type: ignore[misc]
            f"none minus {norm.upper()}", SHARE, bound if decides else None, "above" if decides else "any",
        )  # fmt: skip
        (estimates if decides else controls).append(fewer)
    return estimates, controls


def _between(asker: _Asker) -> Found:
    def accuracy(norm: str) -> Replicates:
        return asker.lab.final_accuracy(asker.network("sigmoid", norm))

    def ratio(norm: str) -> Replicates:
        return asker.lab.gradient_ratio(asker.network("sigmoid", norm), True)

    estimates, controls = [], []
    for measure, name, unit, margin in (
        (accuracy, "accuracy", ACCURACY, asker.options.between),
        (ratio, "log10(first / last)", DECADES, asker.options.between_ratio),
    ):
        estimates += [
            asker.ask(
                lambda measure=measure, side=side: inside(measure("gn"), measure("ln"), measure("bn"), side),  # type: ignore[misc]
                f"{name}, GN {words} of LN and BN by", unit, -margin, "above",
            )
            for side, words in ((-1, "above the lower"), (1, "below the higher"))
        ]  # fmt: skip
        controls += [
            asker.ask(
                lambda measure=measure, norm=norm: measure("gn") - measure(norm),  # type: ignore[misc]
                f"{name}, GN minus {norm.upper()}", unit,
            )
            for norm in ("ln", "bn")
        ]  # fmt: skip
    return estimates, controls


def inside(inner: Replicates, one: Replicates, other: Replicates, side: int) -> Replicates:
    """How far ``inner`` lies above the lower (side -1) or below the higher (side 1) of two, by their means."""
    common = linear([(0.0, inner), (0.0, one), (0.0, other)]).seeds
    inner, one, other = (each.only(common) for each in (inner, one, other))
    ordered = sorted((one, other), key=lambda each: float(each.values.mean()))
    return inner - ordered[0] if side < 0 else ordered[1] - inner


def _notes(check: Check) -> list[str]:
    """Why an estimate is not decided (or is, though its seeds do not differ), and which seeds a comparison lacks."""
    estimates = [each for found in check.estimates.values() for each in found]
    several = len(check.estimates) > 1
    reasons: dict[tuple[bool, str], list[str]] = {}
    for each in estimates:
        if each.reason:
            name = f"{each.quantity} ({ARCHITECTURES[each.dataset]})" if several else each.quantity
            reasons.setdefault((each.verdict == INCONCLUSIVE, each.reason), []).append(name)
    notes = [
        f"Not decided: {'; '.join(names)}, because {reason}" if is_open else f"Of {'; '.join(names)}, {reason}"
        for (is_open, reason), names in reasons.items()
    ]
    dropped = sorted({seed for each in estimates for seed in each.dropped})
    return [*notes, *([f"Seeds without a figure: {', '.join(map(str, dropped))}"] if dropped else [])]


def checks_table(checks: list[Check]) -> pd.DataFrame:
    """``checks.csv``: a row for each estimate and control."""
    rows: list[Mapping[str, Any]] = []
    for check in checks:
        for role, group in (("estimate", check.estimates), ("control", check.controls)):
            for architecture, found in group.items():
                for each in found:
                    content = each.to_json()
                    del content["dataset"]
                    per_seed = " ".join(f"{seed}:{value:.6g}" for seed, value in each.per_seed.items())
                    row = {"check": check.check, "role": role, "architecture": architecture}
                    rows.append(row | content | {"per_seed": per_seed, "check_verdict": check.verdict})
    return pd.DataFrame(rows)
