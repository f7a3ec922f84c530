"""Detectors x statistics as Markdown: python results/summarise.py STUDY_FOLDER SET,SET

AUROC in per cent, mean over the sets with equal weight; in brackets the change from running statistics in points, with
its 95 % interval over images; below, the placebo (50 % is no effect). One table for each network of the study.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from bnood.evaluation.bootstrap import interval

KEYS = ["statistics", "detector"]


def main(study: Path, sets: list[str]) -> None:
    """Print a table for every evaluated network of a study."""
    for file in sorted(study.glob("*/**/draws.parquet")):
        draws = pd.read_parquet(file).fillna({"companion": "", "comparison": ""})
        draws = draws[(draws["metric"] == "auroc") & (draws["companion"] == "") & draws["dataset"].isin(sets)]
        found = _mean_over_sets(draws[draws["comparison"] == "ood"], len(sets))
        placebo = _mean_over_sets(draws[draws["comparison"] == "placebo"], len(sets))
        detectors, statistics = (list(dict.fromkeys(key[place] for key in found)) for place in (1, 0))
        full = [name for name in statistics if all((name, detector) in found for detector in detectors)]
        print(f"\n**{file.relative_to(study).parts[0]}**\n")
        print("| detector | " + " | ".join(f"`{name}`" for name in full) + " |\n|---" + "|---" * len(full) + "|")
        for detector in detectors:
            cells = [_cell(found, name, detector) for name in full]
            print(f"| {detector} | " + " | ".join(cells) + " |")
        for detector in detectors:
            if any((name, detector) in placebo for name in full):
                cells = [_placebo(placebo.get((name, detector))) for name in full]
                print(f"| {detector}, placebo | " + " | ".join(cells) + " |")


def _mean_over_sets(draws: pd.DataFrame, count: int) -> dict[tuple[str, str], np.ndarray]:
    """The value and its replicates ``[1 + R]``, for every statistics and detector that all sets have."""
    means = {}
    for key, rows in draws.groupby(KEYS, sort=False):
        if len(rows) == count:
            values = [np.append(value, drawn) for value, drawn in zip(rows["value"], rows["replicates"], strict=True)]
            means[key] = np.mean(values, axis=0)
    return means


def _cell(found: dict[tuple[str, str], np.ndarray], statistics: str, detector: str) -> str:
    here, running = found[statistics, detector], found["running", detector]
    if statistics == "running":
        low, high = interval(here[1:])
        return f"{100 * here[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    low, high = interval((here - running)[1:])
    return f"{100 * here[0]:.1f} ({100 * (here - running)[0]:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"


def _placebo(found: np.ndarray | None) -> str:
    if found is None:
        return ""
    low, high = interval(found[1:])
    return f"{100 * found[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
