"""How often check_recalibration's advice is right: 42 cases with known truth that its rule was not developed on.

    BNOOD_DATA=data python tests/campaigns/recalibration_cases.py runs/cifar10-resnet18-bn-s2 [results.csv]

The rule was developed on two other trained networks (seeds 0 and 1) with noise, blur and SVHN. The cases here are of a
third network, with contrast, DTD, CIFAR-100 and mixtures of them. Each has 400 traffic images, 200 of which are scored.

Truth: "out-of-distribution" if at least half of the traffic is OOD; else "recalibrate" if accuracy on the scored ID
images of the traffic rises by at least one point with its bootstrap interval above 0; else "nothing to gain". The
advice "cannot tell" is no hit. A wrong "recalibrate" is the expensive mistake and is counted apart.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bnood.data.corruptions import shifted
from bnood.data.image_set import ImageSet
from bnood.data.sources import images
from bnood.errors import run_door
from bnood.evaluation.recalibration import check_recalibration
from bnood.training.run_folder import load_run

ID_IMAGES, TRAFFIC, SIZE = 200, 400, 32
# The label of OOD images in the traffic, which no prediction equals.
NO_CLASS = 10
TRUTHS = ("recalibrate", "do not: nothing to gain", "do not: out-of-distribution")
# Contrast (0: none), OOD set, OOD fraction, how many draws.
CASES = (
    *((strength, "", 0.0, 2) for strength in (1, 2, 3, 4, 5)),
    (0, "", 0.0, 4),
    *((0, ood, fraction, 2) for ood in ("dtd", "cifar100") for fraction in (0.75, 1.0)),
    *((0, ood, fraction, 2) for ood in ("dtd", "cifar100") for fraction in (0.25, 0.5)),
    *(
        (strength, ood, fraction, 1)
        for strength in (3, 4, 5)
        for ood in ("dtd", "cifar100")
        for fraction in (0.25, 0.5)
    ),
)


def cases(id_set: ImageSet, ood_sets: dict[str, ImageSet]) -> Iterator[tuple[str, float, ImageSet]]:
    """Name, OOD fraction and traffic of every case; labels are for the truth alone."""
    number = 0
    for strength, ood, fraction, draws in CASES:
        for draw in range(draws):
            number += 1
            random = np.random.RandomState(number)
            traffic = id_set.subset(np.sort(random.permutation(len(id_set))[:TRAFFIC]))
            if strength:
                traffic = shifted(traffic, f"contrast-{strength}")
            pixels, labels = traffic.images.copy(), traffic.labels.copy()
            if fraction:
                replaced = random.permutation(TRAFFIC)[: round(fraction * TRAFFIC)]
                pixels[replaced] = ood_sets[ood].images[random.permutation(len(ood_sets[ood]))[: len(replaced)]]
                labels[replaced] = NO_CLASS
            name = f"contrast-{strength}" if strength else "clean"
            yield (
                f"{name} + {fraction:.0%} {ood} #{draw}" if ood else f"{name} #{draw}",
                fraction,
                ImageSet("traffic", pixels, labels),
            )


def truth(figures: pd.DataFrame, fraction: float) -> tuple[str, float]:
    """What would have been right, and the gain in accuracy on the ID images of the traffic, in points."""
    row = figures[(figures["set"] == "traffic") & (figures["quantity"] == "accuracy")].iloc[0]
    gain = 100 * row["difference"] / (1 - fraction) if fraction < 1 else 0.0
    if fraction >= 0.5:
        return TRUTHS[2], gain
    return TRUTHS[0] if gain >= 1 and row["low"] > 0 else TRUTHS[1], gain


def summarise(results: pd.DataFrame) -> str:
    """Hit rate, mistakes by kind, and the table of truth against advice."""
    wrong = results[results["advice"] != results["truth"]]
    lines = [
        f"hits: {len(results) - len(wrong)} of {len(results)}",
        f"cannot tell: {(wrong['advice'] == 'cannot tell').sum()}",
        f"wrong recalibrate: {(wrong['advice'] == TRUTHS[0]).sum()}",
        f"other wrong advice: {(~wrong['advice'].isin(['cannot tell', TRUTHS[0]])).sum()}",
    ]
    return "\n".join([*lines, "", pd.crosstab(results["truth"], results["advice"]).to_string()])


def main(run: Path, target: Path | None) -> None:
    """Run all cases on the network of a run folder; print each, and the summary."""
    torch.set_num_threads(1)
    network = load_run(run).network
    test = images("cifar10")
    order = np.random.RandomState(0).permutation(len(test))
    id_set, rest = test.subset(np.sort(order[:ID_IMAGES])), test.subset(np.sort(order[ID_IMAGES:]))
    ood_sets = {name: images(name, image_size=SIZE) for name in ("dtd", "cifar100")}
    rows = []
    for name, fraction, traffic in cases(rest, ood_sets):
        found = check_recalibration(network, id_set, traffic)
        right, gain = truth(found.figures, fraction)
        rows.append((name, right, round(gain, 1), found.advice, found.reason))
        print(" | ".join(map(str, rows[-1])), flush=True)
    results = pd.DataFrame(rows, columns=["case", "truth", "gain_points", "advice", "reason"])
    if target is not None:
        results.to_csv(target, index=False)
    print(summarise(results))


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    run_door(lambda: main(Path(sys.argv[1]), target))
