"""Statistics that are measured or decided upon layer by layer, while the images pass."""

import pytest
import torch
from plain_interventions import batchnorm_names, matched_copy, own, tiny_classifier
from small_evaluation import small_set
from torch import Tensor

from bnood.statistics import (
    LayerStatistics,
    decide_statistics,
    estimate_statistics,
    measure_statistics,
    read_statistics,
    use_statistics,
)

IMAGES = small_set("far", 22, seed=3, mean=60, contrast=20).images
BATCH = torch.from_numpy(IMAGES)


def test_measured_behind_running_layers_is_what_each_layer_alone_would_be_matched_to() -> None:
    classifier = tiny_classifier()
    found = measure_statistics(classifier, BATCH.split(5))
    assert found.passes == 1
    for name in batchnorm_names(classifier):
        alone = read_statistics(matched_copy(classifier, IMAGES, [name], own))[name]
        torch.testing.assert_close(found[name].mean, alone.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].var, alone.var, rtol=1e-4, atol=1e-6)


def test_measured_behind_the_batch_is_the_one_pass_estimate() -> None:
    classifier, batches = tiny_classifier(), list(BATCH.split(11))
    found, estimate = measure_statistics(classifier, batches, "batch"), estimate_statistics(classifier, batches)
    assert all(torch.equal(found[name].var, estimate[name].var) for name in estimate)


def test_each_layer_is_asked_before_it_runs_and_only_those_that_were_named() -> None:
    classifier = tiny_classifier()
    names = batchnorm_names(classifier)
    asked: list[str] = []

    def take(name: str, found: LayerStatistics) -> LayerStatistics:
        asked.append(name)
        return found

    with decide_statistics(classifier, take, names[2:5]), torch.no_grad():
        logits = classifier(BATCH)
    assert asked == names[2:5]
    with torch.no_grad():
        torch.testing.assert_close(logits, matched_copy(classifier, IMAGES, names[2:5])(BATCH), rtol=1e-4, atol=1e-3)


def test_none_leaves_the_running_statistics() -> None:
    classifier = tiny_classifier()
    seen: dict[str, Tensor] = {}

    def look(name: str, found: LayerStatistics) -> None:
        seen[name] = found.mean

    with torch.no_grad():
        expected = classifier(BATCH)
        with decide_statistics(classifier, look):
            assert torch.equal(classifier(BATCH), expected)
    assert list(seen) == batchnorm_names(classifier)


def test_everything_is_restored_on_errors_and_nested() -> None:
    classifier = tiny_classifier().train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}

    def fail(name: str, found: LayerStatistics) -> LayerStatistics:
        if name == "network.blocks.1.norm1":
            raise ArithmeticError(name)
        return found

    with pytest.raises(ArithmeticError), use_statistics(classifier, "batch"), decide_statistics(classifier, fail):
        classifier(BATCH)
    assert all(module.training for module in classifier.modules())
    assert not any(module._forward_pre_hooks for module in classifier.modules())
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
