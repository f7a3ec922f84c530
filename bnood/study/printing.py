"""What a study prints: the verdict as a table of at most 15 lines, or the demo's answer. At most 100 columns."""

import pandas as pd

from bnood.evaluation.intervals import Unusable
from bnood.report.names import change, display, factor_of, number
from bnood.study import hypotheses as h
from bnood.study.claim import ClaimOptions
from bnood.study.measurements import Measurements
from bnood.study.verdict import Record

WIDTH, MOST_LINES = 100, 15
QUESTIONS = (
    ("H1  Largest unit mean, relative to ID images", h.UNIT_MAXIMUM),
    ("H2  Confidence: mean MSP", h.MSP),
    ("H2  Confidence: mean energy score, nats", h.ENERGY),
    ("H3  Detection: AUROC of MSP", h.AUROCS[1]),
    ("H3  Detection: AUROC of the energy score", h.AUROCS[0]),
)
ANSWERS = {
    "lower": "Target statistics lower confidence on OOD images here: the mismatch had raised it.",
    "higher": "Target statistics raise confidence on OOD images here: the mismatch is not what makes it high.",
    "open": "Target statistics do not clearly change confidence on OOD images here.",
}


def verdict_lines(verdict: Record) -> list[str]:
    """Of one network or family a row per hypothesis, of several a row per network with a column per hypothesis."""
    rows = verdict["rows"]
    subjects = list(dict.fromkeys((row["network"], row["seed"]) for row in rows))
    if len(subjects) == 1:
        lines = [f"{'':4}{'verdict':29}{'effect':37}{'estimate [interval]':>22}{'needed':>8}"]
        return lines + [line for row in rows for line in _effect_lines(row)]
    lines = [f"{'network':34}" + "".join(f"{name:13}" for name in h.STATEMENTS)]
    for network, seed in subjects:
        title = network if seed is None else f"{network} (this network)"
        own = [row["verdict"].partition(" (")[0] for row in rows if (row["network"], row["seed"]) == (network, seed)]
        lines.append(f"{title[:33]:34}" + "".join(f"{word:13}" for word in own))
    kept = lines[: MOST_LINES - 1]
    return kept + ([f"and {len(lines) - len(kept)} more in verdict.csv"] if len(lines) > len(kept) else [])


def _effect_lines(row: Record) -> list[str]:
    text, why = f"{row['hypothesis']:4}{row['verdict']:29}", row["reason"] or row["note"]
    if row["estimates"]:
        factor = factor_of(row["unit"])
        estimate = change(row["effect"], row["low"], row["high"], factor).removesuffix(" points")
        needed = f"{'<' if row['direction'] == 'below' else '>'} {factor * (row['threshold'] or 0.0):.2g}"
        text += f"{row['quantity'][:36]:37}{estimate if row['n_seeds'] else 'not estimated':>22}{needed:>8}"
    return [text.rstrip(), *([f"{'':4}{why}"[:WIDTH]] if why else [])]


def changes(found: Measurements, claim: ClaimOptions, family: str = "") -> list[list[str]]:
    """Per question its value under running and under target statistics, and the change: mean of the primary sets."""
    rows = []
    for question, quantity in QUESTIONS:
        try:
            running, target = (
                found.contrast([h.Term(1, quantity, name)], claim.primary_sets, family)
                for name in (h.RUNNING, h.TARGET)
            )
        except Unusable:
            continue
        interval, factor = (target - running).interval(claim.level), factor_of(quantity.unit)
        before, after = (number(float(side.values.mean()), factor) for side in (running, target))
        rows.append([question, before, after, change(*interval[:3], factor)])
    return rows


def answer(found: Measurements, claim: ClaimOptions) -> str:
    """One sentence: what target statistics do to the mean MSP on the primary sets."""
    low, high = found.contrast(h.change(h.MSP, h.TARGET, h.RUNNING), claim.primary_sets).interval(claim.level)[1:3]
    return ANSWERS["lower" if high < 0 else "higher" if low > 0 else "open"]


def demo_lines(found: Measurements, networks: pd.DataFrame, claim: ClaimOptions) -> list[str]:
    """The demo's answer: what was asked, the networks, one row per question, and one sentence. At most 28 lines."""
    trained = networks[networks["network"].isin(("bn", "ln", "gn"))]
    lines = [
        "",
        "What do BatchNorm's statistics do to confidence on images that the network was never trained on?",
        f"OOD sets: {', '.join(claim.primary_sets)} (their mean). ID set: {found.id_set}.",
        "",
        f"{'network':14}{'validation accuracy':>20}{'mean MSP on OOD images':>26}",
    ]
    for row in trained.itertuples():
        msp = found.contrast([h.Term(1, h.MSP, network=str(row.network))], claim.primary_sets).values.mean()
        lines.append(f"{display(str(row.network)):14}{number(row.accuracy, 100):>20}{number(float(msp), 100):>26}")
    lines += ["", f"{'BatchNorm network, OOD images':47}{'running':>9}{'target':>9}    change [95 % interval]"]
    lines += [f"{row[0]:47}{row[1]:>9}{row[2]:>9}    {row[3]}" for row in changes(found, claim)]
    before, after = (
        found.contrast([h.Term(1, h.ACCURACY, statistics, on_id=True)], [found.id_set]).values.mean()
        for statistics in (h.RUNNING, h.ID)
    )
    accuracy = "ID accuracy (target: re-estimated on ID)"
    lines.append(f"{accuracy:47}{number(float(before), 100):>9}{number(float(after), 100):>9}")
    return [
        *lines,
        "",
        answer(found, claim),
        "One network: a hint, not evidence. For evidence, train several on photographs:",
        "  python scripts/study.py --config configs/studies/cifar10_small.yaml",
    ]
