"""The placebo: ID images under statistics of other ID images, against ID images under yet other ones."""

import numpy as np
import pytest
from plain_interventions import with_statistics
from small_evaluation import outputs
from test_tables import DETECTION, by_sklearn, make


def test_the_placebo_averages_two_comparisons_of_id_images_under_two_statistics() -> None:
    made = make(placebo=True, statistics=("recalibrated:target", "recalibrated:id", "batch:8"), shuffles=1)
    table = made.found.table
    rows = table[table["comparison"] == "placebo"]
    assert set(rows["statistics"]) == {"recalibrated:target", "batch:8"} and set(rows["metric"]) == set(DETECTION)
    assert set(rows["dataset"]) == {"far", "near"} and rows["difference"].isna().all()
    # A0 and A1 are 30 % of the 70 ID images each, B1 and B2 halves of the 28 that are left.
    sizes = rows.groupby("statistics")[["n_id", "n_ood"]].agg(set)
    assert sizes.to_numpy().tolist() == [[{8}, {8}], [{14}, {14}]]
    everything = {**made.adaptation, **made.scored}
    parts = {name.rpartition("/")[2]: images for name, images in everything.items() if "placebo" in name}
    assert [len(parts[name]) for name in ("A0", "A1", "B1", "B2")] == [21, 21, 14, 14]
    pixels = [image.tobytes() for images in parts.values() for image in images.images]
    assert len(set(pixels)) == 70
    prefix = "known/placebo-21/"
    energies = {}
    for adapted in ("A0", "A1"):
        model = with_statistics(made.network.model, made.statistics(((f"{prefix}{adapted}", 21),)))
        for part in ("B1", "B2"):
            energies[part, adapted] = outputs(model, parts[part].images)[0].double().logsumexp(dim=1).numpy()
    values = [
        by_sklearn("auroc", energies["B1", "A0"], energies["B2", "A1"]),
        by_sklearn("auroc", energies["B2", "A0"], energies["B1", "A1"]),
    ]
    row = rows[(rows["statistics"] == "recalibrated:target") & (rows["metric"] == "auroc")]
    row = row[(row["detector"] == "energy") & (row["dataset"] == "far")]
    assert row["value"].item() == pytest.approx(np.mean(values), abs=0.011)  # one pair of equal energies less or more
