"""Every set under every condition against what the network itself computes on the images that the engine names."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_evaluation import (
    Recorded,
    identities,
    left_as_it_was,
    measured_by_torch,
    outputs,
    recorded,
    small_network,
    small_set,
    small_sets,
    with_statistics,
)
from torch import Tensor

from bnood.data.image_set import ImageSet, StreamedSet
from bnood.errors import UserError
from bnood.evaluation.comparisons import Sets
from bnood.evaluation.evaluate import evaluate
from bnood.evaluation.options import EvaluationOptions
from bnood.evaluation.passes import shuffled
from bnood.statistics import estimate_statistics

NAMES = ("running", "batch:16", "batch:16@0.25", "recalibrated")
OPTIONS: dict[str, Any] = {
    **{"statistics": NAMES, "detectors": ("energy",), "shuffles": 2, "resamples": 5},
    **{"calibration_images": 64, "forward_batch": 24, "estimation_batch": 32},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SETS = ("known", "far", "near")


def run(network: Any = None, sets: Any = None, **changes: Any) -> Recorded:
    return recorded(network or small_network(), sets or small_sets(), **{**OPTIONS, **changes})


@pytest.fixture(scope="module")
def ran() -> Recorded:
    return run()


def batches_of(values: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def test_running_is_the_network_in_evaluation_mode(ran: Recorded) -> None:
    cells = ran.of("running")
    assert [(cell.where.dataset, cell.where.role) for cell in cells] == [*zip(SETS, ("id", "ood", "ood"), strict=True)]
    for cell in cells:
        assert np.array_equal(cell.index, np.arange(len(ran.scored[cell.where.dataset])))
        torch.testing.assert_close((cell.logits, cell.features), outputs(ran.network.model, ran.pixels(cell)), **CLOSE)
        assert cell.features.min() >= 0 and cell.features.shape == (len(cell.index), 32)


def test_pure_batches_are_the_network_in_training_mode_on_full_batches(ran: Recorded) -> None:
    training = copy.deepcopy(ran.network.model).train()
    cells = ran.of("batch:16")
    assert [cell.where.dataset for cell in cells] == ["known", "known", "far", "far", "near", "near"]
    assert [len(cell.index) for cell in cells] == [64, 64, 48, 48, 32, 32]  # of 70, 50 and 33 images
    for cell in cells:
        assert len(set(cell.index)) == len(cell.index)
        expected = [outputs(training, batch) for batch in batches_of(ran.pixels(cell), 16)]
        torch.testing.assert_close(cell.logits, torch.cat([logits for logits, _ in expected]), **CLOSE)
        torch.testing.assert_close(cell.features, torch.cat([features for _, features in expected]), **CLOSE)
    for first, second in batches_of(cells, 2):
        assert not np.array_equal(first.index, second.index)
        assert not np.array_equal(first.index, np.sort(first.index))


def test_mixed_batches_hold_the_ood_fraction_and_use_no_image_twice(ran: Recorded) -> None:
    training = copy.deepcopy(ran.network.model).train()
    cells = ran.of("batch:16@0.25")
    # 12 ID and 4 OOD images a batch: 70 // 12 = 5 batches; 50 // 4 and 33 // 4 would be more.
    assert [(c.where.companion, c.where.dataset, c.shuffle, len(c.index)) for c in cells] == [
        (companion, dataset, shuffle, count)
        for name in ("far", "near")
        for companion, dataset, count in ((name, "known", 60), ("", name, 20))
        for shuffle in (0, 1)
    ]
    for known, other in zip(ran.of("batch:16@0.25", "id"), ran.of("batch:16@0.25", "ood"), strict=True):
        assert len(set(known.index)) == 60 and len(set(other.index)) == 20
        batches = zip(*(batches_of(ran.pixels(cell), n) for cell, n in ((known, 12), (other, 4))), strict=True)
        found = [outputs(training, np.concatenate(batch)) for batch in batches]
        for position, what in enumerate(("logits", "features")):
            expected = [both[position] for both in found]
            torch.testing.assert_close(getattr(known, what), torch.cat([each[:12] for each in expected]), **CLOSE)
            torch.testing.assert_close(getattr(other, what), torch.cat([each[12:] for each in expected]), **CLOSE)


def test_shuffles_follow_from_the_seed(ran: Recorded) -> None:
    for seed, same in ((0, True), (1, False)):
        again = run(ran.network, statistics=("batch:16", "batch:16@0.25"), seed=seed)
        for name in ("batch:16", "batch:16@0.25"):
            for old, new in zip(ran.of(name, "id"), again.of(name, "id"), strict=True):
                assert np.array_equal(old.index, new.index) == same
                assert torch.equal(old.logits, new.logits) == same
    assert not np.array_equal(shuffled("known", 32, 0, 0), shuffled("other", 32, 0, 0))


def calibration(ran: Recorded, split: str, count: int) -> np.ndarray:
    """The images that the engine says it estimated on, without asking the engine for them."""
    whole = ran.adaptation[split].images
    if split == "id":
        return whole[:count]
    return whole[np.sort(np.random.RandomState(0).permutation(len(whole))[:count])]


@pytest.mark.parametrize("counts", ["matched", "v0.1"])
def test_recalibrated_statistics_are_what_torch_measures_on_the_calibration_images(counts: str) -> None:
    ran = run(statistics=("recalibrated", "recalibrated:mixture@1"), calibration=counts, estimation_batch=500)
    for cell in (cell for cell in ran.cells if cell.where.statistics != "running"):
        name = cell.where.companion or cell.where.dataset
        count, split = {"far": 50, "near": 32, "known": 64}[name], f"target:{name}"
        parts = {
            "recalibrated:id": {"id": 64},
            "recalibrated:target": {"id" if cell.where.role == "id" else split: count},
            "recalibrated:mixture@0.5": {"id": count, split: count},
            "recalibrated:mixture@1": {split: count},
        }[cell.where.statistics]
        images = np.concatenate([calibration(ran, *part) for part in parts.items()])
        measured = measured_by_torch(ran.network.model, images)
        torch.testing.assert_close(cell.logits, outputs(measured, ran.pixels(cell))[0].float(), **CLOSE)
        assert cell.where.n_calibration == len(images)
    beside = [cell.where.companion for cell in ran.of("recalibrated:target", "id")]
    assert sorted(beside) == (["", "far", "near"] if counts == "matched" else [""])
    assert [cell.where.companion for cell in ran.of("recalibrated:mixture@0.5", "id")] == ["far", "near"]


def test_sequential_recalibration_is_the_estimate_made_by_hand() -> None:
    network = small_network(plain=True)
    ran = run(network, statistics=("recalibrated:target",), estimator="sequential")
    for split, count in (("id", 50), ("target:far", 50), ("target:near", 32)):
        # One batch of all images normalises as it will be used, so that its one pass is where the passes lead.
        by_hand = estimate_statistics(network.model, [torch.from_numpy(calibration(ran, split, count))])
        assert max(max(pair) for pair in by_hand.distance(ran.statistics(((split, count),))).values()) < 0.01


def test_statistics_are_never_estimated_on_images_that_are_scored_or_fitted_on() -> None:
    ran = run(statistics=(*NAMES, "recalibrated:target/first:2"), detectors=("energy", "knn"), fit_images=60)
    scored = set().union(*(identities(images.images) for images in ran.scored.values()))
    fitting = identities(small_sets()["train_set"].images) - identities(ran.adaptation["id"].images)
    assert len(fitting) == 190 - 64
    assert ran.estimated and not scored & fitting
    for estimate, images in ran.estimated.items():
        allowed = set().union(*(identities(ran.adaptation[split].images) for split, _ in estimate.parts))
        assert set(images) <= allowed and not set(images) & (scored | fitting)
        assert len(set(images)) == estimate.images


def test_sorted_calibration_images_do_no_harm_to_the_one_pass_estimate() -> None:
    dark_and_bright = [small_set("far", 64, seed, mean, 15).images for seed, mean in ((1, 40), (2, 210))]
    whole = ImageSet("far", np.concatenate(dark_and_bright))
    found = run(sets={**small_sets(16), "ood_sets": {"far": whole}}, estimation_batch=16, calibration_images=128)
    tensor = torch.from_numpy(found.adaptation["target:far"].images)
    together, as_sorted = (estimate_statistics(found.network.model, tensor.split(size)) for size in (64, 16))
    ours = found.statistics((("target:far", 64),))
    apart = [max(map(max, together.distance(estimate).values())) for estimate in (ours, as_sorted)]
    assert apart[0] < 0.5 * apart[1]


def test_cost_counts_the_images_that_went_through_the_network() -> None:
    ran = run()
    record = ran.found.record
    assert record["images_scored"] + record["images_estimated_on"] + 8 == ran.passed  # 8: the probe
    assert record["images_estimated_on"] == 64 + 50 + 32 + (50 + 32) + 2 * (50 + 32)
    # running, recalibrated:id and the mixtures; the ID set under target with 50 and with 32 images; batches.
    assert record["images_scored"] == (70 + 83) * 2 + (2 * 70 + 83) * 2 + 2 * ((64 + 48 + 32) + 2 * 80)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_the_network_is_left_as_it_was_and_drops_nothing_out(norm: str) -> None:
    network, sets = small_network(norm, dropout=True), small_sets(40, (("far", 40),))
    expected = outputs(network.model, sets["id_set"].images)[0]
    with left_as_it_was(network.model):
        found = run(network, sets)
    torch.testing.assert_close(found.cells[0].logits, expected, **CLOSE)


@pytest.mark.parametrize("norm", ["ln", "gn", "none"])
def test_networks_without_batchnorm_are_scored_as_they_are_with_one_note(norm: str) -> None:
    found = run(small_network(norm))
    assert {cell.where.statistics for cell in found.cells} == {"running"} and len(found.cells) == 3
    assert len(found.found.notes) == 1 and norm in found.found.notes[0]
    for cell in found.cells:
        torch.testing.assert_close(cell.logits, outputs(found.network.model, found.pixels(cell))[0], **CLOSE)
    assert found.found.record["images_estimated_on"] == 0
    assert run(small_network(norm), statistics=("running",)).found.notes == []
    with pytest.raises(UserError, match=f"norm {norm} keeps no statistics, .* under batch or recalibrated; expected"):
        run(small_network(norm), statistics=("batch", "recalibrated"))


def test_what_fills_no_batch_or_makes_no_whole_number_of_images_is_noted() -> None:
    sets = small_sets(20, (("far", 18), ("near", 6)))
    found = run(sets=sets, statistics=("batch:16", "batch:16@0.25"), shuffles=1)
    scored = [(c.where.dataset, c.where.statistics) for c in found.cells if "batch" in c.where.statistics]
    assert scored == [("known", "batch:16"), ("known", "batch:16@0.25"), ("far", "batch:16@0.25")]
    assert [note.split(":")[0] for note in found.found.notes] == ["far", "near", "near"]
    notes = run(statistics=("batch:8@0.1", "batch:8@0.25"), shuffles=1).found.notes
    assert notes == ["batch:8@0.1: the OOD fraction comes to 1 of 8 images, 0.125"]


def test_every_mixed_batch_holds_at_least_one_image_of_each_kind() -> None:
    names = [f"batch:{size}@{fraction}" for size in (2, 4) for fraction in (0.01, 0.99)]
    found = run(sets=small_sets(12, (("far", 24),)), statistics=names, shuffles=1)
    counts = [tuple(len(cell.index) for cell in found.of(name)) for name in names]
    assert counts == [(12, 12), (12, 12), (12, 4), (4, 12)]


def test_augmented_statistics_are_those_of_augmented_training_images() -> None:
    def darker(images: Tensor, generator: torch.Generator) -> Tensor:
        return images // torch.randint(2, 4, (len(images), 1, 1, 1), generator=generator).to(torch.uint8)

    found = run(sets={**small_sets(), "augment": darker}, statistics=("recalibrated:augmented",), estimation_batch=500)
    order = np.random.RandomState(0).permutation(64)  # in which the images pass
    images = torch.from_numpy(calibration(found, "id", 64)[order])
    changed = measured_by_torch(found.network.model, darker(images, torch.Generator().manual_seed(0)).numpy())
    for cell in found.of("recalibrated:augmented"):
        torch.testing.assert_close(cell.logits, outputs(changed, found.pixels(cell))[0].float(), **CLOSE)
    with pytest.raises(UserError, match="recalibrated:augmented needs the training augmentation"):
        run(statistics=("recalibrated:augmented",))


def test_stored_passes_serve_the_same_weights_images_and_options_alone(tmp_path: Path) -> None:
    for seed, n, shuffles in ((0, 40, 1), (1, 40, 1), (1, 44, 1), (1, 44, 2), (0, 40, 1)):
        given = {**small_sets(40, (("far", n),)), **OPTIONS, "shuffles": shuffles}
        fresh, stored = (evaluate(small_network(seed=seed), **given, store=store) for store in (None, tmp_path))
        assert fresh.table.equals(stored.table)


def streamed(images: ImageSet) -> StreamedSet:
    return StreamedSet(images.name, list(images.images), images.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_sets_that_are_read_item_by_item_give_the_same_table(workers: int) -> None:
    sets = small_sets(40, (("far", 40),))
    read = {name: streamed(each) for name, each in sets.items() if isinstance(each, ImageSet)}
    read["ood_sets"] = {name: streamed(each) for name, each in sets["ood_sets"].items()}
    options = {**OPTIONS, "statistics": (*NAMES, "recalibrated:target/mean")}
    in_memory = evaluate(small_network(), **sets, **options)
    by_item = evaluate(small_network(), **read, **options, workers=workers)
    assert in_memory.table.equals(by_item.table) and in_memory.scores.equals(by_item.scores)


@pytest.mark.parametrize(("given", "batches"), [(lambda images: images, [190]), (streamed, [95, 95])])
def test_photographs_are_estimated_on_in_smaller_batches_for_their_memory(given: Any, batches: list[int]) -> None:
    network, sizes = small_network(), list[int]()
    network.transform = None if batches == [190] else lambda image: torch.tensor(np.array(image)) * 1.0
    sets = small_sets()
    network.model.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])) or setattr(m, "x", args[0]))
    changes = {"statistics": ("recalibrated:id",), "calibration_images": 190, "estimation_batch": None}
    evaluate(network, **{**sets, "train_set": given(sets["train_set"])}, **{**OPTIONS, **changes})
    assert [size for size in sizes if size > OPTIONS["forward_batch"]] == batches
    assert not network.model.x.is_inference()  # what a model keeps of a batch must not keep it from being trained
    one_batch = Sets("id", adaptation={"id": given(sets["train_set"])}).splits(EvaluationOptions()).one_batch
    assert one_batch == (1000 if batches == [190] else 300)  # in layer forms


def test_without_training_images_half_of_the_id_set_recalibrates_and_the_other_is_scored() -> None:
    sets = small_sets()
    found = run(sets={**sets, "train_set": None}, statistics=("recalibrated:id",))
    scored, adaptation = identities(found.scored["known"].images), identities(found.adaptation["id"].images)
    assert (len(scored), len(adaptation)) == (35, 35) and scored | adaptation == identities(sets["id_set"].images)


def test_shifted_id_sets_are_scored_under_three_statistics_and_keep_their_halves_apart() -> None:
    found = run(statistics=(*NAMES, "path:0.5"), shifts=("noise-3",))
    cells = [cell for cell in found.cells if cell.where.dataset == "noise-3"]
    assert {cell.where.statistics for cell in cells} == {"running", "recalibrated:id", "recalibrated:target"}
    assert {cell.where.role for cell in cells} == {"id"}
    assert not identities(found.adaptation["target:noise-3"].images) & identities(found.scored["noise-3"].images)
    alone = next(c for c in cells if c.where.statistics == "recalibrated:target" and not c.where.companion)
    estimate = found.statistics((("target:noise-3", alone.where.n_calibration),))
    expected = outputs(with_statistics(found.network.model, estimate), found.pixels(alone))[0]
    torch.testing.assert_close(alone.logits, expected, **CLOSE)
    against = found.found.table.query("companion == 'noise-3' and metric == 'auroc'")
    assert set(against["dataset"]) == {"far", "near"} and set(against["n_id"]) == {35}
    assert set(against["comparison"]) == {"control"}
    with pytest.raises(UserError, match="shift 'fog-3': expected grey, or noise, blur, contrast with a strength"):
        run(shifts=("fog-3",))
