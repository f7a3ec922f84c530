"""H4 and H5: whether the effects are BatchNorm's doing, and where in the network they arise.

The rules that all hypotheses share stand at the head of :mod:`bnood.claim.hypotheses`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from bnood.claim.estimates import INCONCLUSIVE, REFUTED, SUPPORTED, Estimate, agreeing, at_least_one, every, figure
from bnood.claim.hypotheses import (
    ACCURACY,
    CONFIDENT,
    ENERGY,
    MATCHED,
    MAX_LOGIT,
    MSP,
    UNIT_MAXIMUM,
    Evidence,
    Hypothesis,
    Judged,
    Part,
    concluded,
    judge_parts,
    list_beside,
    on_id,
)
from bnood.claim.measurements import NO_POSITION, Key, Measurements, Quantity
from bnood.intervals import Ratio, Replicates, Unusable, mean_of, ratio_of

NORMS = ("ln", "gn")


def equally_accurate_seeds(evidence: Evidence, norm: str) -> tuple[list[int], dict[int, float]]:
    """Seeds whose ``bn-at-<norm>`` network is as accurate as their ``<norm>`` network, and the others' differences.

    Raises :class:`Unusable` where no seed has both, or none is as accurate.
    """
    left, right = f"bn-at-{norm}", norm
    accuracies, allowed = evidence.accuracies, evidence.options.accuracy_gap
    seeds = sorted({seed for network, seed in accuracies if network == left and (right, seed) in accuracies})
    if not seeds:
        raise Unusable(f"no seed has an accuracy of both {left} and {right}")
    gaps = {seed: accuracies[left, seed] - accuracies[right, seed] for seed in seeds}
    # A difference of exactly the allowed one is rounded up or down: 0.90 - 0.89 > 0.01 in float64.
    kept = [seed for seed in seeds if abs(gaps[seed]) <= allowed + 1e-9]
    beyond = {seed: gap for seed, gap in gaps.items() if seed not in kept}
    if not kept:
        shown = ", ".join(f"seed {seed}: {gap:+.3f}" for seed, gap in beyond.items())
        raise Unusable(f"the accuracies of {left} and {right} differ by more than {allowed:g} ({shown})")
    return kept, beyond


def h4(evidence: Evidence) -> Hypothesis:
    """H4: BatchNorm nets show more of H1 and more overconfidence on OOD images than LN and GN nets as accurate.

    Everything under running statistics (LN and GN keep none). The effect is the mean over LN and GN. Supported when
    the largest unit mean, the mean MSP and the share of images with MSP > 0.9 are all higher by their minimum; refuted
    when the difference in the largest unit mean or in the mean MSP is below its minimum. Where LN and GN contradict
    each other, inconclusive.
    """
    options = evidence.options
    minimums = {
        "largest unit mean": (UNIT_MAXIMUM, options.minimum_unit_ratio),
        "mean MSP": (MSP, options.minimum_msp),
        "share with MSP > 0.9": (CONFIDENT, options.minimum_confident_share),
    }

    def difference(norm: str, quantity: Quantity, dataset: str) -> Replicates:
        left = evidence.key(quantity, dataset, network=f"bn-at-{norm}")
        compared = evidence.conditions.difference(left, evidence.key(quantity, dataset, network=norm))
        return compared.only(equally_accurate_seeds(evidence, norm)[0])

    def over_norms(quantity: Quantity, dataset: str) -> Replicates:
        return mean_of([difference(norm, quantity, dataset) for norm in NORMS])

    def finished(norm: str, quantity: Quantity, dataset: str) -> Replicates:
        left = evidence.key(quantity, dataset)
        return evidence.conditions.difference(left, evidence.key(quantity, dataset, network=norm))

    def parts(label: str, of: Callable[[Quantity, str], Replicates], judged: bool = True) -> list[Part]:
        return [
            Part(f"{name}, {label}", q.unit, partial(of, q), minimum if judged else None, "above")
            for name, (q, minimum) in minimums.items()
        ]

    judged = judge_parts(evidence, parts("bn - ln and gn, equal accuracy", over_norms), _norm_rule)
    alone = {norm: list_beside(evidence, parts(f"bn-at-{norm} - {norm}", partial(difference, norm))) for norm in NORMS}
    judged = _norms_agree(judged, {norm: found[: len(minimums)] for norm, found in alone.items()})
    beside = [one for found in alone.values() for one in found]
    for norm in NORMS:
        beside += list_beside(evidence, parts(f"finished bn - {norm}", partial(finished, norm), judged=False))
    controls = [
        one
        for norm in NORMS
        for one in on_id(
            evidence,
            [
                Part(f"ID accuracy, bn-at-{norm} - {norm}", ACCURACY.unit,
                     partial(difference, norm, ACCURACY), options.accuracy_gap, "small")
            ],
        )
    ]  # fmt: skip
    shown = "; ".join(
        f"{name} {figure(one)} (LN alone {figure(alone['ln'][place])}, GN alone {figure(alone['gn'][place])})"
        for place, (name, one) in enumerate(zip(minimums, judged.mean, strict=True))
    )
    sentence = (
        f"On the {judged.mean[0].dataset}, BN minus the mean of LN and GN of equal accuracy: {shown}"
        + _left_out(evidence)
    )
    statement = "LN and GN nets show less of H1 and less OOD overconfidence than BN nets of equal accuracy."
    return concluded("H4", statement, judged, sentence, beside, controls)


def _norm_rule(verdicts: Sequence[str]) -> str:
    """Of the largest unit mean, the mean MSP and the confident share; see :func:`h4`."""
    return every(verdicts) if REFUTED in verdicts[:2] or REFUTED not in verdicts else INCONCLUSIVE


def _norms_agree(judged: Judged, alone: dict[str, list[Estimate]]) -> Judged:
    """Take the verdict away where LN and GN contradict each other, or one contradicts their mean."""
    verdicts = {norm: _norm_rule([one.verdict for one in found]) for norm, found in alone.items()}
    if not {SUPPORTED, REFUTED} <= {judged.verdict, *verdicts.values()}:
        return judged
    shown = ", ".join(f"against {norm.upper()} {verdict}" for norm, verdict in verdicts.items())
    return replace(judged, verdict=INCONCLUSIVE, clauses=[f"It depends on the norm: {shown}.", *judged.clauses])


def _left_out(evidence: Evidence) -> str:
    """The seeds whose networks are not equally accurate, for the sentence."""
    found = []
    for norm in NORMS:
        try:
            beyond = equally_accurate_seeds(evidence, norm)[1]
        except Unusable:
            continue  # said as the reason of the verdict
        found += [f"seed {seed} of {norm} ({gap:+.3f})" for seed, gap in beyond.items()]
    return f"; not equally accurate and left out: {', '.join(found)}" if found else ""


class Place(NamedTuple):
    """A part of the network that gets matched statistics, as the table of interventions names it."""

    label: str
    kind: str
    position: int = NO_POSITION


def resolve_places(interventions: Measurements, wanted: Sequence[str]) -> list[Place]:
    """The places of :data:`bnood.claim.options.PLACES` in a network, whose layers are counted by the kind ``only``.

    Where a sweep left numbers of layers out, the halves are the nearest there are; the label gives the numbers.
    Raises :class:`Unusable` if single layers, or the first or last few, were not intervened in.
    """
    positions = {
        kind: sorted(int(name) for name in interventions.names("position", kind=kind))
        for kind in ("only", "first", "last")
    }
    if not positions["only"]:
        raise Unusable("intervention_draws has no intervention in single layers, so that layers cannot be counted")
    layers = positions["only"][-1] + 1
    half = {"first": layers // 2, "last": layers - layers // 2}

    def part(kind: str) -> Place:
        # All layers are no part of the network.
        strict = [position for position in positions[kind] if 0 < position < layers]
        if not strict:
            raise Unusable(f"intervention_draws has no intervention in the {kind} layers")
        count = min(strict, key=lambda position: (abs(position - half[kind]), position))
        return Place(f"{kind} {count} of {layers} layers", kind, count)

    found = {
        "first half": lambda: part("first"),
        "last half": lambda: part("last"),
        "last layer": lambda: Place("last layer alone", "only", layers - 1),
        "means": lambda: Place("means alone", "mean"),
        "variances": lambda: Place("variances alone", "variance"),
    }
    return [found[name]() for name in wanted]


def h5(evidence: Evidence) -> Hypothesis:
    """H5: matched statistics in a part of the network alone move a share of the effects of H1 and H2.

    The share of place X is (none - X) / (none - all), a ratio of means over seeds with Fieller's interval at the
    Bonferroni level of the number of places. It has a meaning only where the whole effect, none - all, is above 0. For
    each of largest unit mean, energy and max logit: supported when at least one place moves the minimum share, refuted
    when every place moves less. All three supported: supported; any refuted and none supported: refuted.

    ``all`` has to be the matched statistics and ``none`` the running ones, which the controls compare.
    """
    options, quantities = (
        evidence.options,
        {"largest unit mean": UNIT_MAXIMUM, "energy": ENERGY, "max logit": MAX_LOGIT},
    )
    interventions = evidence.interventions
    problem = ""
    found = [Place(name, "") for name in options.places]
    if interventions is None:
        problem = "there are no interventions: intervention_draws is empty"
    else:
        try:
            found = resolve_places(interventions, options.places)
        except Unusable as error:
            problem = str(error)

    def key(kind: str, position: int, quantity: Quantity, dataset: str) -> Key:
        return ("bn", kind, position, dataset, "ood", quantity.score, quantity.metric)

    def moved(kind: str, position: int, quantity: Quantity, dataset: str) -> Replicates:
        if interventions is None or problem:
            raise Unusable(problem)
        none = key("none", NO_POSITION, quantity, dataset)
        return interventions.difference(none, key(kind, position, quantity, dataset))

    def share(place: Place, quantity: Quantity) -> Callable[[str], Ratio]:
        return lambda dataset: ratio_of(
            moved(place.kind, place.position, quantity, dataset), moved("all", NO_POSITION, quantity, dataset)
        )

    def whole(quantity: Quantity) -> Callable[[str], Replicates]:
        return lambda dataset: moved("all", NO_POSITION, quantity, dataset)

    def against_condition(kind: str, statistics: str, quantity: Quantity) -> Callable[[str], Replicates]:
        def compared(dataset: str) -> Replicates:
            if interventions is None:
                raise Unusable(problem)
            intervened = interventions.get(*key(kind, NO_POSITION, quantity, dataset))
            return intervened - evidence.conditions.get(*evidence.key(quantity, dataset, statistics))

        return compared

    parts = [
        Part(f"{name}: {place.label}", "share of the effect", share(place, quantity), options.minimum_share, "above",
             level=options.place_level)
        for name, quantity in quantities.items() for place in found
    ]  # fmt: skip
    count = len(found)

    def rule(verdicts: Sequence[str]) -> str:
        by_quantity = [verdicts[start : start + count] for start in range(0, len(verdicts), count)]
        return agreeing([at_least_one(places) for places in by_quantity])

    judged = judge_parts(evidence, parts, rule)
    beside = list_beside(
        evidence,
        [Part(f"{name}: whole effect, none - all", q.unit, whole(q), 0.0, "above") for name, q in quantities.items()],
    )
    controls = list_beside(
        evidence,
        [
            Part(f"{name}: {kind} - {statistics}", q.unit, against_condition(kind, statistics, q),
                 options.control_intervention, "small")
            for name, q in quantities.items() for kind, statistics in (("all", MATCHED), ("none", "running"))
        ],
        each_set=False,
    )  # fmt: skip
    shown = "; ".join(
        _shown_places(name, judged.mean[start : start + count], options.minimum_share)
        for name, start in zip(quantities, range(0, len(parts), count), strict=True)
    )
    sentence = f"On the {judged.mean[0].dataset}, matched statistics in a part of the network: {shown}"
    statement = (
        "Matched statistics in some layers, or means or variances alone, move a share of the effects of H1 and H2."
    )
    return concluded("H5", statement, judged, sentence, beside, controls)


def _shown_places(name: str, places: Sequence[Estimate], minimum: float) -> str:
    """What the place that moves most moves, and how many places move enough."""
    known = [one for one in places if not math.isnan(one.effect)]
    if not known:
        return f"{name} not estimated"
    most = max(known, key=lambda one: one.effect)
    enough = sum(one.verdict == SUPPORTED for one in places)
    place = most.quantity.removeprefix(f"{name}: ")
    return (
        f"of the effect on the {name}, {place} moves the largest share, {figure(most)}, and {enough} of "
        f"{len(places)} places are shown to move {minimum:g} or more"
    )
