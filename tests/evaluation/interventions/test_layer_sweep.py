"""The walk through the layers: every result against a network that was changed layer by layer and run as a whole."""

import copy

import numpy as np
import pytest
import torch
from plain_interventions import batchnorm_names, matched_copy, outputs_of, tiny_classifier
from small_evaluation import small_set
from torch import nn

from bnood.evaluation.interventions.effects import Place
from bnood.evaluation.interventions.layer_sweep import layer_sweep
from bnood.evaluation.interventions.segments import Outputs, Segments
from bnood.statistics import BatchNormStatistics, estimate_statistics
from bnood.training.classifier import Classifier

CALIBRATION = small_set("far", 24, seed=3, mean=60, contrast=20).images
SCORED = small_set("far", 20, seed=4, mean=60, contrast=20).images


def swept(classifier: nn.Module, chunk: int = 7) -> tuple[dict[Place, Outputs], BatchNormStatistics, Segments]:
    segments = Segments(classifier, torch.from_numpy(SCORED[:1]), chunk)
    sweep = layer_sweep(segments, torch.from_numpy(CALIBRATION), torch.from_numpy(SCORED))
    found = {}
    while True:
        try:
            place, outputs = next(sweep)
        except StopIteration as end:
            return found, end.value, segments
        assert place not in found
        found[place] = outputs


def assert_same(outputs: Outputs, classifier: Classifier) -> None:
    logits, features = outputs_of(classifier, SCORED)
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outputs.features, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "depth", "width", "positions"),
    [("wide_resnet", 10, 1, range(7)), ("resnet", 20, 2, (1, 9, 10))],
)
def test_every_place_equals_the_network_changed_by_hand(
    architecture: str, depth: int, width: int, positions: range | tuple[int, ...]
) -> None:
    classifier = tiny_classifier(architecture, depth, width)
    names = batchnorm_names(classifier)
    found, _, _ = swept(classifier)
    assert len(found) == 2 + 3 * len(names)
    assert_same(found[Place("none")], classifier)
    assert_same(found[Place("all")], matched_copy(classifier, CALIBRATION, names))
    for position in positions:
        number = position + 1
        assert_same(
            found[Place("only", names[position], position)], matched_copy(classifier, CALIBRATION, [names[position]])
        )
        assert_same(found[Place("first", f"{number}", number)], matched_copy(classifier, CALIBRATION, names[:number]))
        assert_same(found[Place("last", f"{number}", number)], matched_copy(classifier, CALIBRATION, names[-number:]))


def test_places_differ_from_one_another_except_where_they_are_the_same_intervention() -> None:
    classifier = tiny_classifier()
    found, _, _ = swept(classifier)
    names, count = batchnorm_names(classifier), 7
    same = {
        frozenset([Place("all"), Place("first", "7", 7), Place("last", "7", 7)]),
        frozenset([Place("only", names[0], 0), Place("first", "1", 1)]),
        frozenset([Place("only", names[-1], count - 1), Place("last", "1", 1)]),
    }
    groups: dict[bytes, set[Place]] = {}
    for place, outputs in found.items():
        groups.setdefault(outputs.logits.numpy().tobytes(), set()).add(place)
    assert {frozenset(group) for group in groups.values() if len(group) > 1} == same


def test_one_batch_is_where_sequential_estimation_ends() -> None:
    classifier = tiny_classifier()
    _, matched, _ = swept(classifier)
    batches = list(torch.from_numpy(CALIBRATION).split(9))
    sequential = estimate_statistics(classifier, batches, method="sequential", tolerance=1e-7)
    assert sequential.converged
    assert max(max(pair) for pair in sequential.distance(matched).values()) < 1e-4
    # It is not what one pass over several batches finds, which is why this had to be shown.
    one_pass = estimate_statistics(classifier, batches)
    assert max(max(pair) for pair in one_pass.distance(matched).values()) > 1e-2


def test_a_network_without_stages_gives_the_same_from_one_segment() -> None:
    classifier = tiny_classifier()

    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier

        def forward(self, images: torch.Tensor, return_features: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(images, return_features=return_features)

    ours, matched, cut = swept(classifier)
    theirs, theirs_matched, whole = swept(Foreign())
    assert (len(cut), len(whole)) == (7, 1)
    for place, outputs in ours.items():
        name = f"inner.{place.place}" if place.kind == "only" else place.place
        torch.testing.assert_close(theirs[place._replace(place=name)].logits, outputs.logits, rtol=1e-4, atol=1e-3)
    for name in matched:
        torch.testing.assert_close(matched[name].var, theirs_matched[f"inner.{name}"].var, rtol=1e-5, atol=1e-8)


def test_a_single_layer_is_only_first_last_and_all_at_once() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, images: torch.Tensor, return_features: bool) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.norm(images.float().mean(dim=(1, 2)))
            return features, features

    found, _, _ = swept(Single().eval())
    assert set(found) == {
        Place("none"), Place("all"), Place("only", "norm", 0), Place("first", "1", 1), Place("last", "1", 1)
    }  # fmt: skip
    calibration, scored = (part.mean(axis=(1, 2), dtype=np.float64) for part in (CALIBRATION, SCORED))
    by_hand = (scored - calibration.mean(axis=0)) / np.sqrt(calibration.var(axis=0) + 1e-5)
    for place in (Place("all"), Place("only", "norm", 0), Place("first", "1", 1)):
        np.testing.assert_allclose(found[place].logits.numpy(), by_hand, rtol=1e-4, atol=1e-4)


def test_half_of_the_passes_are_saved_and_those_done_are_counted() -> None:
    classifier = tiny_classifier("resnet", 20, 2)
    convolved = 0.0
    whole = sum(work for _, work in convolutions(classifier))

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal convolved
        convolved += output.numel() * module.weight[0].numel() / whole

    modules = [module for module, _ in convolutions(classifier)]
    segments = Segments(classifier, torch.from_numpy(SCORED[:1]), 7)
    handles = [module.register_forward_hook(count) for module in modules]
    for _ in layer_sweep(segments, torch.from_numpy(CALIBRATION), torch.from_numpy(SCORED)):
        pass
    for handle in handles:
        handle.remove()
    assert segments.passed == pytest.approx(convolved, rel=1e-6)
    scored = segments.passed - segments.matching
    conditions = 3 * 21  # none, all, 21 times only, 19 times first and last each: first and last 21 are all
    assert scored < 0.55 * conditions * len(SCORED)
    assert segments.passed < conditions * len(SCORED)


def convolutions(classifier: Classifier) -> list[tuple[nn.Module, float]]:
    """The convolutions and linear layers, and the multiply-adds of each for one image."""
    work: list[tuple[nn.Module, float]] = []
    probe = copy.deepcopy(classifier)
    originals = dict(classifier.named_modules())
    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda layer, inputs, output, name=name: work.append(
                    (originals[name], output.numel() * layer.weight[0].numel())
                )
            )
    outputs_of(probe, SCORED[:1])
    return work


def test_the_network_is_as_it_was_also_after_a_sweep_that_was_left_early() -> None:
    classifier = tiny_classifier().train()
    before = copy.deepcopy(classifier.state_dict())
    swept(classifier)
    segments = Segments(classifier, torch.from_numpy(SCORED[:1]))
    sweep = layer_sweep(segments, torch.from_numpy(CALIBRATION), torch.from_numpy(SCORED))
    next(sweep)
    sweep.close()
    assert all(module.training for module in classifier.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())
    after = classifier.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
