"""What a study prints: the verdict as a table of at most 15 lines, or the demo's answer. At most 100 columns."""

import pandas as pd

from bnood.evaluation.intervals import Unusable
from bnood.study.claim import ClaimOptions
from bnood.study.hypotheses import ACCURACY, ENERGY, MSP, RUNNING, TARGET, UNIT_MAXIMUM, Quantity, Term, change
from bnood.study.measurements import Measurements
from bnood.study.verdict import Judged, Verdict

WIDTH, MOST_LINES = 100, 15
NAMES = {"bn": "BatchNorm", "ln": "LayerNorm", "gn": "GroupNorm"}
# Fractions are printed in per cent, their differences in points.
PER_CENT = ("AUROC", "probability", "share of images")
# Question, quantity, factor, decimals, unit of the change.
QUESTIONS = (
    ("H1  Largest unit mean, relative to ID images", UNIT_MAXIMUM, 1.0, 2, ""),
    ("H2  Confidence: mean MSP, %", MSP, 100.0, 1, "points"),
    ("H2  Confidence: mean energy score, nats", ENERGY, 1.0, 2, ""),
    ("H3  Detection: AUROC of MSP, %", Quantity("msp", "auroc", "", "AUROC"), 100.0, 1, "points"),
    ("H3  Detection: AUROC of the energy score, %", Quantity("energy", "auroc", "", "AUROC"), 100.0, 1, "points"),
)
ANSWERS = {
    "lower": "Target statistics lower confidence on OOD images here: the mismatch had raised it.",
    "higher": "Target statistics raise confidence on OOD images here: the mismatch is not what makes it high.",
    "open": "Target statistics do not clearly change confidence on OOD images here.",
}


def verdict_lines(verdict: Verdict) -> list[str]:
    """One row per hypothesis, or, for more than two networks, one row per network with a column per hypothesis."""
    subjects = list(dict.fromkeys((row.network, row.seed) for row in verdict.rows))
    if len(subjects) <= 2:
        lines = [f"{'':4}{'verdict':29}{'effect':37}{'estimate [interval]':>22}{'needed':>8}"]
        for row in verdict.rows:
            lines.append(_effect_line(row))
            if len(subjects) == 1 and (why := row.reason or row.note):
                lines.append(f"{'':4}{why}"[:WIDTH])
        return lines
    names = list(dict.fromkeys(row.hypothesis for row in verdict.rows))
    words = {(row.network, row.seed, row.hypothesis): row.verdict.partition(" (")[0] for row in verdict.rows}
    lines = [f"{'network':34}" + "".join(f"{name:13}" for name in names)]
    for network, seed in subjects:
        title = network if seed is None else f"{network} (this network)"
        lines.append(f"{title[:33]:34}" + "".join(f"{words[network, seed, name]:13}" for name in names))
    kept = lines[: MOST_LINES - 1]
    return kept + ([f"and {len(lines) - len(kept)} more in verdict.csv"] if len(lines) > len(kept) else [])


def _effect_line(row: Judged) -> str:
    one = row.headline
    if one is None:
        return f"{row.hypothesis:4}{row.verdict}"
    factor, decimals = (100.0, 1) if one.unit in PER_CENT else (1.0, 2)
    estimate = "not estimated"
    if one.n_seeds:
        effect, low, high = (f"{factor * number:.{decimals}f}" for number in (one.effect, one.low, one.high))
        estimate = f"{effect} [{low}, {high}]"
    needed = f"{'<' if one.direction == 'below' else '>'} {factor * (one.threshold or 0.0):.2g}"
    return f"{row.hypothesis:4}{row.verdict:29}{one.quantity[:36]:37}{estimate:>22}{needed:>8}"


def changes(found: Measurements, claim: ClaimOptions, family: str = "") -> list[list[str]]:
    """Per question its value under running and under target statistics, and the change: mean of the primary sets."""
    rows = []
    for question, quantity, factor, decimals, unit in QUESTIONS:
        try:
            running, target = (
                found.contrast([Term(1, quantity, name)], claim.primary_sets, family) for name in (RUNNING, TARGET)
            )
            interval = (target - running).interval(claim.level)
        except Unusable:
            continue
        before, after = (f"{factor * side.values.mean():.{decimals}f}" for side in (running, target))
        effect, low, high = (f"{factor * number:+.{decimals}f}" for number in interval[:3])
        rows.append([question, before, after, f"{effect} [{low}, {high}] {unit}".rstrip()])
    return rows


def answer(found: Measurements, claim: ClaimOptions) -> str:
    """One sentence: what target statistics do to the mean MSP on the primary sets."""
    low, high = found.contrast(change(MSP, TARGET, RUNNING), claim.primary_sets).interval(claim.level)[1:3]
    return ANSWERS["lower" if high < 0 else "higher" if low > 0 else "open"]


def demo_lines(found: Measurements, networks: pd.DataFrame, claim: ClaimOptions) -> list[str]:
    """The demo's answer: what was asked, the networks, one row per question, and one sentence. At most 28 lines."""
    sets = claim.primary_sets

    def per_cent(quantity: Quantity, statistics: str = RUNNING, network: str = "bn", on_id: bool = False) -> str:
        return f"{100 * found.contrast([Term(1, quantity, statistics, network, on_id)], sets).values.mean():.1f}"

    trained = [
        f"{NAMES[row.network]:14}{100 * row.accuracy:>18.1f} %{per_cent(MSP, network=row.network):>24} %"
        for row in networks[networks["network"].isin(NAMES)].itertuples()
    ]
    accuracies = [per_cent(ACCURACY, statistics, on_id=True) for statistics in (RUNNING, "recalibrated:id")]
    return [
        "",
        "What do BatchNorm's statistics do to confidence on images that the network was never trained on?",
        f"OOD sets: {', '.join(sets)} (their mean). ID set: {found.id_set}.",
        "",
        f"{'network':14}{'validation accuracy':>20}{'mean MSP on OOD images':>26}",
        *trained,
        "",
        f"{'BatchNorm network, OOD images':47}{'running':>9}{'target':>9}    change [95 % interval]",
        *(f"{row[0]:47}{row[1]:>9}{row[2]:>9}    {row[3]}" for row in changes(found, claim)),
        f"{'ID accuracy, % (target: re-estimated on ID)':47}{accuracies[0]:>9}{accuracies[1]:>9}",
        "",
        answer(found, claim),
        "One network: a hint, not evidence. For evidence, train several on photographs:",
        "  python scripts/study.py --config configs/studies/cifar10_small.yaml",
    ]
