"""What a study prints: the verdict as a table of at most 15 lines, or the demo's answer. At most 100 columns."""

from collections.abc import Sequence

import pandas as pd

from bnood.evaluation.intervals import Unusable
from bnood.study.claim import ClaimOptions
from bnood.study.measurements import ACCURACY, ENERGY, MSP, UNIT_MAXIMUM, Measurements, Quantity, Term
from bnood.study.verdict import Judged, Verdict

WIDTH, MOST_LINES = 100, 15
TARGET = "recalibrated:target"
NAMES = {"bn": "BatchNorm", "ln": "LayerNorm", "gn": "GroupNorm"}
AUROC = {
    name: Quantity(name, "auroc", f"AUROC of {shown}", "%") for name, shown in (("msp", "MSP"), ("energy", "energy"))
}
# Fractions are printed in per cent, their differences in points.
SCALES = {"AUROC": (100.0, 1), "probability": (100.0, 1), "share of images": (100.0, 1)}
# The demo's questions: question, quantity, factor, decimals, unit of the change.
QUESTIONS = (
    ("H1  Largest unit mean, relative to ID images", UNIT_MAXIMUM, 1.0, 2, ""),
    ("H2  Confidence: mean MSP, %", MSP, 100.0, 1, "points"),
    ("H2  Confidence: mean energy score, nats", ENERGY, 1.0, 2, ""),
    ("H3  Detection: AUROC of MSP, %", AUROC["msp"], 100.0, 1, "points"),
    ("H3  Detection: AUROC of the energy score, %", AUROC["energy"], 100.0, 1, "points"),
)
ANSWERS = {
    "lower": "Target statistics lower confidence on OOD images here: the mismatch had raised it.",
    "higher": "Target statistics raise confidence on OOD images here: the mismatch is not what makes it high.",
    "open": "Target statistics do not clearly change confidence on OOD images here.",
}


def verdict_lines(verdict: Verdict) -> list[str]:
    """One row per hypothesis, or, for more than two networks, one row per network with a column per hypothesis."""
    subjects = list(dict.fromkeys((row.network, row.seed) for row in verdict.rows))
    if len(subjects) > 2:
        return _by_network(verdict, subjects)
    lines = [f"{'':4}{'verdict':29}{'effect':37}{'estimate [interval]':>22}{'needed':>8}"]
    for row in verdict.rows:
        lines.append(_effect_line(row))
        why = row.reason or row.note
        if len(subjects) == 1 and why:
            lines.append(f"{'':4}{why}"[:WIDTH])
    return lines


def _effect_line(row: Judged) -> str:
    one = row.headline
    if one is None:
        return f"{row.hypothesis:4}{row.verdict}"
    factor, decimals = SCALES.get(one.unit, (1.0, 2))
    estimate = "not estimated"
    if one.n_seeds:
        effect, low, high = (f"{factor * number:.{decimals}f}" for number in (one.effect, one.low, one.high))
        estimate = f"{effect} [{low}, {high}]"
    needed = f"{'<' if one.direction == 'below' else '>'} {factor * (one.threshold or 0.0):.2g}"
    return f"{row.hypothesis:4}{row.verdict:29}{one.quantity[:36]:37}{estimate:>22}{needed:>8}"


def _by_network(verdict: Verdict, subjects: Sequence[tuple[str, int | None]]) -> list[str]:
    names = list(dict.fromkeys(row.hypothesis for row in verdict.rows))
    words = {(row.network, row.seed, row.hypothesis): row.verdict.partition(" (")[0] for row in verdict.rows}
    lines = [f"{'network':34}" + "".join(f"{name:13}" for name in names)]
    for network, seed in subjects:
        title = network if seed is None else f"{network} (this network)"
        lines.append(f"{title[:33]:34}" + "".join(f"{words.get((network, seed, name), ''):13}" for name in names))
    kept = lines[: MOST_LINES - 1]
    return kept + ([f"and {len(lines) - len(kept)} more in verdict.csv"] if len(lines) > len(kept) else [])


def sign_of_change(draws: pd.DataFrame, claim: ClaimOptions) -> str:
    """Whether target statistics make the mean MSP on the primary sets ``lower``, ``higher`` or neither (``open``)."""
    found = Measurements(draws)
    change = (Term(1.0, MSP, TARGET), Term(-1.0, MSP))
    low, high = found.contrast(change, claim.primary_sets).interval(claim.level)[1:3]
    return "lower" if high < 0 else "higher" if low > 0 else "open"


def demo_lines(draws: pd.DataFrame, networks: pd.DataFrame, claim: ClaimOptions) -> list[str]:
    """The demo's answer: what was asked, the networks, one row per question, and one sentence. At most 28 lines."""
    found, sets = Measurements(draws), claim.primary_sets
    lines = [
        "",
        "What do BatchNorm's statistics do to confidence on images that the network was never trained on?",
        f"OOD sets: {', '.join(sets)} (their mean). ID set: {found.id_set}.",
        "",
        f"{'network':14}{'validation accuracy':>20}{'mean MSP on OOD images':>26}",
    ]
    for row in networks[networks["network"].isin(NAMES)].itertuples():
        confidence = found.contrast((Term(1.0, MSP, network=str(row.network)),), sets).values.mean()
        lines.append(f"{NAMES[str(row.network)]:14}{100 * row.accuracy:>18.1f} %{100 * confidence:>24.1f} %")
    lines += ["", f"{'BatchNorm network, OOD images':47}{'running':>9}{'target':>9}    change [95 % interval]"]
    for question, quantity, factor, decimals, unit in QUESTIONS:
        try:
            sides = [found.contrast((Term(1.0, quantity, name),), sets) for name in ("running", TARGET)]
            change = (sides[1] - sides[0]).interval(claim.level)
        except Unusable:
            continue
        before, after = (f"{factor * side.values.mean():.{decimals}f}" for side in sides)
        effect, low, high = (f"{factor * number:+.{decimals}f}" for number in change[:3])
        lines.append(f"{question:47}{before:>9}{after:>9}    {effect} [{low}, {high}] {unit}".rstrip())
    accuracy = [
        f"{100 * found.contrast((Term(1.0, ACCURACY, name, on_id=True),), sets).values.mean():.1f}"
        for name in ("running", "recalibrated:id")
    ]
    lines += [
        f"{'ID accuracy, % (target: re-estimated on ID)':47}{accuracy[0]:>9}{accuracy[1]:>9}",
        "",
        ANSWERS[sign_of_change(draws, claim)],
        "One network: a hint, not evidence. For evidence, train several on photographs:",
        "  python scripts/study.py --config configs/studies/cifar10_small.yaml",
    ]
    return lines
