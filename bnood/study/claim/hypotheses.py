"""The hypotheses H1-H5 as code: which effects decide each, against which thresholds, and by which rule.

H1-H3 are here, H4 is in :mod:`bnood.study.claim.causes`, H5 in :mod:`bnood.study.claim.places`; the rules are common to all.

**One effect.** Every effect is paired: the same checkpoint under two statistics on the same images (H1-H3, H5), or the
networks of one seed on the same images (H4). Its interval is that of :mod:`bnood.evaluation.intervals`, over seeds and images. An
effect wanted above a threshold is supported when its whole interval lies above, refuted when its whole interval lies
below, inconclusive otherwise. A mean alone decides nothing, one seed decides nothing, and where nothing varies, over
seeds or over images, nothing is decided either: such an interval has no width and says nothing.

**Several effects.** A hypothesis that needs several is supported only if all are. (Each is tested at the full level:
requiring all of them is the intersection-union test, which needs no correction.) What refutes it stands at each
hypothesis; where one of several effects is enough to refute, that is not corrected for their number. No correction is
made over the hypotheses: each answers a question of its own.

**Several sets.** The effect of a hypothesis is the mean over the headline sets with equal weight, within each seed and
resample. The sets are chosen, not sampled, so that nothing is claimed about others. A mean can hide a contradiction:
where some headline sets support a hypothesis and others refute it, or one contradicts the mean, the hypothesis is
*inconclusive*, and the sentence says on which sets it holds and on which not. The sets can thus take a verdict away,
never give one. On any other set the rule is applied as well, and what it says stands beside and decides nothing.

**Seeds.** Only the seeds that every side of a comparison has are used; the sentence names the others. Where some seeds
had been looked at before the thresholds were written, the verdict on the others alone is given too.

**Controls** stand beside: "passed" when the interval lies within the tolerance, "failed" when it lies outside,
otherwise "inconclusive". That re-estimation on ID images does something means that a part of "running - matched" is not
mismatch but whatever re-estimation removes: the moving average's lag, or the augmentation of the training images. What
is left *beyond the control* is ``recalibrated:id - recalibrated:target``: two estimates of one kind, which differ in
the images they come from, on the same OOD images. Where this contrast, by the same thresholds and rule, says the
opposite of the verdict, the hypothesis is *inconclusive*, whatever the controls on ID images say; so it is where a
control failed and what was supported is not also supported beyond it, and where no control could be estimated. (The
difference in differences, OOD - ID, is listed but decides nothing: what the control measures need not act equally on ID
and OOD images.)
"""

from collections.abc import Callable, Sequence
from functools import partial

from bnood.evaluation.intervals import Replicates
from bnood.study.claim.estimates import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Estimate,
    Wanted,
    against_minimum,
    agreeing,
    directed,
    every,
    figure,
)
from bnood.study.claim.judging import (
    MATCHED,
    REESTIMATED,
    Beyond,
    Evidence,
    Hypothesis,
    Part,
    concluded,
    judge_parts,
    list_beside,
    on_id,
)
from bnood.study.claim.measurements import (
    ABOVE_P99,
    ACCURACY,
    CLASS_MIX,
    ENERGY,
    MAX_LOGIT,
    MIXTURE,
    MSP,
    UNIT_MAXIMUM,
    UNIT_SPREAD,
    Quantity,
)

# Of ID images by definition of the 99th percentile.
ID_SHARE_ABOVE_P99 = 0.01


def h1(evidence: Evidence) -> Hypothesis:
    """H1: some penultimate units are abnormally high on OOD images under running statistics, not under matched ones.

    Supported when the largest per-unit mean is above ``abnormal`` under running, below it under matched, and their
    difference is above 0; refuted when any of the three is on the other side.

    The largest unit mean also rises where a set is predicted as few classes, without any mismatch. Where it was
    measured, it has to exceed the class mix too: the largest unit mean of ID images weighted to the classes predicted
    on the OOD set. Matched statistics pin mean and variance of every channel, so that a part of "not under matched" is
    so by construction; statistics of a mixture stand beside, which do that for ID and OOD images together only.
    """
    options, unit = evidence.options, UNIT_MAXIMUM.unit
    name = "largest unit mean"

    def under(quantity: Quantity, statistics: str) -> Callable[[str], Replicates]:
        return lambda dataset: evidence.value(quantity, dataset, statistics)

    def above_mix(statistics: str) -> Callable[[str], Replicates]:
        return lambda d: evidence.conditions.difference(
            evidence.key(UNIT_MAXIMUM, d, statistics), evidence.key(CLASS_MIX, d, statistics)
        )

    def higher(statistics: str) -> list[Part]:
        """What has to be above something under statistics that come from ID images."""
        return [
            Part(f"{name}, {statistics} - matched", unit,
                 lambda d: evidence.change(UNIT_MAXIMUM, d, statistics), 0.0, "above"),
            Part(f"{name}, {statistics}", unit, under(UNIT_MAXIMUM, statistics), options.abnormal, "above", null=1.0),
        ]  # fmt: skip

    def beyond_mix(statistics: str) -> Part:
        return Part(f"{name}, {statistics} - class mix", unit, above_mix(statistics), 0.0, "above")

    lower = Part(f"{name}, matched", unit, under(UNIT_MAXIMUM, MATCHED), options.abnormal, "below", null=1.0)
    mixed = {s: evidence.measured(CLASS_MIX, network="bn", statistics=s) for s in ("running", REESTIMATED)}
    first, second = ([*higher(s), *([beyond_mix(s)] if mixed[s] else [])] for s in ("running", REESTIMATED))
    judged = judge_parts(evidence, [*first, lower], every)
    beyond = list_beside(evidence, second)
    activations = list_beside(
        evidence,
        [
            Part(f"share above ID's 99th percentile, {label}", ABOVE_P99.unit, under(ABOVE_P99, statistics), limit,
                 "above", null=ID_SHARE_ABOVE_P99)
            for label, statistics, limit in (("running", "running", ID_SHARE_ABOVE_P99), ("matched", MATCHED, None))
        ],
    )  # fmt: skip
    listed = list_beside(
        evidence,
        [
            *([] if mixed["running"] else [beyond_mix("running")]),
            *(Part(f"spread over units, {label}", UNIT_SPREAD.unit, under(UNIT_SPREAD, statistics), None, "any")
              for label, statistics in (("running", "running"), ("matched", MATCHED))),
            Part(f"{name}, {MIXTURE}", unit, under(UNIT_MAXIMUM, MIXTURE), None, "any"),
            Part(f"{name}, running - matched, OOD - ID", unit,
                 lambda d: evidence.beyond_id(UNIT_MAXIMUM, d), 0.0, "above"),
        ],
    )  # fmt: skip
    control = Part(f"{name}, running - recalibrated:id", unit,
                   lambda d: evidence.change(UNIT_MAXIMUM, d, second=REESTIMATED), options.control_unit_ratio,
                   "small")  # fmt: skip
    controls = on_id(evidence, [control])
    difference, running, matched = judged.mean[0], judged.mean[1], judged.mean[-1]
    mix = f"it lies by {figure(judged.mean[2])} above" if mixed["running"] else "it was not measured against"
    sentence = (
        f"On the {difference.dataset} the largest unit's mean activation is {figure(running)} times the ID figure "
        f"under running statistics (above {options.abnormal:g} counts as abnormal; {mix} what the mix of predicted "
        f"classes alone brings on ID images) and {figure(matched)} times under matched ones (partly by construction: "
        f"matching pins mean and variance of every channel), a difference of {figure(difference)}; "
        f"{_shown_share(activations[0])}; on ID images re-estimation changes the figure by {figure(controls[0])}"
    )
    statement = "On OOD data some penultimate units are abnormally high under running statistics, not under matched."
    left = Beyond(beyond[: len(second)], every([*(one.verdict for one in beyond[: len(second)]), matched.verdict]))
    return concluded("H1", statement, judged, sentence, [*beyond, *activations, *listed], controls, left)


def _shown_share(share: Estimate) -> str:
    """How many single activations are high, which a high mean of few units does not say."""
    rare = ": they are rarer than on ID, not more frequent" if share.verdict == REFUTED else ""
    return (
        f"single activations above ID's 99th percentile have a share of {figure(share)} under running statistics "
        f"(ID: {ID_SHARE_ABOVE_P99:g}){rare}"
    )


def h2(evidence: Evidence) -> Hypothesis:
    """H2: energy, largest logit and MSP on OOD images are higher under running than under matched statistics.

    Supported when all three differences are above their minimum; refuted when any is below and none above; where they
    go both ways, inconclusive.
    """
    options = evidence.options
    outputs = {
        "energy": (ENERGY, options.minimum_energy),
        "max logit": (MAX_LOGIT, options.minimum_max_logit),
        "MSP": (MSP, options.minimum_msp),
    }

    def parts(label: str, of: Callable[[Quantity, str], Replicates], wanted: Wanted, zero: bool = False) -> list[Part]:
        return [
            Part(f"{name}, {label}", q.unit, partial(of, q), 0.0 if zero else minimum, wanted)
            for name, (q, minimum) in outputs.items()
        ]

    judged = judge_parts(evidence, parts("running - matched", evidence.change, "above"), agreeing)
    second = parts("recalibrated:id - matched", lambda q, d: evidence.change(q, d, REESTIMATED), "above")
    beyond = list_beside(evidence, second)
    beside = list_beside(evidence, parts("running - matched, OOD - ID", evidence.beyond_id, "above", zero=True))
    reestimated = parts("running - recalibrated:id", lambda q, d: evidence.change(q, d, second=REESTIMATED), "small")
    controls = on_id(evidence, reestimated)
    shown = ", ".join(
        f"{name} {_higher(one)} ({against_minimum(one)})" for name, one in zip(outputs, judged.mean, strict=True)
    )
    unmoved = ", ".join(f"{name} {_higher(one)}" for name, one in zip(outputs, controls, strict=True))
    sentence = (
        f"On the {judged.mean[0].dataset}, under running statistics against matched ones: {shown}; on ID images, "
        f"against re-estimated ones: {unmoved}"
    )
    statement = "Max logit, energy score and MSP on OOD data are higher under running than under matched statistics."
    left = Beyond(beyond[: len(second)], agreeing([one.verdict for one in beyond[: len(second)]]))
    return concluded("H2", statement, judged, sentence, [*beyond, *beside], controls, left)


def _higher(one: Estimate) -> str:
    """``0.42 [-0.19, 1.02] lower``."""
    word, size = directed(one, "higher", "lower")
    return f"{size} {word}"


def h3(evidence: Evidence) -> Hypothesis:
    """H3: without the mismatch detection is better: AUROC rises and FPR95 falls, for MSP and for energy.

    For each score, supported when both are above their minimum and refuted when the gain in AUROC is below it and
    FPR95 is not shown to gain. Both scores supported: supported; any refuted and none supported: refuted. A gain in
    AUROC that is shown to be below 0, where FPR95 is not shown to gain, is harm, and is said to be.
    """
    options = evidence.options

    def gain(score: str, metric: str, first: str, second: str) -> Callable[[str], Replicates]:
        quantity = Quantity(score, metric, "share of images")
        return lambda dataset: evidence.change(quantity, dataset, first, second)

    def gains(statistics: str) -> list[Part]:
        """From other statistics to matched ones, of each score in turn: AUROC, then FPR95."""
        return [
            part
            for score, name in (("energy", "energy"), ("msp", "MSP"))
            for part in (
                Part(f"{name} AUROC, matched - {statistics}", "AUROC", gain(score, "auroc", MATCHED, statistics),
                     options.minimum_auroc, "above"),
                Part(f"{name} FPR95, {statistics} - matched", "share of OOD images",
                     gain(score, "fpr95", statistics, MATCHED), options.minimum_fpr95, "above"),
            )
        ]  # fmt: skip

    judged = judge_parts(evidence, gains("running"), detection_rule)
    second = gains(REESTIMATED)
    beyond = list_beside(evidence, second)
    scores = (("energy", "energy"), ("msp", "MSP"))
    beside = list_beside(
        evidence,
        [
            Part(f"{name} FPR95 (OOD positive), running - matched", "share of ID images",
                 gain(score, "fpr95_ood_positive", "running", MATCHED), options.minimum_fpr95, "above")
            for score, name in scores
        ],
    )  # fmt: skip
    reestimated = [
        Part(f"{name} AUROC, recalibrated:id - running", "AUROC", gain(score, "auroc", REESTIMATED, "running"),
             options.minimum_auroc, "small")
        for score, name in scores
    ]  # fmt: skip
    accuracy = Part(
        "ID accuracy, recalibrated:id - running",
        ACCURACY.unit,
        lambda d: evidence.change(ACCURACY, d, REESTIMATED, "running"),
        options.control_accuracy,
        "small",
    )
    controls = on_id(evidence, [accuracy]) + list_beside(evidence, reestimated, each_set=False)
    by_score = [(name, judged.mean[2 * place : 2 * place + 2]) for place, (_, name) in enumerate(scores)]
    shown = "; ".join(_moved(name, auroc, fpr95) for name, (auroc, fpr95) in by_score)
    harmed = [
        name
        for name, (auroc, fpr95) in by_score
        if auroc.verdict == REFUTED and auroc.high < 0 and fpr95.verdict != SUPPORTED
    ]
    harm = f"; for {' and '.join(harmed)} matching does not help but harms" if harmed else ""
    sentence = (
        f"On the {judged.mean[0].dataset} matched statistics {shown}{harm}; "
        f"re-estimation on ID images changes ID accuracy by {figure(controls[0])}"
    )
    statement = "The mismatch harms detection: AUROC rises and FPR95 falls when it is removed."
    left = Beyond(beyond[: len(second)], detection_rule([one.verdict for one in beyond[: len(second)]]))
    return concluded("H3", statement, judged, sentence, [*beyond, *beside], controls, left)


def _moved(name: str, auroc: Estimate, fpr95: Estimate) -> str:
    """What matching does to a score's AUROC and FPR95; the second is counted as a gain where it falls."""
    (up, gain), (down, fall) = directed(auroc, "raise", "lower"), directed(fpr95, "lower", "raise")
    return (
        f"{up} {name}'s AUROC by {gain} ({against_minimum(auroc)}) and {down} its FPR95 by {fall} "
        f"({against_minimum(fpr95)})"
    )


def detection_rule(verdicts: Sequence[str]) -> str:
    """Of AUROC and FPR95 of each score in turn; see :func:`h3`."""
    by_score = []
    for auroc, fpr95 in zip(verdicts[::2], verdicts[1::2], strict=True):
        contradictory = {auroc, fpr95} == {SUPPORTED, REFUTED}
        undecided = contradictory or (auroc != REFUTED and fpr95 == REFUTED)
        by_score.append(INCONCLUSIVE if undecided else REFUTED if auroc == REFUTED else every([auroc, fpr95]))
    return agreeing(by_score)
