"""The conditions: every cell against what the network itself computes on the images that the cell names."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from small_evaluation import identities, outputs, small_classifier, small_images, small_set
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.conditions import Cell, ConditionOptions, Conditions, Images
from bnood.statistics import estimate_statistics
from bnood.training.classifier import Classifier

OPTIONS = ConditionOptions(
    batch_sizes=(16,),
    shares=(0.25,),
    shuffles=2,
    calibration_images=64,
    forward_batch=24,
    estimation_batch=32,
    estimator="sequential",
)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@dataclass
class Ran:
    """All conditions of the small evaluation, and which images went through the network before each cell."""

    classifier: Classifier
    images: Images
    conditions: Conditions
    cells: list[Cell]
    seen: list[list[bytes]]

    def of(self, statistics: str, role: str = "", composition: str = "") -> list[Cell]:
        return [
            cell
            for cell in self.cells
            if cell.statistics == statistics and role in ("", cell.role) and composition in ("", cell.composition)
        ]

    def scored(self, cell: Cell) -> ImageSet:
        return self.images.id_set if cell.role == "id" else self.images.ood[cell.dataset][1]

    def pixels(self, cell: Cell) -> np.ndarray:
        return self.scored(cell).images[cell.index]


def run_all(classifier: Classifier, images: Images, options: ConditionOptions) -> Ran:
    passing: list[bytes] = []
    seen: list[list[bytes]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passing.extend(image.numpy().tobytes() for image in inputs[0])

    conditions = Conditions(classifier, images, options)
    cells = []
    hook = classifier.register_forward_pre_hook(look)
    for cell in conditions.cells():
        cells.append(cell)
        seen.append(passing.copy())
        passing.clear()
    hook.remove()
    return Ran(classifier, images, conditions, cells, seen)


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run_all(small_classifier(), small_images(), OPTIONS)


def batches_of(values: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def test_running_is_the_network_in_evaluation_mode(ran: Ran) -> None:
    cells = ran.of("running")
    assert [(cell.dataset, cell.role) for cell in cells] == [("known", "id"), ("far", "ood"), ("near", "ood")]
    for cell in cells:
        assert np.array_equal(cell.index, np.arange(len(ran.scored(cell))))
        logits, features = outputs(ran.classifier, ran.pixels(cell))
        torch.testing.assert_close(cell.logits, logits, **CLOSE)
        torch.testing.assert_close(cell.features, features, **CLOSE)
        assert cell.features.min() >= 0 and cell.features.shape == (len(cell.index), 32)


def test_pure_batches_are_the_network_in_training_mode_on_full_batches(ran: Ran) -> None:
    training = copy.deepcopy(ran.classifier).train()
    cells = ran.of("batch", composition="pure")
    assert [cell.dataset for cell in cells] == ["known", "known", "far", "far", "near", "near"]
    assert [len(cell.index) for cell in cells] == [64, 64, 48, 48, 32, 32]  # of 70, 50 and 33 images
    for cell in cells:
        assert len(set(cell.index)) == len(cell.index)
        expected = [outputs(training, batch) for batch in batches_of(ran.pixels(cell), 16)]
        torch.testing.assert_close(cell.logits, torch.cat([logits for logits, _ in expected]), **CLOSE)
        torch.testing.assert_close(cell.features, torch.cat([features for _, features in expected]), **CLOSE)
    for first, second in batches_of(cells, 2):
        assert not np.array_equal(first.index, second.index)
        assert not np.array_equal(first.index, np.sort(first.index))


def test_mixed_batches_hold_the_share_and_use_no_image_twice(ran: Ran) -> None:
    training = copy.deepcopy(ran.classifier).train()
    cells = ran.of("batch", composition="mixed 0.25")
    found = [(cell.role, cell.companion, cell.dataset, cell.shuffle, len(cell.index)) for cell in cells]
    # 12 ID and 4 OOD images a batch: 70 // 12 = 5 batches; 50 // 4 and 33 // 4 would be more.
    assert found == [
        (role, companion, dataset, shuffle, count)
        for name in ("far", "near")
        for shuffle in (0, 1)
        for role, companion, dataset, count in (("id", name, "known", 60), ("ood", "", name, 20))
    ]
    for id_cell, ood_cell in batches_of(cells, 2):
        assert len(set(id_cell.index)) == 60 and len(set(ood_cell.index)) == 20
        id_pixels, ood_pixels = ran.pixels(id_cell), ran.pixels(ood_cell)
        for batch in range(5):
            inside, outside = slice(12 * batch, 12 * batch + 12), slice(4 * batch, 4 * batch + 4)
            logits, features = outputs(training, np.concatenate([id_pixels[inside], ood_pixels[outside]]))
            torch.testing.assert_close(id_cell.logits[inside], logits[:12], **CLOSE)
            torch.testing.assert_close(ood_cell.logits[outside], logits[12:], **CLOSE)
            torch.testing.assert_close(id_cell.features[inside], features[:12], **CLOSE)
            torch.testing.assert_close(ood_cell.features[outside], features[12:], **CLOSE)


def test_shuffles_follow_from_the_seed(ran: Ran) -> None:
    only = replace(OPTIONS, statistics=("batch",))
    for seed, same in ((0, True), (1, False)):
        again = run_all(ran.classifier, ran.images, replace(only, seed=seed))
        for old, new in zip(ran.of("batch"), again.of("batch"), strict=True):
            assert np.array_equal(old.index, new.index) == same
            assert torch.equal(old.logits, new.logits) == same


def matched(classifier: Classifier, images: np.ndarray) -> Classifier:
    """A copy whose running statistics are those of one batch of images, taken by torch itself in training mode."""
    network = copy.deepcopy(classifier).train()
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    counts = []
    for layer in layers:
        layer.momentum = 1.0
        layer.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].numel() // inputs[0].shape[1]))
    with torch.no_grad():
        network(torch.from_numpy(images))
    for layer, count in zip(layers, counts, strict=True):
        layer.running_var.mul_((count - 1) / count)  # torch stores the unbiased variance
    return network.eval()


def test_one_pass_recalibration_is_what_torch_measures_on_the_calibration_images(ran: Ran) -> None:
    found = run_all(
        ran.classifier,
        ran.images,
        replace(OPTIONS, statistics=("recalibrated",), estimator="one_pass", estimation_batch=500),
    )
    own = matched(ran.classifier, ran.images.id_calibration.images[:64])
    for cell in found.of("recalibrated:id"):
        torch.testing.assert_close(cell.logits, outputs(own, found.pixels(cell))[0], **CLOSE)
    for cell in found.of("recalibrated:target", "ood"):
        target = matched(ran.classifier, ran.images.ood[cell.dataset][0].images)
        torch.testing.assert_close(cell.logits, outputs(target, found.pixels(cell))[0], **CLOSE)
    assert found.conditions.estimator_distance == {}


def test_sequential_recalibration_is_the_estimate_made_by_hand(ran: Ran) -> None:
    calibration = {"id": ran.images.id_calibration.images[:64]}
    calibration |= {f"target:{name}": first.images for name, (first, _) in ran.images.ood.items()}
    options = replace(OPTIONS, statistics=("recalibrated",), estimator="one_pass")
    one_pass = run_all(ran.classifier, ran.images, options).conditions.estimates
    for name, pixels in calibration.items():
        # One batch of all images normalises as it will be used, so that its one pass is where the passes lead.
        by_hand = estimate_statistics(ran.classifier, [torch.from_numpy(pixels)])
        estimate = ran.conditions.estimates[name]
        assert max(max(pair) for pair in by_hand.distance(estimate).values()) < 0.01
        apart = np.array(list(estimate.distance(one_pass[name]).values())).max(axis=0)
        assert ran.conditions.estimator_distance[name] == pytest.approx(tuple(apart))
        batches = -(-len(pixels) // OPTIONS.estimation_batch)
        assert apart.max() > 0.003 if batches > 1 else apart.max() < 0.003


def test_recalibrated_cells_use_their_estimates(ran: Ran) -> None:
    names = {"recalibrated:id": "id", "recalibrated:target": "target:{}", "recalibrated:mixture": "mixture:{}"}
    for statistics, name in names.items():
        for cell in ran.of(statistics):
            copied = copy.deepcopy(ran.classifier)
            own = "id" if statistics == "recalibrated:target" and cell.role == "id" else name
            estimate = ran.conditions.estimates[own.format(cell.companion or cell.dataset)]
            for layer, module in copied.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.copy_(estimate[layer].mean)
                    module.running_var.copy_(estimate[layer].var)
            torch.testing.assert_close(cell.logits, outputs(copied, ran.pixels(cell))[0], **CLOSE)
    for of_id, of_target in zip(ran.of("recalibrated:id", "id"), ran.of("recalibrated:target", "id"), strict=True):
        assert torch.equal(of_id.logits, of_target.logits) and torch.equal(of_id.features, of_target.features)
    assert [cell.companion for cell in ran.of("recalibrated:mixture", "id")] == ["far", "near"]
    assert {cell.composition for cell in ran.of("recalibrated:mixture")} == {"mixed 0.5"}


def test_statistics_are_never_estimated_on_images_that_are_scored(ran: Ran) -> None:
    id_calibration = identities(ran.images.id_calibration.images)
    scored = identities(ran.images.id_set.images).union(*(identities(s.images) for _, s in ran.images.ood.values()))
    estimated = []
    for cell, seen in zip(ran.cells, ran.seen, strict=True):
        if not cell.statistics.startswith("recalibrated"):
            continue
        others = set(seen) - identities(ran.pixels(cell))
        assert not others & scored
        if others:
            estimated.append((cell.statistics, cell.companion or cell.dataset))
        ood_calibration = (
            identities(ran.images.ood[estimated[-1][1]][0].images) if estimated[-1][1] != "known" else set()
        )
        if cell.statistics == "recalibrated:id":
            assert others <= id_calibration and len(others) in (0, 64)
        if cell.statistics == "recalibrated:target" and cell.role == "ood":
            assert others == ood_calibration
        if cell.statistics == "recalibrated:mixture" and cell.role == "id":
            assert others <= id_calibration | ood_calibration
            assert len(others & id_calibration) == len(others & ood_calibration) == len(ood_calibration)
    assert estimated == [
        ("recalibrated:id", "known"),
        *[(f"recalibrated:{kind}", name) for kind in ("target", "mixture") for name in ("far", "near")],
    ]


@pytest.mark.parametrize(("share", "expected"), [(0.25, (63, 21)), (0.8, (10, 40))])
def test_the_mixture_behind_recalibration_has_the_stated_share(share: float, expected: tuple[int, int]) -> None:
    images = small_images(20, (("far", 40, 20),))
    options = replace(OPTIONS, statistics=("recalibrated",), mixture_share=share, estimation_batch=100)
    found = run_all(small_classifier(), images, options)
    others = set(found.seen[-2]) - identities(images.id_set.images)
    parts = (others & identities(images.id_calibration.images), others & identities(images.ood["far"][0].images))
    assert tuple(len(part) for part in parts) == expected
    assert found.cells[-1].composition == f"mixed {share:g}"
    assert found.conditions.notes == []


def test_sorted_calibration_images_do_no_harm_to_the_one_pass_estimate() -> None:
    images = small_images(16, (("far", 64, 16),))
    dark_and_bright = [small_set("far", 32, seed, mean, 15).images for seed, mean in ((1, 40), (2, 210))]
    in_order = ImageSet("far", np.concatenate(dark_and_bright))
    images = replace(images, ood={"far": (in_order, images.ood["far"][1])})
    classifier = small_classifier()
    options = replace(OPTIONS, statistics=("recalibrated",), estimator="one_pass", estimation_batch=16)
    conditions = run_all(classifier, images, options).conditions
    tensor = torch.from_numpy(in_order.images)
    whole = estimate_statistics(classifier, [tensor])
    as_sorted = estimate_statistics(classifier, list(tensor.split(16)))
    apart = [
        max(max(pair) for pair in whole.distance(estimate).values())
        for estimate in (conditions.estimates["target:far"], as_sorted)
    ]
    assert apart[0] < 0.5 * apart[1]


def test_each_id_cell_comes_before_the_ood_cells_that_are_compared_with_it(ran: Ran) -> None:
    known = set()
    for cell in ran.cells:
        key = (cell.statistics, cell.composition, cell.batch_size, cell.shuffle)
        mixed = cell.composition.startswith("mixed")
        if cell.role == "id":
            known.add((*key, cell.companion))
        else:
            assert (*key, cell.dataset if mixed else "") in known


def test_cost_counts_the_images_that_went_through_the_network(ran: Ran) -> None:
    free = sum(len(cell.index) for cell in ran.of("recalibrated:target", "id"))
    scored = sum(len(cell.index) for cell in ran.cells) - free
    through = sum(len(seen) for seen in ran.seen)
    assert ran.conditions.cost.scored == scored
    assert ran.conditions.cost.estimated_on == through - scored
    one_pass = run_all(ran.classifier, ran.images, replace(OPTIONS, statistics=("recalibrated",), estimator="one_pass"))
    assert one_pass.conditions.cost.estimated_on == 64 + (40 + 31) + 2 * (40 + 31)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_the_network_is_left_as_it_was_and_drops_nothing_out(norm: str) -> None:
    classifier = small_classifier(norm)
    classifier.network.head = nn.Sequential(nn.Dropout(0.5), classifier.network.head).eval()
    images = small_images(40, (("far", 20, 20),))
    expected = outputs(classifier, images.id_set.images)[0]
    classifier.train()
    classifier.network.blocks[1].eval()
    flags = [module.training for module in classifier.modules()]
    state = copy.deepcopy(classifier.state_dict())
    found = run_all(classifier, images, OPTIONS)
    torch.testing.assert_close(found.cells[0].logits, expected, **CLOSE)
    assert [module.training for module in classifier.modules()] == flags
    after = classifier.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in classifier.modules())
    assert all(module.track_running_stats for module in classifier.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("norm", ["ln", "gn", "none"])
def test_networks_without_batchnorm_are_scored_as_they_are_with_one_note(norm: str) -> None:
    found = run_all(small_classifier(norm), small_images(), OPTIONS)
    assert [cell.statistics for cell in found.cells] == ["running"] * 3
    assert len(found.conditions.notes) == 1 and norm in found.conditions.notes[0]
    for cell in found.cells:
        torch.testing.assert_close(cell.logits, outputs(found.classifier, found.pixels(cell))[0], **CLOSE)
    assert found.conditions.cost.estimated_on == 0
    quiet = run_all(small_classifier(norm), small_images(), replace(OPTIONS, statistics=("running",)))
    assert quiet.conditions.notes == []


def test_sets_that_fill_no_batch_are_noted_and_left_out() -> None:
    images = small_images(20, (("far", 5, 9), ("near", 5, 3)))
    found = run_all(small_classifier(), images, replace(OPTIONS, statistics=("batch",), shuffles=1))
    assert [(cell.dataset, cell.composition) for cell in found.cells if cell.statistics == "batch"] == [
        ("known", "pure"),
        ("known", "mixed 0.25"),
        ("far", "mixed 0.25"),
    ]
    starts = [note.split(":")[0] for note in found.conditions.notes]
    assert starts == ["far", "near", "near"]
    assert all("16" in note for note in found.conditions.notes)


def test_a_share_that_no_whole_number_of_images_makes_is_noted_once() -> None:
    options = replace(OPTIONS, statistics=("batch",), batch_sizes=(8,), shares=(0.1, 0.25), shuffles=1)
    conditions = run_all(small_classifier(), small_images(), options).conditions
    assert len(conditions.notes) == 1
    assert "0.1 " in conditions.notes[0] and "1 of 8" in conditions.notes[0] and "0.125" in conditions.notes[0]


def test_every_mixed_batch_holds_at_least_one_image_of_each_kind() -> None:
    options = replace(OPTIONS, statistics=("batch",), batch_sizes=(2, 4), shares=(0.01, 0.99), shuffles=1)
    found = run_all(small_classifier(), small_images(12, (("far", 4, 12),)), options)
    counts = [
        (cell.batch_size, cell.composition, len(cell.index)) for cell in found.of("batch") if cell.composition != "pure"
    ]
    pairs = [(first[2], second[2]) for first, second in batches_of(counts, 2)]
    assert pairs == [(12, 12), (12, 12), (12, 4), (4, 12)]


@pytest.mark.parametrize(
    ("norm", "changes"),
    [
        ("bn", {"estimator": "one_pass"}),
        ("gn", {}),
        ("bn", {"statistics": ("running", "recalibrated"), "estimator": "one_pass"}),
        ("bn", {"statistics": ("batch",), "batch_sizes": (16, 32), "shares": (0.1, 0.9), "shuffles": 1}),
        ("bn", {"statistics": ("batch",), "batch_sizes": (40, 64)}),
        ("bn", {"statistics": ("running",), "batch_sizes": (), "shares": ()}),
    ],
)
def test_the_number_of_cells_is_known_beforehand(norm: str, changes: dict[str, Any]) -> None:
    conditions = Conditions(small_classifier(norm), small_images(), replace(OPTIONS, **changes))
    expected = conditions.number_of_cells()
    assert expected == sum(1 for _ in conditions.cells())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"statistics": ("runing",)}, "runing"),
        ({"statistics": ()}, "empty"),
        ({"batch_sizes": (128, 1)}, "batch size 1"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"shares": ()}, "shares"),
        ({"batch_sizes": (64, 64)}, "64, 64"),
        ({"shares": (0.5, 0.5)}, "0.5, 0.5"),
        ({"shares": (0.0,)}, "share 0.0"),
        ({"shares": (1.0,)}, "share 1.0"),
        ({"mixture_share": 1.5}, "1.5"),
        ({"shuffles": 0}, "shuffles is 0"),
        ({"calibration_images": 0}, "calibration_images is 0"),
        ({"forward_batch": -3}, "forward_batch is -3"),
        ({"estimation_batch": 0}, "estimation_batch is 0"),
    ],
)
def test_options_that_make_no_sense_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as raised:
        ConditionOptions(**wrong)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("norm", ["ln", "gn", "none"])
def test_statistics_that_a_network_lacks_are_refused_where_nothing_else_is_asked(norm: str) -> None:
    options = replace(OPTIONS, statistics=("batch", "recalibrated"))
    with pytest.raises(UserError, match=f"norm {norm} keeps no statistics, .* under batch or recalibrated; expected"):
        run_all(small_classifier(norm), small_images(), options)


def test_it_is_on_record_how_many_images_each_estimate_saw(ran: Ran) -> None:
    sizes = {f"target:{name}": len(first) for name, (first, _) in ran.images.ood.items()}
    sizes |= {f"mixture:{name}": 2 * len(first) for name, (first, _) in ran.images.ood.items()}
    assert ran.conditions.estimator_images == {"id": 64, **sizes}


def test_orders_differ_between_sets_of_equal_size() -> None:
    images = Images(small_set("known", 32, 1), small_set("known", 8, 2), {})
    conditions = Conditions(small_classifier(), images, OPTIONS)
    other = replace(images.id_set, name="other")
    assert not np.array_equal(conditions._order(images.id_set, 0), conditions._order(other, 0))
