"""The check before recalibrating: figures against direct computation on a small network, advice on made-up figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from check_recalibration import main
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.evaluation.recalibration import RecalibrationCheck, advise, check_recalibration
from bnood.networks.network import Network
from bnood.statistics import bake, estimate_statistics, use_statistics

SIZE = 8


def images(name: str, n: int, seed: int, darker: float = 1.0) -> ImageSet:
    random = np.random.RandomState(seed)
    pixels = (darker * random.randint(0, 256, (n, SIZE, SIZE, 3))).astype(np.uint8)
    return ImageSet(name, pixels, random.randint(0, 4, n))


def pixels(images: ImageSet) -> Tensor:
    return torch.from_numpy(images.images).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    train = pixels(images("train", 200, 9))
    bake(model, estimate_statistics(model, [train]))
    with torch.no_grad():  # sharp logits around 0, so that predictions differ between images
        model[-1].weight *= 20
        model[-1].bias -= model(train).mean(dim=0)
    return Network(model)


ID, TRAFFIC = images("id", 120, 0), images("traffic", 160, 1, darker=0.3)


@pytest.fixture(scope="module")
def check(network: Network) -> RecalibrationCheck:
    return check_recalibration(network, ID, TRAFFIC, ood_set=images("ood", 50, 2), ood_fraction=0.2, resamples=50)


def figure(check: RecalibrationCheck, name: str, quantity: str) -> pd.Series:
    (row,) = (row for _, row in check.figures.iterrows() if (row["set"], row["quantity"]) == (name, quantity))
    return row


def test_figures_are_those_of_one_set_of_statistics_for_both_sides(network: Network, check: RecalibrationCheck) -> None:
    order = np.random.RandomState(0).permutation(160)
    adaptation, scoring = (TRAFFIC.subset(np.sort(part)) for part in (order[:80], order[80:]))
    target = estimate_statistics(network.model, [pixels(adaptation)])
    assert check.statistics is not None
    assert max(max(pair) for pair in target.distance(check.statistics).values()) < 1e-5
    softmax = {}
    for statistics, column in (("running", "running"), (target, "traffic_statistics")):
        with use_statistics(network.model, statistics), torch.no_grad():  # type: ignore[arg-type]
            logits = {each.name: network.model(pixels(each)).double() for each in (ID, scoring)}
        softmax[column] = {name: each.softmax(1).numpy() for name, each in logits.items()}
        for name, each in logits.items():
            msp, energy = softmax[column][name].max(1).mean(), each.logsumexp(1).mean().item()
            assert figure(check, name, "mean_msp")[column] == pytest.approx(msp, rel=1e-4)
            assert figure(check, name, "mean_energy")[column] == pytest.approx(energy, rel=1e-4)
        accuracy = (softmax[column]["id"].argmax(1) == ID.labels).mean()
        assert figure(check, "id", "accuracy")[column] == pytest.approx(accuracy)
        truth = np.r_[np.ones(120), np.zeros(80)]
        scores = np.r_[softmax[column]["id"].max(1), softmax[column]["traffic"].max(1)]
        assert figure(check, "traffic", "auroc_msp")[column] == pytest.approx(roc_auc_score(truth, scores), rel=1e-6)
    for name in ("id", "traffic"):
        flipped = softmax["running"][name].argmax(1) != softmax["traffic_statistics"][name].argmax(1)
        assert figure(check, name, "predictions_flipped")["difference"] == pytest.approx(flipped.mean())
        assert 0 < flipped.mean() < 1
    row = figure(check, "traffic", "mean_msp")
    assert row["difference"] == pytest.approx(row["traffic_statistics"] - row["running"])
    assert row["low"] < row["difference"] < row["high"]


def test_distances_of_layers_stability_and_a_stated_ood_fraction(network: Network, check: RecalibrationCheck) -> None:
    assert check.layers["layer"].tolist() == ["1", "4"]
    first = check.layers.iloc[0]  # the traffic beside a second half of the ID images
    assert first["mean_shift"] > 5 * first["id_mean_shift"] > 0
    assert first["log_std_ratio"] > 5 * first["id_log_std_ratio"] > 0
    assert check.stability["n"].tolist() == [40, 20]
    assert 0 < check.stability["relative_distance"].iloc[0] < check.stability["relative_distance"].iloc[1] < 1
    # The OOD images are bright as the ID images are, so that they bring the statistics back towards the running ones.
    row = figure(check, "id", "mean_msp")
    assert row["traffic_statistics"] != row["with_20%_ood"] and check.figures["with_20%_ood"].notna().all()
    few = check_recalibration(network, ID, TRAFFIC, ood_set=images("ood", 50, 2), ood_fraction=0.9, resamples=10)
    assert figure(few, "id", "mean_msp")["with_89%_ood"] != row["with_20%_ood"]  # 6 images of the traffic, 50 others


def test_the_network_is_left_as_it_was_and_labels_and_batches_do_not_matter(network: Network) -> None:
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    first, second = (check_recalibration(network, ID, TRAFFIC, forward_batch=n, resamples=10) for n in (128, 33))
    pd.testing.assert_frame_equal(first.figures, second.figures, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())
    assert not network.model.training
    bare = (ImageSet(each.name, each.images) for each in (ID, TRAFFIC))
    unlabelled = check_recalibration(network, *bare, resamples=10)
    assert figure(first, "traffic", "accuracy")["n"] == 80
    assert "accuracy" not in set(unlabelled.figures["quantity"]) and unlabelled.advice == first.advice


def test_without_batchnorm_the_advice_is_one_line() -> None:
    found = check_recalibration(Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))), ID, TRAFFIC)
    assert str(found) == "do not: nothing to gain (the network has no BatchNorm layer)"


@pytest.mark.parametrize(
    ("before", "after", "rise", "advice"),
    [
        (0.75, 0.40, 0.05, "recalibrate"),  # blur: ID images are the odd ones out under its statistics
        (0.66, 0.46, 0.001, "recalibrate"),
        (0.65, 0.40, 0.01, "cannot tell"),
        (0.75, 0.40, -0.01, "cannot tell"),
        (0.92, 0.63, 0.02, "do not: out-of-distribution"),
        (0.66, 0.56, 0.02, "do not: out-of-distribution"),
        (0.80, 0.52, 0.02, "cannot tell"),
        (0.51, 0.52, 0.0, "do not: nothing to gain"),
    ],
)
def test_the_rule(before: float, after: float, rise: float, advice: str) -> None:
    rows = [("traffic", "auroc_msp", before, after, after - before), ("traffic", "mean_msp", 0.8, 0.8 + rise, rise)]
    rows.append(("id", "mean_msp", 0.9, 0.1, -0.8))
    names = ["set", "quantity", "running", "traffic_statistics", "difference"]
    found, reason = advise(pd.DataFrame(rows, columns=names))
    assert found == advice
    assert f"{before:.2f}" in reason and f"{after:.2f}" in reason and f"{rise:+.3f}" in reason


def test_the_script_ends_in_the_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in (ID, TRAFFIC):
        np.savez(tmp_path / f"{each.name}.npz", images=each.images, labels=each.labels)
    np.savez(tmp_path / "ood.npz", images=ID.images[::-1])
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "bad_files:good", "--id", "id.npz", "--traffic", "traffic.npz", "--ood", "ood.npz"]
    main([*arguments, "--count", "100"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert "; MSP " in last and last.endswith(")")
    assert any("with_11%_ood" in line for line in lines)
