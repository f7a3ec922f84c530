"""Interventions: outputs against networks changed by hand, batches against those of the evaluation, and the record."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from plain_interventions import Mix, batchnorm_names, matched_copy, outputs_of, tiny_classifier
from small_evaluation import identities, small_classifier, small_images
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.evaluation.conditions import ConditionOptions, Conditions, Images
from bnood.evaluation.interventions.effects import Outcome, Place
from bnood.evaluation.interventions.sweep import InterventionOptions, Sweep, chosen_images, intervene
from bnood.training.classifier import Classifier

OPTIONS = InterventionOptions(
    lambdas=(0.25,), priors=(0, 16, 1e12), prior_batch=8, batch_sizes=(8, 32), shares=(0.25, 0.5), resamples=20, chunk=9
)
SETS = (("far", 24, 20), ("near", 30, 36))


@dataclass
class Swept:
    classifier: Classifier
    images: Images
    sweep: Sweep
    outcomes: list[Outcome]

    def of(self, kind: str, dataset: str, place: str = "", share: float | None = None) -> Outcome:
        (found,) = [
            outcome
            for outcome in self.outcomes
            if (outcome.place.kind, outcome.dataset, outcome.place.place) == (kind, dataset, place)
            and share in (None, outcome.place.share)
        ]
        return found

    def parts(self, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        """Calibration and scored images."""
        if dataset == "known":
            return self.images.id_calibration.images, self.images.id_set.images
        calibration, scored = self.images.ood[dataset]
        return calibration.images, scored.images


@pytest.fixture(scope="module")
def swept() -> Swept:
    classifier, images = tiny_classifier(), small_images(40, SETS)
    sweep = Sweep(classifier, images, OPTIONS)
    return Swept(classifier, images, sweep, list(sweep.outcomes()))


def assert_close(outcome: Outcome, expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(outcome.outputs.logits, expected[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outcome.outputs.features, expected[1], rtol=1e-4, atol=1e-4)


def only_means(running: Tensor, found: Tensor, what: str) -> Tensor:
    return found if what == "mean" else running


def only_variances(running: Tensor, found: Tensor, what: str) -> Tensor:
    return found if what == "var" else running


@pytest.mark.parametrize("dataset", ["known", "far"])
@pytest.mark.parametrize(("kind", "mix"), [("mean", only_means), ("variance", only_variances)])
def test_means_or_variances_alone_equal_the_network_changed_by_hand(
    swept: Swept, dataset: str, kind: str, mix: Mix
) -> None:
    calibration, scored = swept.parts(dataset)
    changed = matched_copy(swept.classifier, calibration, batchnorm_names(swept.classifier), mix)
    assert_close(swept.of(kind, dataset), outputs_of(changed, scored))


@pytest.mark.parametrize("dataset", ["known", "near"])
def test_all_is_matched_to_the_calibration_images_of_the_set(swept: Swept, dataset: str) -> None:
    calibration, scored = swept.parts(dataset)
    changed = matched_copy(swept.classifier, calibration, batchnorm_names(swept.classifier))
    assert_close(swept.of("all", dataset), outputs_of(changed, scored))


def test_the_path_interpolates_towards_the_fully_matched_statistics(swept: Swept) -> None:
    calibration, scored = swept.parts("far")
    matched = dict(matched_copy(swept.classifier, calibration, batchnorm_names(swept.classifier)).named_buffers())
    between = copy.deepcopy(swept.classifier)
    for name, buffer in between.named_buffers():
        if "running" in name:
            buffer.copy_(0.75 * buffer + 0.25 * matched[name])
    assert_close(swept.of("path", "far", "0.25"), outputs_of(between, scored))


@pytest.mark.parametrize("dataset", ["known", "near"])
def test_the_prior_mixes_the_running_and_the_batchs_statistics_layer_by_layer(swept: Swept, dataset: str) -> None:
    outcome = swept.of("prior", dataset, "16")
    names = batchnorm_names(swept.classifier)
    scored = swept.parts(dataset)[1][outcome.index]
    assert len(scored) % 8 == 0 and len(set(outcome.index)) == len(scored)
    logits, features = [], []
    for start in range(0, len(scored), 8):
        batch = scored[start : start + 8]
        mixed = matched_copy(swept.classifier, batch, names, lambda running, own, _: (16 * running + 8 * own) / 24)
        for results, result in zip((logits, features), outputs_of(mixed, batch), strict=True):
            results.append(result)
    assert_close(outcome, (torch.cat(logits), torch.cat(features)))


def test_an_endless_prior_is_running_and_none_at_all_is_the_batch(swept: Swept) -> None:
    endless, nothing = swept.of("prior", "far", "1e+12"), swept.of("prior", "far", "0")
    running, batch = swept.of("none", "far"), swept.of("batch", "far", "8", 1.0)
    assert_close(endless, (running.outputs.logits[endless.index], running.outputs.features[endless.index]))
    assert np.array_equal(nothing.index, batch.index)
    assert_close(nothing, (batch.outputs.logits, batch.outputs.features))
    assert not torch.allclose(nothing.outputs.logits, endless.outputs.logits, atol=0.1)


def test_batches_are_those_of_the_evaluation(swept: Swept) -> None:
    options = ConditionOptions(("batch",), batch_sizes=(8, 32), shares=(0.25, 0.5), shuffles=1)
    conditions = Conditions(swept.classifier, swept.images, options)
    cells = [cell for cell in conditions.cells() if cell.statistics == "batch"]
    ours = [outcome for outcome in swept.outcomes if outcome.place.kind == "batch"]
    assert len(cells) == len(ours) == 22 - 1  # "far" has too few images for pure batches of 32
    for cell, outcome in zip(cells, ours, strict=True):
        share = 1.0 if cell.composition == "pure" else float(cell.composition.removeprefix("mixed "))
        assert outcome.place == Place("batch", f"{cell.batch_size}", cell.batch_size, share)
        assert (outcome.companion, outcome.dataset) == (cell.companion, cell.dataset)
        assert np.array_equal(outcome.index, cell.index)
        assert_close(outcome, (cell.logits, cell.features))


def test_what_no_set_fills_is_noted(swept: Swept) -> None:
    assert sum("batch is skipped" in note for note in swept.sweep.notes) == 1
    assert any(note.startswith("far: 20 images do not fill a batch of 32") for note in swept.sweep.notes)


def test_means_alone_by_hand_in_a_network_of_one_layer() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.norm.running_mean.copy_(torch.tensor([100.0, 120.0, 90.0]))
            self.norm.running_var.copy_(torch.tensor([400.0, 100.0, 900.0]))

        def forward(self, images: Tensor, return_features: bool) -> tuple[Tensor, Tensor]:
            features = self.norm(images.float().mean(dim=(1, 2)))
            return features, features

    images = small_images(40, SETS[:1])
    outcomes = list(Sweep(Single().eval(), images, OPTIONS).outcomes())
    colours = [part.images.mean(axis=(1, 2), dtype=np.float64) for part in images.ood["far"]]
    running = np.array([400.0, 100.0, 900.0]) + 1e-5
    means, variances = colours[0].mean(axis=0), colours[0].var(axis=0) + 1e-5
    for kind, mean, var in (("mean", means, running), ("variance", np.array([100.0, 120.0, 90.0]), variances)):
        (outcome,) = [o for o in outcomes if o.place.kind == kind and o.dataset == "far"]
        expected = (colours[1] - mean) / np.sqrt(var)
        np.testing.assert_allclose(outcome.outputs.logits.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_table_has_every_intervention_and_the_record_adds_up() -> None:
    classifier, seen = tiny_classifier(), []
    before = copy.deepcopy(classifier.state_dict())
    options = replace(OPTIONS, calibration_images=20)
    found = intervene(classifier, small_images(40, SETS[:1]), options, progress=lambda *args: seen.append(args))
    table, record = found.table, found.record
    assert table.groupby("kind").place.nunique().to_dict() == {
        "all": 1, "batch": 2, "first": 7, "last": 7, "mean": 1, "none": 1, "only": 7, "path": 1, "prior": 3,
        "variance": 1,
    }  # fmt: skip
    assert not table.duplicated(["kind", "place", "share", "dataset", "score", "metric", "companion"]).any()
    keys = ["kind", "place", "share", "dataset", "companion"]
    sizes = table[table.metric == "unit_mean_max_ratio"].drop_duplicates(keys).n
    # First 1 and last 1 are an only, first 7 and last 7 are all.
    assert record["passes_needed"] == sizes.sum() - 4 * (40 + 20)
    assert record["passes_needed_by_layers"] == (2 + 7 + 5 + 5) * (40 + 20)
    assert record["passes_done"] < record["passes_needed"]
    assert record["passes_done_by_layers"] < record["passes_needed_by_layers"]
    assert record["layers"] == batchnorm_names(classifier)
    assert len(found.draws) == len(table) and {len(draws) for draws in found.draws.draws} == {20}
    assert [number for number, _, _ in seen] == list(range(1, len(sizes) + 1))
    assert seen[0][1] >= len(seen) and seen[-1][2] == "far, batch 32"
    after = classifier.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_sets_are_thinned_at_random_and_alike_whatever_other_sets_there_are() -> None:
    images = small_images(40, SETS)
    options = InterventionOptions(id_images=12, ood_images=9, calibration_images=15)
    chosen = chosen_images(images, options)
    assert (len(chosen.id_set), len(chosen.id_calibration)) == (12, 15)
    assert [tuple(map(len, pair)) for pair in chosen.ood.values()] == [(15, 9), (15, 9)]
    assert identities(chosen.id_set.images) < identities(images.id_set.images)
    assert not np.array_equal(chosen.id_set.images, images.id_set.images[:12])
    alone = chosen_images(Images(images.id_set, images.id_calibration, {"near": images.ood["near"]}), options)
    assert np.array_equal(alone.ood["near"][1].images, chosen.ood["near"][1].images)
    whole = chosen_images(images, InterventionOptions())
    assert np.array_equal(whole.id_set.images, images.id_set.images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lambdas": (0.5, 1.0)}, r"lambdas .* contains 1; expected between 0 \(kind none\) and 1"),
        ({"priors": (-1,)}, "priors .* contains -1"),
        ({"batch_sizes": (1,)}, "batch_sizes .* contains 1; expected at least 2"),
        ({"shares": (1.0,)}, "pure batches come anyway"),
        ({"shares": (0.5, 0.5)}, "each may be given once only"),
        ({"id_images": 1}, "id_images .* is 1"),
        ({"chunk": 0}, "chunk .* is 0"),
    ],
)
def test_options_that_make_no_sense_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InterventionOptions(**wrong)  # type: ignore[arg-type]


def test_networks_without_batchnorm_are_refused() -> None:
    with pytest.raises(UserError, match="has no BatchNorm layer"):
        intervene(small_classifier("gn"), small_images(), OPTIONS)


def test_a_diverged_network_is_named_and_no_table_made() -> None:
    classifier = tiny_classifier()
    with torch.no_grad():
        classifier.network.conv1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"layer 'network\.blocks\.0\.norm1' received NaN"):
        intervene(classifier, small_images(40, SETS), OPTIONS)
    classifier = tiny_classifier()
    with torch.no_grad():
        classifier.network.head.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"known under \w+ ?.*: logits are NaN or infinite"):
        intervene(classifier, small_images(40, SETS), OPTIONS)


def test_a_set_of_one_image_is_named() -> None:
    with pytest.raises(UserError, match=r"far: 1 image\(s\) to be scored"):
        intervene(tiny_classifier(), small_images(40, (("far", 24, 1),)), OPTIONS)
