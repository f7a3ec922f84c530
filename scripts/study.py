"""Train, evaluate and judge networks: python scripts/study.py --config configs/studies/demo.yaml"""

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import UserError, run_door
from bnood.report.names import MINUS, change, display, factor_of, number
from bnood.study.claim import ClaimOptions
from bnood.study.options import StudyOptions
from bnood.training.command_line import one_line_parsing

if TYPE_CHECKING:
    import pandas as pd

    from bnood.study.measurements import Measurements

WIDTH, MOST_LINES = 100, 15  # of what a verdict prints


def parse(given: list[str]) -> tuple[StudyOptions, bool]:
    """The study that a command line describes, and ``judge_only``."""
    purpose = "Train, evaluate and judge networks; rerun to resume. See configs/studies/."
    parser = ArgumentParser("scripts/study.py", description=purpose, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(StudyOptions)
    parser.add_argument("--judge_only", type=bool, default=False, help="Only judge what is there.")
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    if not given:
        raise UserError("a study needs a config: give --config, for example --config configs/studies/demo.yaml")
    # The parser would add the keys of a network here to those of the config's network in the same place.
    given = [part for each in given for part in (["--networks=[]"] * (each.split("=")[0] == "--networks") + [each])]
    with one_line_parsing(parser, given), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
        config = parser.parse_args(given)
        made = parser.instantiate_classes(config)
    options = StudyOptions(**{key: made[key] for key in StudyOptions.__dataclass_fields__})
    options.wandb.enabled = options.wandb.enabled and not config.no_wandb
    return options, config.judge_only


def main(arguments: list[str] | None = None) -> Path:
    """Run a study as ``scripts/study.py`` does, by default from the process's own command line; returns its folder.

    Raises ``UserError`` for bad input, and if a network failed, in which case no verdict is written.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options, judge_only = parse(given)
    from bnood.study.run import run_study  # brings torch, which --help can do without

    verdict, found, networks, page = run_study(options, shlex.join(["python", "scripts/study.py", *given]), judge_only)
    lines = demo_lines(found, networks, options.claim) if options.demo else verdict_lines(verdict)
    lines.append(f"page:    {page}")
    if not options.demo:
        lines.append(f"tables:  {options.folder}/verdict.csv, {options.folder}/table.csv")
    print("\n".join(lines).replace(MINUS, "-").replace("\u00a0", " "))  # a terminal may not have a page's signs
    return options.folder


def verdict_lines(verdict: dict[str, Any]) -> list[str]:
    """Of one network or family a row per hypothesis, of several a row per network with a column per hypothesis."""
    rows = verdict["rows"]
    subjects = list(dict.fromkeys((row["network"], row["seed"]) for row in rows))
    if len(subjects) == 1:
        lines = [f"{'':4}{'verdict':28}{'effect':42}{'estimate [interval]':>19}{'needed':>7}"]
        return lines + [line for row in rows for line in _effect_lines(row)]
    lines = [f"{'network':34}" + "".join(f"{name:13}" for name in dict.fromkeys(row["hypothesis"] for row in rows))]
    for network, seed in subjects:
        title = network if seed is None else f"{network} (this network)"
        own = [row["verdict"].partition(" (")[0] for row in rows if (row["network"], row["seed"]) == (network, seed)]
        lines.append(f"{title[:33]:34}" + "".join(f"{word:13}" for word in own))
    kept = lines[: MOST_LINES - 1]
    return kept + ([f"and {len(lines) - len(kept)} more in verdict.csv"] if len(lines) > len(kept) else [])


def _effect_lines(row: dict[str, Any]) -> list[str]:
    text, why = f"{row['hypothesis']:4}{row['verdict']:28}", row["reason"] or row["note"]
    if row["estimates"]:
        factor = factor_of(row["unit"])
        estimate = change(row["effect"], row["low"], row["high"], factor).removesuffix(" points")
        needed = f"{'<' if row['direction'] == 'below' else '>'} {factor * (row['threshold'] or 0.0):.2g}"
        text += f"{row['quantity'][:41]:42}{estimate if row['n_seeds'] else 'not estimated':>19}{needed:>7}"
    return [text.rstrip(), *([f"{'':4}{why}"[:WIDTH]] if why else [])]


def demo_lines(found: "Measurements", networks: "pd.DataFrame", claim: ClaimOptions) -> list[str]:
    """The demo's answer: what was asked, the networks, one row per question, and one sentence."""
    from bnood.study import hypotheses as h
    from bnood.study.run import answer, changes

    def mean(term: h.Term) -> str:
        return number(float(found.contrast([term], claim.primary_sets).values.mean()), 100)

    lines = [
        "",
        "What do BatchNorm's statistics do to confidence on images that the network was never trained on?",
        f"OOD sets: {', '.join(claim.primary_sets)} (their mean). ID set: {found.id_set}.",
        "",
        f"{'network':14}{'validation accuracy':>20}{'mean MSP on OOD images':>26}",
    ]
    for name, accuracy in networks.set_index("network")["accuracy"].items():
        if name in ("bn", "ln", "gn"):
            lines.append(f"{display(name):14}{number(accuracy, 100):>20}{mean(h.Term(1, h.MSP, network=name)):>26}")
    rows = [["BatchNorm network, OOD images", "running", "target", "change [95 % interval]"]]
    rows += changes(found, claim)
    accuracies = [mean(h.Term(1, h.ACCURACY, statistics, on_id=True)) for statistics in (h.RUNNING, h.ID)]
    rows.append(["ID accuracy (target: re-estimated on ID)", *accuracies, ""])
    lines += ["", *(f"{row[0]:47}{row[1]:>9}{row[2]:>9}    {row[3]}".rstrip() for row in rows)]
    return [
        *lines,
        "",
        answer(found, claim),
        "One network: a hint, not evidence. For evidence, train several on photographs:",
        "  python scripts/study.py --config configs/studies/cifar10_small.yaml",
    ]


if __name__ == "__main__":
    run_door(main)
