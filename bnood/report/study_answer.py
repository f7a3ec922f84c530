"""The verdicts of a study in a few plain sentences, and the words that the page uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnood.report.study_tables import listed, plain

WORDS = {"supported": "supported", "refuted": "refuted", "inconclusive": "left open"}
Entry = Mapping[str, Any]


def plain_answer(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(heading, sentence) of the survey's sentence as a whole, then of each hypothesis; empty without a verdict.

    Args:
        verdict: the contents of ``verdict.json``. Figures that it lacks are left out.
    """
    entries: dict[str, Entry] = {str(entry["hypothesis"]): entry for entry in verdict.get("hypotheses", [])}
    found = [("The survey's sentence", _whole(entries))] if {"H1", "H2"} <= entries.keys() else []
    told = {
        "H1": ("Abnormal activations", _activations),
        "H2": ("Higher outputs accordingly", _outputs),
        "H3": ("Harm to detection", _detection),
        "H4": ("BatchNorm's own doing", _norms),
        "H5": ("A place in the network", _place),
    }
    for name, (title, tell) in told.items():
        if name in entries:
            found.append((f"{title} ({name}): {WORDS[entries[name]['verdict']]}", tell(entries[name])))
    return found


def _whole(entries: Mapping[str, Entry]) -> str:
    first, second = (str(entries[name]["verdict"]) for name in ("H1", "H2"))
    if first == second == "supported":
        holds = "holds for these networks"
    elif first == second == "refuted":
        holds = "does not hold for these networks"
    elif "refuted" in (first, second):
        holds = "does not hold as a whole for these networks"
    else:
        holds = "is not shown as a whole for these networks, and not refuted either"
    halves = (
        f"its first half, abnormally high unit activations, is {WORDS[first]}, and its second, model output "
        f"accordingly, is {WORDS[second]}"
    )
    harm = entries.get("H3")
    said = "" if harm is None else f" That detection suffers from the mismatch, which it suggests, is {_word(harm)}."
    return f"It {holds}: {halves}.{said}"


def _word(entry: Entry) -> str:
    return WORDS[str(entry["verdict"])]


def _activations(entry: Entry) -> str:
    running, matched = _effect(entry, "largest unit mean, running"), _effect(entry, "largest unit mean, matched")
    if running is None or matched is None:
        return _why(entry)
    mix = _effect(entry, "largest unit mean, running - class mix")
    left = (
        f" Of the first, {_number(mix, 2)} goes beyond what a different mix of predicted classes brings on "
        "in-distribution images."
        if mix
        else ""
    )
    return (
        f"On OOD images the most active unit is {_number(running, 2)} times as active as on in-distribution images "
        f"under running statistics, and {_number(matched, 2)} times under statistics of the OOD set itself.{left}"
    )


def _outputs(entry: Entry) -> str:
    energy, confidence = _effect(entry, "energy, running - matched"), _effect(entry, "MSP, running - matched")
    if energy is None or confidence is None:
        return _why(entry)
    return (
        f"Under running statistics the energy of OOD images is {_compared(energy, 2)} than under matched ones (nats), "
        f"and their mean MSP {_compared(confidence, 3)}."
    )


def _detection(entry: Entry) -> str:
    parts = []
    for score, name in (("energy", "energy"), ("MSP", "MSP")):
        gain = _effect(entry, f"{score} AUROC, matched - running")
        if gain is not None:
            word = "raises" if gain["effect"] > 0 else "lowers"
            parts.append(f"{word} the AUROC of {name} by {_size(gain, 3)}")
    return f"Removing the mismatch {' and '.join(parts)}." if parts else _why(entry)


def _norms(entry: Entry) -> str:
    named = {"largest unit mean": 2, "mean MSP": 3, "share with MSP > 0.9": 3}
    parts, higher = [], set()
    for name, decimals in named.items():
        found = _effect(entry, f"{name}, bn - ln and gn, equal accuracy")
        if found is not None:
            higher.add(found["effect"] > 0)
            parts.append(f"a {name} {_compared(found, decimals)}")
    if not parts:
        return _why(entry)
    needed = " The hypothesis needs all of them to be higher." if len(higher) > 1 else ""
    return f"On OOD images, BN networks have {listed(parts)} than LN and GN networks of equal accuracy.{needed}"


def _place(entry: Entry) -> str:
    wholes = {
        name: _effect(entry, f"{name}: whole effect, none - all")
        for name in ("largest unit mean", "energy", "max logit")
    }
    known = {name: found for name, found in wholes.items() if found is not None}
    unshown = [name for name, found in known.items() if not found["low"] > 0]
    if not known:
        return _why(entry)
    if len(unshown) == len(known):
        return (
            f"It is not shown that matching all layers lowers {listed(list(known))}, so that there is no whole of "
            f"which a part of the network could have a share.{_alone(entry)}"
        )
    shares = [one for one in _all(entry) if one.get("unit") == "share of the effect" and one.get("effect") is not None]
    shown = [
        one for one in shares
        if str(one["dataset"]) == str(entry["headline"]["dataset"])
        and str(one["quantity"]).partition(": ")[0] not in unshown
        and one["verdict"] == "supported"
    ]  # fmt: skip
    rest = ""
    if unshown:
        rest = f" Of {listed(unshown)} no share can be given: matching all layers is not shown to lower them."
        rest = (rest if len(unshown) > 1 else rest.replace("them", "it")) + _alone(entry)
    if not shown:
        return f"No part of the network is shown to move more than its even share of the effect.{rest}"
    names = [f"{str(one['quantity']).replace(': ', ', ')} ({_number(one, 2)} of the effect)" for one in shown]
    return f"More than their even share move: {'; '.join(names)}.{rest}"


def _alone(entry: Entry) -> str:
    """What means and variances do to the energy by themselves, where one of them is shown to do something."""
    parts, shown = [], False
    for place in ("means", "variances"):
        found = _effect(entry, f"energy: none - {place} alone")
        if found is not None:
            shown = shown or found["low"] > 0 or found["high"] < 0
            parts.append(
                f"matched {place} {'lower' if found['effect'] > 0 else 'raise'} the energy by {_size(found, 2)}"
            )
    return f" By themselves, {listed(parts)}." if shown else ""


def _all(entry: Entry) -> Sequence[Mapping[str, Any]]:
    return [each for each in (entry.get("headline"), *entry.get("estimates", [])) if each]


def _effect(entry: Entry, quantity: str) -> Mapping[str, Any] | None:
    """The estimate of a quantity on the sets that the verdict is about, if it has a figure."""
    dataset = (entry.get("headline") or {}).get("dataset")
    for one in _all(entry):
        if one.get("quantity") == quantity and one.get("dataset") == dataset and one.get("effect") is not None:
            return one
    return None


def _why(entry: Entry) -> str:
    """Where no figure can be told, the reason of the first estimate that has one."""
    reason = next((str(one["reason"]) for one in _all(entry) if one.get("reason")), "")
    return f"No figure can be given: {reason}." if reason else "No figure can be given."


def _number(one: Mapping[str, Any], decimals: int) -> str:
    low, high = one.get("low"), one.get("high")
    rim = "" if low is None or high is None else f" [{_plain(low, decimals)}, {_plain(high, decimals)}]"
    return f"{_plain(one['effect'], decimals)}{rim}"


def _size(one: Mapping[str, Any], decimals: int) -> str:
    """The effect without its sign, and its interval turned with it."""
    if one["effect"] >= 0:
        return _number(one, decimals)
    low, high = one.get("low"), one.get("high")
    turned = {"low": None if high is None else -high, "high": None if low is None else -low}
    return _number({"effect": -one["effect"], **turned}, decimals)


def _compared(one: Mapping[str, Any], decimals: int) -> str:
    return f"{_size(one, decimals)} {'higher' if one['effect'] >= 0 else 'lower'}"


def _plain(value: float, decimals: int) -> str:
    return plain(round(value, decimals) + 0.0, decimals)  # without a negative zero


WORDS_USED = (
    ("ID, OOD", "In-distribution images, of the set that the networks were trained on; out-of-distribution images."),
    (
        "BN, LN, GN",
        "BatchNorm, LayerNorm, GroupNorm. Only BatchNorm keeps statistics: one mean and one variance per channel. LN "
        "and GN take theirs from each image, always.",
    ),
    (
        "bn-at-ln, bn-at-gn",
        "The BN network of the same seed, stopped at the epoch whose validation accuracy is nearest to that of LN or "
        "GN.",
    ),
    ("running", "Statistics averaged over training, the default of every BN network: mismatched on OOD images."),
    (
        "matched, recalibrated:target",
        "Statistics estimated anew on images of the very set that is scored, from a part of it that is not scored.",
    ),
    ("recalibrated:id", "Statistics estimated anew on clean training images; a control: nothing OOD is in them."),
    ("recalibrated:mixture", "Statistics estimated anew on a stream of ID and OOD images, one set of them for both."),
    (
        "batch, pure or mixed",
        "Statistics of the batch itself (“train mode”), of batches of one set, or of ID and OOD images in a stated "
        "share. A row for ID images says with which OOD set they shared batches or statistics (companion).",
    ),
    ("logits", "The network's outputs, one per class; the max logit is the largest of them."),
    ("MSP", "Maximum softmax probability, the confidence in the predicted class. Higher: more in-distribution."),
    ("energy", "logsumexp of the logits, in nats. Higher: more in-distribution."),
    ("AUROC", "How often a random ID image scores higher than a random OOD image; 0.5 is chance."),
    (
        "FPR95",
        "Share of OOD images accepted at the threshold that accepts 95 % of ID images (false positive rate). "
        "OOD-positive FPR95: share of ID images rejected at the threshold that rejects 95 % of OOD images.",
    ),
    (
        "largest unit mean",
        "Mean activation of each penultimate unit (after ReLU and pooling) over a set's images; the largest of them, "
        "relative to the same network's on ID images.",
    ),
    (
        "class mix",
        "What the largest unit mean would be on ID images in the mix of classes that is predicted on the OOD set: an "
        "effect without any mismatch.",
    ),
    ("effect size", "Cohen's d over seeds: the mean of the seeds' effects in standard deviations of theirs."),
)  # fmt: skip
"""(term, meaning) of what the page names without explaining it in place."""
