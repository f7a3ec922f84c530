"""H5: where in the network the effects arise.

The rules that all hypotheses share stand at the head of :mod:`bnood.study.claim.hypotheses`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bnood.evaluation.intervals import Ratio, Replicates, Unusable, ratio_of
from bnood.study.claim.estimates import SUPPORTED, Estimate, agreeing, at_least_one, directed, figure
from bnood.study.claim.judging import (
    MATCHED,
    REESTIMATED,
    Evidence,
    Hypothesis,
    Part,
    concluded,
    judge_parts,
    list_beside,
)
from bnood.study.claim.measurements import ENERGY, MAX_LOGIT, NO_POSITION, UNIT_MAXIMUM, Key, Measurements, Quantity

QUANTITIES = {"largest unit mean": UNIT_MAXIMUM, "energy": ENERGY, "max logit": MAX_LOGIT}
# What re-estimation on ID images does to the OOD images is put into the sentence above this share of the whole effect.
NOTABLE = 0.25


class Place(NamedTuple):
    """A part of the network that gets matched statistics, as the table of interventions names it.

    ``even`` is the share that it would move if the effect were spread evenly: over layers by their number, over means
    and variances by halves.
    """

    label: str
    kind: str
    position: int = NO_POSITION
    even: float = 0.5


def resolve_places(interventions: Measurements, wanted: Sequence[str]) -> list[Place]:
    """The places of :data:`bnood.study.claim.options.PLACES` in a network, whose layers are counted by the kind ``only``.

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
        return Place(f"{kind} {count} of {layers} layers", kind, count, count / layers)

    found = {
        "first half": lambda: part("first"),
        "last half": lambda: part("last"),
        "last layer": lambda: Place("last layer alone", "only", layers - 1, 1 / layers),
        "means": lambda: Place("means alone", "mean"),
        "variances": lambda: Place("variances alone", "variance"),
    }
    return [found[name]() for name in wanted]


def h5(evidence: Evidence) -> Hypothesis:
    """H5: matched statistics in a part of the network move more than their even share of the effects of H1 and H2.

    The share of place X is (none - X) / (none - all), a ratio of means over seeds with Fieller's interval at the
    Bonferroni level of the number of places. It has a meaning only where the whole effect, none - all, is above 0 at
    the same level.

    Any half of a network moves about half of an effect that is spread evenly, so that "moves a quarter" would be met
    by an effect without a place. A place is therefore supported when its interval lies above both the minimum share and
    its even share (k of L layers: k / L; means or variances: 1/2), and refuted when it lies below the minimum share:
    between the two it moves something, but no more than its part. For each of largest unit mean, energy and max logit:
    supported when at least one place is, refuted when all are refuted. All three supported: supported; any refuted and
    none supported: refuted. (Shares need not add up to 1: where two complements, as the halves, are both above their
    even shares, the effect takes both, and the sentence names both.)

    ``all`` has to be the matched statistics and ``none`` the running ones, which the controls compare where both were
    scored on as many images; on a part of the images there is no pairing, and no comparison.
    """
    options, interventions = evidence.options, evidence.interventions
    problem, found = "", [Place(name, "") for name in options.places]
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

    def reestimated(quantity: Quantity) -> Callable[[str], Replicates]:
        return lambda dataset: evidence.change(quantity, dataset, second=REESTIMATED)

    def against_condition(kind: str, statistics: str, quantity: Quantity) -> Callable[[str], Replicates]:
        def compared(dataset: str) -> Replicates:
            if interventions is None:
                raise Unusable(problem)
            condition = evidence.key(quantity, dataset, statistics)
            return interventions.difference(
                key(kind, NO_POSITION, quantity, dataset), condition, other=evidence.conditions
            )

        return compared

    parts = [
        Part(f"{name}: {place.label}", "share of the effect", share(place, quantity),
             max(options.minimum_share, place.even), "above", level=options.place_level, refuting=options.minimum_share)
        for name, quantity in QUANTITIES.items() for place in found
    ]  # fmt: skip
    count = len(found)

    def rule(verdicts: Sequence[str]) -> str:
        by_quantity = [verdicts[start : start + count] for start in range(0, len(verdicts), count)]
        return agreeing([at_least_one(places) for places in by_quantity])

    judged = judge_parts(evidence, parts, rule)
    wholes = list_beside(
        evidence,
        [
            Part(f"{name}: whole effect, none - all", q.unit, whole(q), 0.0, "above", level=options.place_level)
            for name, q in QUANTITIES.items()
        ],
    )
    before = list_beside(
        evidence,
        [
            Part(
                f"{name}: running - recalibrated:id on all scored images",
                q.unit,
                reestimated(q),
                None,
                "any",
                level=options.place_level,
            )
            for name, q in QUANTITIES.items()
        ],
    )
    alone = list_beside(
        evidence,
        [
            Part(f"{name}: none - {place.label}", q.unit, partial(moved, place.kind, place.position, q), None, "any",
                 level=options.place_level)
            for name, q in QUANTITIES.items() for place in found
        ],
    )  # fmt: skip
    controls = list_beside(
        evidence,
        [
            Part(f"{name}: {kind} - {statistics}", q.unit, against_condition(kind, statistics, q),
                 options.control_intervention, "small")
            for name, q in QUANTITIES.items() for kind, statistics in (("all", MATCHED), ("none", "running"))
        ],
        each_set=False,
    )  # fmt: skip
    shown = "; ".join(
        _shown_places(name, judged.mean[start : start + count], wholes[place], options.minimum_share)
        for place, (name, start) in enumerate(zip(QUANTITIES, range(0, len(parts), count), strict=True))
    )
    sentence = (
        f"On the {judged.mean[0].dataset}, matched statistics in a part of the network: {shown}"
        f"{_shown_alone(wholes[: len(QUANTITIES)], alone[: len(parts)])}"
        f"{_shown_before(wholes[: len(QUANTITIES)], before[: len(QUANTITIES)])}"
    )
    statement = (
        "Matched statistics in some layers, or in means or variances alone, move more than their even share of the "
        "effects of H1 and H2: the effect has a place."
    )
    return concluded("H5", statement, judged, sentence, [*wholes, *alone, *before], controls)


def _shown_places(name: str, places: Sequence[Estimate], whole: Estimate, minimum: float) -> str:
    """What the place that moves most moves, how many move the minimum, and which more than their even share."""
    known = [one for one in places if not math.isnan(one.effect)]
    if not known:
        return f"{name} not estimated"
    if not whole.low > 0:
        return (
            f"of the {name} no share can be given, because the whole effect is not shown to be above 0: {figure(whole)}"
        )
    most = max(known, key=lambda one: one.effect)
    moving = sum(one.low > minimum and one.n_seeds > 1 for one in places)
    local = [_place(one, name) for one in places if one.verdict == SUPPORTED]
    localised = (
        f"localised, with more than its even share: {' and '.join(local)}" if local else "not shown to be localised"
    )
    return (
        f"of the effect on the {name}, {_place(most, name)} has the largest mean share, {figure(most)}; {moving} of "
        f"{len(places)} places are shown to move {minimum:g} or more ({localised})"
    )


def _shown_alone(wholes: Sequence[Estimate], alone: Sequence[Estimate]) -> str:
    """Where there is no whole to have a share of: the places that by themselves move a quantity either way."""
    told = []
    count = len(alone) // len(wholes)
    for place, (name, whole) in enumerate(zip(QUANTITIES, wholes, strict=True)):
        moving = [
            one
            for one in alone[place * count : (place + 1) * count]
            if one.n_seeds > 1 and (one.low > 0 or one.high < 0)
        ]
        if whole.low > 0 or not moving:
            continue
        shown = []
        for one in moving:
            word, size = directed(one, "lower", "raise")
            shown.append(f"{_place(one, name).removeprefix('none - ')} {word} it by {size}")
        told.append(f"of the {name}, {', '.join(shown)}")
    return f"; by themselves, in its own unit: {'; '.join(told)}" if told else ""


def _place(one: Estimate, name: str) -> str:
    return one.quantity.removeprefix(f"{name}: ")


def _shown_before(wholes: Sequence[Estimate], before: Sequence[Estimate]) -> str:
    """Where re-estimation on ID images alone moves a notable part of as much as the whole effect."""
    large = [
        f"the {name} by {figure(one)} (whole effect {figure(whole)})"
        for name, whole, one in zip(QUANTITIES, wholes, before, strict=True)
        if abs(one.effect) > NOTABLE * abs(whole.effect)
    ]
    if not large:
        return ""
    return (
        f"; re-estimation on ID images, without any OOD image, lowers on the same sets {', '.join(large)}, more than a "
        "quarter as much as the whole effect, and that is no mismatch (negative: raises; on all scored images, which "
        "need not be those of the interventions)"
    )
