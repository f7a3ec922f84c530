"""H4: whether the effects are BatchNorm's doing.

The rules that all hypotheses share stand at the head of :mod:`bnood.study.claim.hypotheses`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bnood.evaluation.intervals import Replicates, Unusable, mean_of
from bnood.study.claim.estimates import INCONCLUSIVE, REFUTED, SUPPORTED, Estimate, against_minimum, every, figure
from bnood.study.claim.judging import Evidence, Hypothesis, Judged, Part, concluded, judge_parts, list_beside, on_id
from bnood.study.claim.measurements import ABOVE_P99, ACCURACY, CLASS_MIX, CONFIDENT, MSP, UNIT_MAXIMUM, Quantity

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
    each other, inconclusive; as where single activations above ID's 99th percentile are *rarer* in the BatchNorm nets,
    which contradicts "more of H1" in the other sense of it (a contradiction takes "supported" away, nothing else).

    A BatchNorm net is made as accurate by stopping it early, when its learning rate is still high. That lowers its
    MSP, on ID and OOD images alike, so that MSP on OOD images relative to the same net's on ID images stands beside.
    """
    options = evidence.options
    minimums = {
        "largest unit mean": (UNIT_MAXIMUM, options.minimum_unit_ratio),
        "mean MSP": (MSP, options.minimum_msp),
        "share with MSP > 0.9": (CONFIDENT, options.minimum_confident_share),
    }

    def apart(left: str, right: str, quantity: Quantity, dataset: str) -> Replicates:
        return evidence.conditions.difference(
            evidence.key(quantity, dataset, network=left), evidence.key(quantity, dataset, network=right)
        )

    def difference(norm: str, quantity: Quantity, dataset: str) -> Replicates:
        return apart(f"bn-at-{norm}", norm, quantity, dataset).only(equally_accurate_seeds(evidence, norm)[0])

    def over_norms(quantity: Quantity, dataset: str) -> Replicates:
        return mean_of([difference(norm, quantity, dataset) for norm in NORMS])

    def finished(norm: str, quantity: Quantity, dataset: str) -> Replicates:
        return apart("bn", norm, quantity, dataset)

    def parts(label: str, of: Callable[[Quantity, str], Replicates], judged: bool = True) -> list[Part]:
        return [
            Part(f"{name}, {label}", q.unit, partial(of, q), minimum if judged else None, "above")
            for name, (q, minimum) in minimums.items()
        ]

    equal = "bn - ln and gn, equal accuracy"
    mixed = evidence.measured(CLASS_MIX)

    def others(label: str, of: Callable[[Quantity, str], Replicates]) -> list[Part]:
        """What stands beside every comparison: its thresholds of 0 only tell the direction."""
        above_mix = Part(f"largest unit mean less class mix, {label}", UNIT_MAXIMUM.unit,
                         lambda d: of(UNIT_MAXIMUM, d) - of(CLASS_MIX, d), 0.0, "above")  # fmt: skip
        return [
            Part(f"MSP, OOD - ID, {label}", MSP.unit, lambda d: of(MSP, d) - of(MSP, evidence.id_set), None, "any"),
            Part(f"share above ID's 99th percentile, {label}", ABOVE_P99.unit, partial(of, ABOVE_P99), 0.0, "above"),
            *([above_mix] if mixed else []),
        ]

    judged = judge_parts(evidence, parts(equal, over_norms), _norm_rule)
    alone = {norm: list_beside(evidence, parts(f"bn-at-{norm} - {norm}", partial(difference, norm))) for norm in NORMS}
    judged = _norms_agree(judged, {norm: found[: len(minimums)] for norm, found in alone.items()})
    together = list_beside(evidence, others(equal, over_norms))
    relative, activations = together[:2]
    judged = _activations_agree(judged, activations)
    beside = [one for found in alone.values() for one in found] + together
    for norm in NORMS:
        beside += list_beside(evidence, others(f"bn-at-{norm} - {norm}", partial(difference, norm)))
    for norm in NORMS:
        beside += list_beside(evidence, parts(f"finished bn - {norm}", partial(finished, norm), judged=False))
        beside += list_beside(evidence, others(f"finished bn - {norm}", partial(finished, norm)))
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
        f"{name} {figure(one)} ({against_minimum(one)}; LN alone {figure(alone['ln'][place])}, GN alone "
        f"{figure(alone['gn'][place])})"
        for place, (name, one) in enumerate(zip(minimums, judged.mean, strict=True))
    )
    early = (
        "; these BN networks are stopped early, before the learning rate was annealed, which by itself lowers MSP (MSP "
        f"on OOD images less that on ID images of the same network differs by {figure(relative)})"
    )
    sentence = (
        f"On the {judged.mean[0].dataset}, BN minus the mean of LN and GN of equal accuracy: {shown}"
        f"{early if relative.n_seeds else ''}{_training_gaps(evidence)}{_left_out(evidence)}"
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
    return judged.contradicted(f"It depends on the norm: {shown}.")


def _activations_agree(judged: Judged, activations: Estimate) -> Judged:
    """Take "supported" away where single activations are shown to be rarer above ID's 99th percentile in BN nets."""
    if judged.verdict != SUPPORTED or activations.verdict != REFUTED:
        return judged
    return judged.contradicted(
        "The means are higher, but single activations above ID's 99th percentile are rarer than in LN and GN networks, "
        f"by {figure(activations)}, so that nothing is concluded."
    )


def _training_gaps(evidence: Evidence) -> str:
    """The mean difference in accuracy on training images, for the sentence; "" where it is not known."""
    found = []
    for norm in NORMS:
        try:
            seeds = equally_accurate_seeds(evidence, norm)[0]
        except Unusable:
            continue  # said as the reason of the verdict
        known, pairs = evidence.train_accuracies, [((f"bn-at-{norm}", seed), (norm, seed)) for seed in seeds]
        gaps = [known[left] - known[right] for left, right in pairs if left in known and right in known]
        if gaps:
            found.append(f"{np.mean(gaps):+.3f} against {norm.upper()}")
    return f"; their training accuracy differs by {', '.join(found)}" if found else ""


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
