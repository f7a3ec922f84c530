"""From the pooled tables of a study to its verdict on H1-H5, and the verdict as JSON, table and text.

What each hypothesis needs and by which rules it is judged is in :mod:`bnood.study.claim.hypotheses` (H1-H3),
:mod:`bnood.study.claim.causes` (H4) and :mod:`bnood.study.claim.places` (H5); the thresholds are in :mod:`bnood.study.claim.options`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnood.errors import UserError
from bnood.study.claim.causes import h4
from bnood.study.claim.estimates import INCONCLUSIVE, REFUTED, SUPPORTED, Estimate
from bnood.study.claim.hypotheses import h1, h2, h3
from bnood.study.claim.judging import Evidence, Hypothesis
from bnood.study.claim.measurements import condition_measurements, intervention_measurements
from bnood.study.claim.options import ClaimOptions
from bnood.study.claim.places import h5
from bnood.training.run_folder import write_beside

__all__ = ["ClaimOptions", "Verdict", "gather", "judge", "markdown_table", "print_verdict"]

COLUMNS = (
    "hypothesis", "quantity", "dataset", "unit", "effect", "low", "high", "effect_size", "n_seeds", "threshold",
    "verdict", "role", "level", "reason",
)  # fmt: skip
HYPOTHESES = (h1, h2, h3, h4, h5)
STYLES = {SUPPORTED: "green", REFUTED: "red", INCONCLUSIVE: "yellow"}


@dataclass(frozen=True)
class Verdict:
    """The verdict of a study.

    Attributes:
        hypotheses: H1 to H5, judged.
        options: the thresholds they were held against.
        seeds: of the BatchNorm networks.
        study: its name.
        made: versions, commit and machine.
    """

    hypotheses: tuple[Hypothesis, ...]
    options: ClaimOptions
    seeds: tuple[int, ...]
    study: str = ""
    made: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of ``verdict.json``: plain lists, mappings, strings and finite numbers (None for others)."""
        return {
            "study": self.study,
            "made": self.made,
            "thresholds": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.options).items()},
            "seeds": list(self.seeds),
            "hypotheses": [
                {
                    "hypothesis": one.hypothesis,
                    "statement": one.statement,
                    "verdict": one.verdict,
                    "verdict_unseen_seeds": one.verdict_unseen_seeds,
                    "sentence": one.sentence,
                    "headline": one.headline.to_json(),
                    "estimates": [estimate.to_json() for estimate in one.estimates],
                    "controls": [estimate.to_json() for estimate in one.controls],
                }
                for one in self.hypotheses
            ],
        }

    def table(self) -> pd.DataFrame:
        """One row per estimate, columns :data:`COLUMNS`; role is headline (the first effect), estimate or control.

        The verdict of a row is that of its effect alone; a hypothesis' own is in ``verdict.json``.
        """
        rows = []
        for one in self.hypotheses:
            found = [("headline", one.headline), *(("estimate", e) for e in one.estimates)]
            found += [("control", estimate) for estimate in one.controls]
            rows += [_row(one.hypothesis, role, estimate) for role, estimate in found]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def write_verdict(self, folder: Path) -> None:
        """Write ``verdict.json`` and ``verdict.csv`` into a study's folder. Raises ``UserError`` if it can't."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        write_beside(folder / "verdict.json", lambda path: path.write_text(text))
        write_beside(folder / "verdict.csv", lambda path: self.table().to_csv(path, index=False, float_format="%.6g"))


def _row(hypothesis: str, role: str, one: Estimate) -> dict[str, object]:
    known = one.to_json() | {"hypothesis": hypothesis, "role": role}
    return {name: known[name] for name in COLUMNS}


def gather(
    draws: pd.DataFrame,
    intervention_draws: pd.DataFrame | None,
    networks: pd.DataFrame,
    options: ClaimOptions | None = None,
) -> Evidence:
    """The evidence in a study's tables, checked; arguments and errors as those of :func:`judge`."""
    options = options or ClaimOptions()
    conditions = condition_measurements(draws)
    interventions = None
    if intervention_draws is not None and not intervention_draws.empty:
        interventions = intervention_measurements(intervention_draws)
    id_sets = conditions.names("dataset", role="id")
    if len(id_sets) != 1:
        raise UserError(f"draws hold the in-distribution sets {', '.join(id_sets) or 'none'}; a study has exactly one")
    ood_sets = conditions.names("dataset", role="ood")
    missing = [name for name in options.headline_sets if name not in ood_sets]
    if missing:
        raise UserError(
            f"claim.headline_sets: {', '.join(missing)} was not evaluated; the OOD sets are {', '.join(ood_sets)}"
        )
    others = tuple(name for name in ood_sets if name not in options.headline_sets)
    trained = {}
    if "train_accuracy" in networks.columns:
        trained = _accuracies(networks.drop(columns="accuracy").rename(columns={"train_accuracy": "accuracy"}))
    return Evidence(conditions, interventions, _accuracies(networks), id_sets[0], others, options, trained)


def judge(
    draws: pd.DataFrame,
    intervention_draws: pd.DataFrame | None,
    networks: pd.DataFrame,
    options: ClaimOptions | None = None,
    study: str = "",
    made: dict[str, Any] | None = None,
) -> Verdict:
    """Judge H1-H5.

    Args:
        draws: all runs' ``draws.parquet``, pooled: its columns and norm, seed, network (``bn``, ``ln``, ``gn``,
            ``bn-at-ln``, ``bn-at-gn``).
        intervention_draws: all BatchNorm runs' ``intervention_draws.parquet``, pooled likewise; None or empty where
            there are none, which leaves H5 inconclusive.
        networks: one row per network and seed with its accuracy in [0, 1], by which networks count as equally accurate;
            train_accuracy, where there is such a column, is reported.
        options: the thresholds.
        study, made: what the verdict says about its origin.

    What a hypothesis needs and the tables lack makes it inconclusive, with the reason.

    Raises:
        UserError: if a table is empty or lacks a column, if a run is in it twice, if there is not exactly one
            in-distribution set, or if a headline set was not evaluated.
    """
    evidence = gather(draws, intervention_draws, networks, options)
    hypotheses = on_unseen_seeds(evidence, [hypothesis(evidence) for hypothesis in HYPOTHESES])
    return Verdict(tuple(hypotheses), evidence.options, evidence.conditions.seeds("bn"), study, made or {})


def on_unseen_seeds(evidence: Evidence, judged: Sequence[Hypothesis]) -> list[Hypothesis]:
    """H1-H5 with their verdicts on the seeds that had not been seen alone, if there are two of them."""
    seeds = evidence.conditions.seeds("bn")
    unseen = [seed for seed in seeds if seed not in evidence.options.seen_seeds]
    if len(unseen) == len(seeds):
        return [replace(one, verdict_unseen_seeds=one.verdict if len(unseen) > 1 else None) for one in judged]
    named = "The seeds that had not been seen before the thresholds were written"
    if len(unseen) < 2:
        return [replace(one, sentence=f"{one.sentence} {named} are fewer than two.") for one in judged]
    part = evidence.only(unseen)
    found = []
    for one, hypothesis in zip(judged, HYPOTHESES, strict=True):
        alone = hypothesis(part)
        # A comparison of networks has the seeds that all of them have.
        shown = ", ".join(map(str, sorted(alone.headline.per_seed) or unseen))
        sentence = f"{one.sentence} {named} ({shown}) alone: {alone.verdict}."
        found.append(replace(one, verdict_unseen_seeds=alone.verdict, sentence=sentence))
    return found


def _accuracies(networks: pd.DataFrame) -> dict[tuple[str, int], float]:
    missing = sorted({"network", "seed", "accuracy"} - set(networks.columns))
    if missing:
        raise UserError(f"the table of networks lacks the columns {', '.join(missing)}")
    if networks.duplicated(["network", "seed"]).any():
        raise UserError("the table of networks has a network and seed twice; each may have one accuracy")
    known = networks[networks["accuracy"].notna()]
    wrong = known[~known["accuracy"].between(0, 1)]
    if len(wrong):
        raise UserError(f"an accuracy is {wrong['accuracy'].iloc[0]}; it has to be a share between 0 and 1")
    return {
        (str(network), int(seed)): float(accuracy)
        for network, seed, accuracy in known[["network", "seed", "accuracy"]].itertuples(index=False, name=None)
    }


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Print one row per hypothesis: its verdict and the sentence that says why."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_lines=False)
    for name in ("", "verdict", "why"):
        table.add_column(name, overflow="fold", no_wrap=name == "verdict")
    for one in verdict.hypotheses:
        # Text, not str: intervals stand in brackets, which Rich would take for markup.
        why = Text(f"{one.statement}\n", style="italic").append(Text(one.sentence, style="not italic"))
        table.add_row(Text(one.hypothesis), Text(one.verdict, style=STYLES[one.verdict]), why)
        table.add_section()
    console.print(table)


def markdown_table(verdict: Verdict) -> str:
    """The verdict as a table in Markdown, for a README."""
    rows = ["| | hypothesis | verdict | what the data say |", "|---|---|---|---|"]
    for one in verdict.hypotheses:
        cells = (one.hypothesis, one.statement, f"**{one.verdict}**", one.sentence)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
