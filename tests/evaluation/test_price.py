"""The price of matching: against what a network computes by itself, calculations by hand, and rigged networks."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from small_evaluation import CLASSES, identities, outputs, small_classifier, small_images, small_set
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.data.sources import load_images
from bnood.errors import UserError
from bnood.evaluation import price
from bnood.evaluation.bootstrap import set_counts
from bnood.evaluation.conditions import Cost, Images
from bnood.evaluation.price import (
    CLEAN,
    CLEAN_TEST,
    COLUMNS,
    PriceOptions,
    corruption_and_strength,
    partners,
    price_of_matching,
    shifted_sets,
)
from bnood.statistics import BatchNormStatistics, estimate_statistics
from bnood.training.classifier import Classifier

OPTIONS = PriceOptions(
    id_images=60, ood_images=25, calibration_images=28, forward_batch=20, estimation_batch=50, resamples=40, seed=3
)  # 60 images in halves of 30; calibration on 28 of them
NAMES = ("clean", "noise-1", "noise-5", "blur-5")


@pytest.fixture(scope="module")
def images() -> Images:
    return small_images(n_id=60)


@pytest.fixture(scope="module")
def shifted(images: Images) -> dict[str, ImageSet]:
    sets = shifted_sets(images.id_set, None, ("noise", "blur"), (1, 5), seed=3)
    return {name: sets[name] for name in NAMES}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@contextmanager
def watched(classifier: Classifier) -> Iterator[list[tuple[bool, np.ndarray]]]:
    """The batches that go through the network, and whether statistics were then being estimated."""
    seen: list[tuple[bool, np.ndarray]] = []
    estimating = False

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((estimating, inputs[0].numpy().copy()))

    def estimate(*arguments: Any, **options: Any) -> BatchNormStatistics:
        nonlocal estimating
        estimating = True
        try:
            return estimate_statistics(*arguments, **options)
        finally:
            estimating = False

    hook = classifier.register_forward_pre_hook(look)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(price, "estimate_statistics", estimate)
            yield seen
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def table(classifier: Classifier, images: Images, shifted: dict[str, ImageSet]) -> pd.DataFrame:
    return price_of_matching(classifier, images, shifted, OPTIONS)


def row(table: pd.DataFrame, dataset: str, statistics: str, metric: str, score: str = "", ood: str = "") -> pd.Series:
    found = table[
        (table["dataset"] == dataset)
        & (table["statistics"] == statistics)
        & (table["metric"] == metric)
        & (table["score"] == score)
        & (table["companion"] == ood)
    ]
    assert len(found) == 1
    return found.iloc[0]


def division(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibration and scoring half as the documentation of the halves has it."""
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def under_own_statistics(classifier: Classifier, calibration: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Logits after one pass of PyTorch's own running statistics over one batch, which it keeps unbiased."""
    network = copy.deepcopy(classifier)
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sizes: dict[nn.Module, int] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = inputs[0].numel() // inputs[0].shape[1]

    for layer in layers:
        layer.train()
        layer.momentum = 1.0
        layer.register_forward_pre_hook(count)
    with torch.no_grad():
        network(torch.from_numpy(calibration))
    for layer in layers:
        layer.running_var.mul_((sizes[layer] - 1) / sizes[layer])  # biased, as in the forward pass
    return outputs(network.eval(), scored)[0].double().numpy()


# ---------------------------------------------------------------------------------------------------- the whole table


def test_the_table_has_every_condition_set_and_figure(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    own = {("", "accuracy"), ("", "nll"), ("", "ece"), ("msp", "mean"), ("energy", "mean")}
    detection = {(score, metric) for score in ("msp", "energy") for metric in ("auroc", "fpr95")}
    expected = {("", *figure) for figure in own}
    expected |= {(ood, *figure) for ood in ("far", "near") for figure in detection}
    for statistics in ("running", "recalibrated:id", "recalibrated:target"):
        for name in NAMES:
            part = table[(table["statistics"] == statistics) & (table["dataset"] == name)]
            found = list(zip(part["companion"], part["score"], part["metric"], strict=True))
            assert sorted(found) == sorted(expected)
    assert len(table) == 3 * len(NAMES) * len(expected)
    assert set(table["role"]) == {"shifted"}
    assert set(zip(table["dataset"], table["corruption"], table["strength"], strict=True)) == {
        ("clean", "none", 0), ("noise-1", "noise", 1), ("noise-5", "noise", 5), ("blur-5", "blur", 5),
    }  # fmt: skip
    own_rows = table["companion"] == ""
    assert set(table["n"][own_rows]) == {30} and set(table["n_id"][own_rows]) == {0}
    assert set(table["n"][~own_rows]) == {25} and set(table["n_id"][~own_rows]) == {30}
    assert np.isfinite(table.select_dtypes("number")).all(axis=None)


@pytest.mark.parametrize("statistics", ["running", "recalibrated:target", "recalibrated:id"])
def test_values_are_those_of_the_network_itself(
    statistics: str, table: pd.DataFrame, classifier: Classifier, images: Images, shifted: dict[str, ImageSet]
) -> None:
    noisy, options = shifted["noise-5"], OPTIONS

    def some(pool: np.ndarray) -> np.ndarray:
        order = np.random.RandomState(options.seed).permutation(len(pool))
        return pool[order[: options.calibration_images]]

    calibration, scored = division(60, options.seed)
    ood_calibration, ood_scored = images.ood["far"]
    some_ood = np.sort(np.random.RandomState(options.seed).permutation(len(ood_scored))[: options.ood_images])
    logits = {}
    for side, own, pixels in (
        ("shifted", noisy.images[calibration], noisy.images[scored]),
        ("ood", ood_calibration.images, ood_scored.images[some_ood]),
    ):
        if statistics == "running":
            logits[side] = outputs(classifier, pixels)[0].double().numpy()
        else:
            pool = own if statistics == "recalibrated:target" else images.id_calibration.images
            logits[side] = under_own_statistics(classifier, some(pool), pixels)
    assert noisy.labels is not None
    labels, probabilities = noisy.labels[scored], softmax(logits["shifted"], axis=1)
    energies = {side: logsumexp(found, axis=1) for side, found in logits.items()}
    is_id = np.r_[np.ones(30), np.zeros(25)]
    expected = {
        ("accuracy", "", ""): accuracy_score(labels, probabilities.argmax(axis=1)),
        ("nll", "", ""): log_loss(labels, probabilities, labels=range(CLASSES)),
        ("mean", "msp", ""): probabilities.max(axis=1).mean(),
        ("mean", "energy", ""): energies["shifted"].mean(),
        ("auroc", "energy", "far"): roc_auc_score(is_id, np.r_[energies["shifted"], energies["ood"]]),
    }
    for (metric, score, ood), value in expected.items():
        assert row(table, "noise-5", statistics, metric, score, ood)["value"] == pytest.approx(value, rel=1e-3), metric


def test_change_is_the_difference_to_running_and_paired(table: pd.DataFrame) -> None:
    running = table[table["statistics"] == "running"]
    assert (running[["change", "change_low", "change_high"]] == 0).all(axis=None)
    keys = ["dataset", "score", "metric", "companion"]
    others = table[table["statistics"] != "running"].merge(
        running[[*keys, "value"]], on=keys, suffixes=("", "_running")
    )
    np.testing.assert_allclose(others["change"], others["value"] - others["value_running"], atol=1e-12)
    assert (others["low"] <= others["high"]).all() and (others["change_low"] <= others["change_high"]).all()


def test_changes_are_resampled_by_the_image(
    table: pd.DataFrame, classifier: Classifier, images: Images, shifted: dict[str, ImageSet]
) -> None:
    noisy, counts = shifted["noise-5"], set_counts("known", 30, OPTIONS.resamples, OPTIONS.seed)[1:]
    calibration, scored = division(60, OPTIONS.seed)
    used = calibration[np.random.RandomState(OPTIONS.seed).permutation(30)[: OPTIONS.calibration_images]]
    matched = under_own_statistics(classifier, noisy.images[used], noisy.images[scored])
    running = outputs(classifier, noisy.images[scored])[0].double().numpy()
    each = logsumexp(matched, axis=1) - logsumexp(running, axis=1)
    resampled = [np.repeat(each, count).mean() for count in counts]
    found = row(table, "noise-5", "recalibrated:target", "mean", "energy")
    expected = [each.mean(), *np.percentile(resampled, [2.5, 97.5])]
    np.testing.assert_allclose(found[["change", "change_low", "change_high"]].astype(float), expected, rtol=1e-3)


def test_the_same_logits_change_nothing_even_within_resamples(images: Images) -> None:
    """A network whose BatchNorm has no say gives the same under all statistics: zero change, zero width, throughout."""
    classifier = small_classifier()
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    found = price_of_matching(classifier, images, {"clean": images.id_set}, OPTIONS)
    # float32 sums may be taken in another order, but here every image has the same features.
    assert np.abs(found[["change", "change_low", "change_high"]]).max(axis=None) == 0
    assert set(found["value"][found["metric"] == "auroc"]) == {0.5}


# ------------------------------------------------------------------------------------------------- what is paired


class Rigged(nn.Module):
    """Logits that say how bright the image is: right where the brightness is 10 times the label."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.zeros(3))
        self.norm = "none"

    def forward(self, images: Tensor, return_features: bool = False) -> tuple[Tensor, Tensor]:
        brightness = images.float().mean(dim=(1, 2, 3))[:, None]
        distance = -(brightness / 10 - torch.arange(CLASSES)).abs()
        return 3 * distance, brightness


def bright_set(name: str, levels: np.ndarray, labels: np.ndarray) -> ImageSet:
    pixels = np.zeros((len(levels), 16, 16, 3), np.uint8) + levels.astype(np.uint8)[:, None, None, None]
    return ImageSet(name, pixels, labels)


def test_accuracy_of_a_rigged_network_and_of_one_without_batchnorm() -> None:
    labels = np.arange(40) % CLASSES
    right = bright_set("known", 10 * labels, labels)
    # Every image whose label is 0 is taken for a 1, all others are right.
    dark = bright_set("dark", np.where(labels == 0, 10, 10 * labels), labels)
    ood = bright_set("ood", np.full(20, 200), labels[:20])
    images = Images(right, right, {"ood": (ood, ood)})
    network = Rigged()
    cost = Cost()
    found = price_of_matching(network, images, {"clean": right, "dark": dark}, replace(OPTIONS, id_images=40), cost)  # type: ignore[arg-type]
    assert set(found["statistics"]) == {"running"}
    assert (cost.scored, cost.estimated_on) == (20 + 2 * 20, 0)
    _, scored = division(40, OPTIONS.seed)
    assert row(found, "clean", "running", "accuracy")["value"] == 1
    assert row(found, "dark", "running", "accuracy")["value"] == np.mean(labels[scored] != 0)
    assert 0 < row(found, "dark", "running", "accuracy")["low"] < row(found, "dark", "running", "accuracy")["high"] < 1
    # Bright images have the lowest energies: told apart at every threshold.
    assert row(found, "dark", "running", "auroc", "energy", "ood")["value"] == 1
    assert row(found, "dark", "running", "fpr95", "energy", "ood")["value"] == 0


@pytest.mark.parametrize("norm", ["ln", "gn"])
def test_networks_without_batchnorm_have_running_only(norm: str, images: Images, shifted: dict[str, ImageSet]) -> None:
    classifier = small_classifier(norm).train()
    found = price_of_matching(classifier, images, {"clean": shifted["clean"]}, OPTIONS)
    assert set(found["statistics"]) == {"running"}
    assert all(module.training for module in classifier.modules())
    _, scored = division(60, OPTIONS.seed)
    logits, _ = outputs(classifier.eval(), shifted["clean"].images[scored])
    expected = logsumexp(logits.double().numpy(), axis=1).mean()
    assert row(found, "clean", "running", "mean", "energy")["value"] == pytest.approx(expected, rel=1e-4)


def test_no_image_is_scored_under_statistics_that_were_estimated_on_it(
    classifier: Classifier, images: Images, shifted: dict[str, ImageSet]
) -> None:
    with watched(classifier) as seen:
        price_of_matching(classifier, images, shifted, OPTIONS)
    estimated: set[bytes] = set()
    scored: set[bytes] = set()
    for estimating, batch in seen:
        (estimated if estimating else scored).update(identities(batch))
    assert len(estimated) == 28 + 28 + 28 + len(NAMES) * 28 and len(scored) == 25 + 25 + len(NAMES) * 30
    assert not estimated & scored


def test_strengths_and_corruptions_use_the_same_images(
    classifier: Classifier, images: Images, shifted: dict[str, ImageSet]
) -> None:
    """Which images were estimated on, and which scored, as positions in the set, are the same for all."""
    parts = {}
    for name in NAMES:
        position = {image.tobytes(): index for index, image in enumerate(shifted[name].images)}
        with watched(classifier) as seen:
            price_of_matching(classifier, replace(images, ood={}), {name: shifted[name]}, OPTIONS)
        parts[name] = [
            sorted(
                {position[key] for flag, batch in seen if flag == wanted for key in identities(batch) & set(position)}
            )
            for wanted in (True, False)
        ]
    assert all(part == parts["clean"] for part in parts.values())
    assert parts["clean"][1] == division(60, OPTIONS.seed)[1].tolist()


def test_equal_images_under_two_names_have_equal_intervals(classifier: Classifier, images: Images) -> None:
    found = price_of_matching(classifier, images, {"clean": images.id_set, "noise-1": images.id_set}, OPTIONS)
    numbers = ["value", "low", "high", "change", "change_low", "change_high"]
    first, second = (found[found["dataset"] == name][numbers].to_numpy() for name in ("clean", "noise-1"))
    np.testing.assert_array_equal(first, second)


def test_rows_do_not_depend_on_what_else_is_measured(
    classifier: Classifier, images: Images, shifted: dict[str, ImageSet], table: pd.DataFrame
) -> None:
    fewer = replace(images, ood={"near": images.ood["near"]})
    alone = price_of_matching(classifier, fewer, {"blur-5": shifted["blur-5"]}, OPTIONS)
    same = table[(table["dataset"] == "blur-5") & (table["companion"] != "far")].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, same)


def test_each_ood_set_is_passed_once_per_condition(
    classifier: Classifier, images: Images, shifted: dict[str, ImageSet]
) -> None:
    cost = Cost()
    with watched(classifier) as seen:
        price_of_matching(classifier, images, shifted, OPTIONS, cost)
    scored, sets = 3 * (25 + 25) + 3 * len(NAMES) * 30, len(NAMES)
    assert (cost.scored, cost.estimated_on) == (scored, (1 + 2 + sets) * 28)
    assert sum(len(batch) for estimating, batch in seen if not estimating) == cost.scored
    assert sum(len(batch) for estimating, batch in seen if estimating) == cost.estimated_on


def test_the_network_is_left_as_it_was(images: Images, shifted: dict[str, ImageSet]) -> None:
    classifier = small_classifier().train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    price_of_matching(classifier, images, {"noise-5": shifted["noise-5"]}, OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(module.training for module in classifier.modules())


# ---------------------------------------------------------------------------------------------------- the shifted sets


def jpeg_of(images: ImageSet, order: np.ndarray) -> ImageSet:
    """The images after JPEG compression, in another order."""
    compressed = []
    for image in images.images:
        stream = BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=90)
        compressed.append(np.asarray(Image.open(stream)))
    return ImageSet("known-jpeg", np.stack(compressed), images.labels).subset(order)


def smooth_set(n: int, seed: int) -> ImageSet:
    """Images that JPEG changes little: a gradient each."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (n, 2, 2, 3))
    ramp = np.stack([np.linspace(1, 0, 16), np.linspace(0, 1, 16)], axis=1)
    pixels = np.einsum("ha,nabc,wb->nhwc", ramp, corners, ramp)
    return ImageSet("known", pixels.astype(np.uint8), rng.integers(0, CLASSES, n))


def test_shifted_sets_are_made_of_the_same_images() -> None:
    known = small_set("known", 50, 1)
    sets = shifted_sets(known, seed=2, count=20)
    assert list(sets) == [
        CLEAN, *(f"{corruption}-{strength}" for corruption in ("noise", "blur", "contrast") for strength in range(1, 6))
    ]  # fmt: skip
    assert all(images.name == name and len(images) == 20 for name, images in sets.items())
    kept = np.sort(np.random.RandomState(2).permutation(50)[:20])
    assert known.labels is not None
    np.testing.assert_array_equal(sets[CLEAN].images, known.images[kept])
    for images in sets.values():
        np.testing.assert_array_equal(images.labels, known.labels[kept])


def test_the_jpeg_set_is_put_in_the_order_of_its_clean_partners() -> None:
    known = smooth_set(40, 0)
    order = np.random.default_rng(1).permutation(40)
    jpeg = jpeg_of(known, order)
    sets = shifted_sets(known, jpeg, (), seed=2, count=15)
    assert list(sets) == [CLEAN, "known-jpeg"]
    kept = np.sort(np.random.RandomState(2).permutation(40)[:15])
    np.testing.assert_array_equal(sets["known-jpeg"].images, jpeg.images[np.argsort(order)[kept]])
    np.testing.assert_array_equal(sets["known-jpeg"].labels, sets[CLEAN].labels)


def test_partners_among_other_images_are_a_clean_set_of_their_own() -> None:
    others, known = smooth_set(30, 5), smooth_set(40, 0)
    jpeg = jpeg_of(known, np.random.default_rng(1).permutation(40))
    sets = shifted_sets(others, jpeg, (), clean_test=known)
    assert list(sets) == [CLEAN, CLEAN_TEST, "known-jpeg"]
    np.testing.assert_array_equal(sets[CLEAN_TEST].images, known.images)
    assert np.abs(sets["known-jpeg"].images - known.images.astype(float)).mean() < 5
    # Without partners the set is taken as it comes.
    alone = shifted_sets(others, jpeg, (), seed=2, count=10)
    assert list(alone) == [CLEAN, "known-jpeg"]
    np.testing.assert_array_equal(
        alone["known-jpeg"].images, jpeg.images[np.sort(np.random.RandomState(2).permutation(40)[:10])]
    )


def test_partners_have_to_be_found_for_all_and_each_only_once() -> None:
    known = smooth_set(20, 0)
    jpeg = jpeg_of(known, np.arange(20))
    assert partners(known, jpeg) is not None
    assert partners(known, jpeg.subset(np.arange(19))) is None
    twice = known.subset(np.r_[np.arange(19), 3])
    assert partners(twice, jpeg_of(known, np.r_[np.arange(20), np.arange(20)])) is None
    assert partners(replace(known, labels=None), jpeg) is None
    assert known.labels is not None
    assert partners(known, replace(jpeg, labels=(known.labels + 1) % CLASSES)) is None


def test_the_real_jpeg_set_holds_the_test_images_with_the_same_labels(real_data: Path) -> None:
    clean, jpeg = load_images("cifar10", "test", real_data), load_images("cifar10-jpeg75", "test", real_data)
    found = partners(clean, jpeg)
    assert found is not None
    assert clean.labels is not None and jpeg.labels is not None
    np.testing.assert_array_equal(jpeg.labels[found], clean.labels)
    # Sorted by class, within a class in official order: so the k-th of a class in one is the k-th in the other.
    for label in range(10):
        of_class = found[clean.labels == label]
        np.testing.assert_array_equal(of_class, np.flatnonzero(jpeg.labels == label)[: len(of_class)])
    sample = load_images("cifar10", "train", real_data).subset(np.arange(200))
    assert partners(sample, jpeg) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("noise-3", ("noise", 3)), ("contrast-5", ("contrast", 5)), ("clean", ("none", 0)), ("clean-test", ("none", 0)),
        ("cifar10-jpeg75", ("jpeg", 1)), ("foggy-2", ("foggy-2", 1)),
    ],
)  # fmt: skip
def test_what_a_set_went_through_is_in_its_name(name: str, expected: tuple[str, int]) -> None:
    assert corruption_and_strength(name) == expected


# ----------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_measured_is_refused(classifier: Classifier, images: Images) -> None:
    with pytest.raises(UserError, match="no shifted set was given"):
        price_of_matching(classifier, images, {}, OPTIONS)
    unlabelled = replace(images.id_set, labels=None)
    with pytest.raises(UserError, match="noise-1: the images have no labels; expected labels"):
        price_of_matching(classifier, images, {"noise-1": unlabelled}, OPTIONS)
    with pytest.raises(UserError, match="blur-1: it has 1 image"):
        price_of_matching(classifier, images, {"blur-1": images.id_set.subset(np.arange(1))}, OPTIONS)
    with pytest.raises(UserError, match="the JPEG set is named 'noise-1'"):
        shifted_sets(images.id_set, replace(images.id_set, name="noise-1"))


@pytest.mark.parametrize(
    ("name", "value"), [("id_images", 3), ("ood_images", 0), ("calibration_images", 1), ("resamples", 1)]
)
def test_options_have_a_least_value(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; it has to be at least {value + 1}"):
        PriceOptions(**{name: value})


def test_the_levels_apart_are_few(real_data: Path) -> None:
    """The bound on how far JPEG may move an image holds with room to spare for the real set."""
    clean, jpeg = load_images("cifar10", "test", real_data), load_images("cifar10-jpeg75", "test", real_data)
    found = partners(clean, jpeg)
    assert found is not None
    moved = np.abs(jpeg.images[found].astype(float) - clean.images).mean(axis=(1, 2, 3))
    assert 5 < moved.mean() < 7 and moved.max() < price._LEVELS_APART - 3
