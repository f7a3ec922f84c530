"""Layer forms, paths, priors and the placebo against copies of the network that are changed layer by layer."""

import copy

import numpy as np
import pytest
import torch
from small_evaluation import batchnorm_names, matched_copy, outputs, small_network, with_statistics
from test_metrics import oracle_metrics
from test_passes import CLOSE, batches_of, calibration, run
from test_tables import DETECTION, make
from torch import nn


@pytest.mark.parametrize(
    ("form", "layers"),
    [
        *[("first:1", slice(0, 1)), ("first:4", slice(0, 4)), ("first:7", slice(0, 7)), ("last:1", slice(6, 7))],
        *[("last:3", slice(4, 7)), ("only:0", slice(0, 1)), ("only:2", slice(2, 3)), ("only:6", slice(6, 7))],
        *[("mean", slice(0, 7)), ("variance", slice(0, 7))],
    ],
)
def test_layer_forms_are_those_of_a_network_that_is_changed_layer_by_layer(form: str, layers: slice) -> None:
    network = small_network(plain=True)
    found = run(network, statistics=(f"recalibrated:target/{form}",))
    names = batchnorm_names(network.model)
    assert len(names) == 7
    taken = {"mean": ("mean",), "variance": ("var",)}.get(form, ("mean", "var"))
    for cell in found.of(f"recalibrated:target/{form}"):
        split = f"target:{cell.where.dataset}" if cell.where.role == "ood" else "id"
        pixels = calibration(found, split, cell.where.n_calibration)
        changed = matched_copy(network.model, pixels, names[layers], lambda old, new, key: new if key in taken else old)
        torch.testing.assert_close((cell.logits, cell.features), outputs(changed, found.pixels(cell)), **CLOSE)
        assert cell.where.estimator == "one_batch"


def test_a_path_leads_from_running_to_target_statistics() -> None:
    found = run(statistics=("recalibrated:target", "path:0", "path:0.25", "path:1"))
    running = {cell.where.dataset: cell.logits for cell in found.of("running")}
    for cell in found.of("path:0"):
        torch.testing.assert_close(cell.logits, running[cell.where.dataset], **CLOSE)
    for cell, target in zip(found.of("path:1"), found.of("recalibrated:target"), strict=True):
        torch.testing.assert_close(cell.logits, target.logits, **CLOSE)
    cell = next(cell for cell in found.of("path:0.25") if cell.where.dataset == "far")
    changed = copy.deepcopy(found.network.model)
    target = found.statistics((("target:far", 50),))
    for layer, module in changed.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.mul_(0.75).add_(0.25 * target[layer].mean)
            module.running_var.mul_(0.75).add_(0.25 * target[layer].var)
    torch.testing.assert_close(cell.logits, outputs(changed, found.pixels(cell))[0], **CLOSE)


def test_a_prior_mixes_running_and_batch_statistics() -> None:
    found = run(statistics=("batch:16", "prior:0/batch:16", "prior:48/batch:16"), shuffles=1)
    for cell, batch in zip(found.of("prior:0/batch:16"), found.of("batch:16"), strict=True):
        torch.testing.assert_close(cell.logits, batch.logits, **CLOSE)
    cell = next(cell for cell in found.of("prior:48/batch:16") if cell.where.dataset == "far")
    names = batchnorm_names(found.network.model)
    for position, pixels in enumerate(batches_of(found.pixels(cell), 16)):
        by_hand = matched_copy(found.network.model, pixels, names, lambda running, own, _: 0.75 * running + 0.25 * own)
        rows = slice(16 * position, 16 * position + 16)
        torch.testing.assert_close(cell.logits[rows], outputs(by_hand, pixels)[0], **CLOSE)


def test_the_placebo_averages_two_comparisons_of_id_images_under_two_statistics() -> None:
    made = make(placebo=True, statistics=("recalibrated:target", "recalibrated:id", "batch:8"), shuffles=1)
    table = made.found.table
    rows = table[table["comparison"] == "placebo"]
    assert set(rows["statistics"]) == {"recalibrated:target", "batch:8"} and set(rows["metric"]) == set(DETECTION)
    assert set(rows["dataset"]) == {"far", "near"} and rows["difference"].isna().all()
    # A0 and A1 are 30 % of the 70 ID images each, B1 and B2 halves of the 28 that are left.
    assert rows.groupby("statistics")[["n_id", "n_ood"]].agg(set).to_numpy().tolist() == [[{8}, {8}], [{14}, {14}]]
    everything = {**made.adaptation, **made.scored}
    parts = {name.rpartition("/")[2]: images for name, images in everything.items() if "placebo" in name}
    assert [len(parts[name]) for name in ("A0", "A1", "B1", "B2")] == [21, 21, 14, 14]
    assert len({image.tobytes() for images in parts.values() for image in images.images}) == 70
    prefix = "known/placebo-21/"
    energies = {}
    for adapted in ("A0", "A1"):
        model = with_statistics(made.network.model, made.statistics(((f"{prefix}{adapted}", 21),)))
        for part in ("B1", "B2"):
            energies[part, adapted] = outputs(model, parts[part].images)[0].double().logsumexp(dim=1).numpy()
    swapped = (("B1", "B2"), ("B2", "B1"))
    values = [oracle_metrics(energies[one, "A0"], energies[other, "A1"])["auroc"] for one, other in swapped]
    row = rows.query("statistics == 'recalibrated:target' and metric == 'auroc'")
    row = row.query("detector == 'energy' and dataset == 'far'")
    assert row["value"].item() == pytest.approx(np.mean(values), abs=0.011)  # one pair of equal energies less or more
