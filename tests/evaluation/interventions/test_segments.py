"""Segments: composed they are the network, and they know where its layers and its work are."""

import numpy as np
import pytest
import torch
from plain_interventions import batchnorm_names, outputs_of, tiny_classifier
from small_evaluation import small_classifier, small_set
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.evaluation.interventions.segments import Segments
from bnood.statistics import BatchNormStatistics, read_statistics, use_statistics

IMAGES = small_set("far", 13, seed=3).images


@pytest.mark.parametrize("first", [0, 1, 4])
@pytest.mark.parametrize(("architecture", "depth", "width"), [("wide_resnet", 10, 1), ("resnet", 20, 2)])
def test_segment_by_segment_is_the_whole_network(architecture: str, depth: int, width: int, first: int) -> None:
    classifier = tiny_classifier(architecture, depth, width)
    segments = Segments(classifier, torch.from_numpy(IMAGES[:1]), chunk=5)
    state = segments.to_device(IMAGES)
    for segment in range(first):
        state = segments.advance(state, segment)
    outputs = segments.finish(state, first)
    logits, features = outputs_of(classifier, IMAGES)
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(outputs.features, features, rtol=1e-5, atol=1e-5)


def test_layers_are_found_in_the_order_of_the_forward_pass_and_shares_are_those_of_the_work() -> None:
    classifier = tiny_classifier()
    segments = Segments(classifier, torch.from_numpy(IMAGES[:1]))
    assert list(segments.layers) == batchnorm_names(classifier)
    # Normalisation, stem, three blocks, the last norm and pooling, head.
    assert [segments.segment_of[name] for name in segments.layers] == [2, 2, 3, 3, 4, 4, 5]
    pixels = 16 * 16
    work = [
        0, 9 * 3 * 16 * pixels, 2 * 9 * 16 * 16 * pixels, (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * pixels / 4,
        (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64) * pixels / 16, 0, 64 * 5,
    ]  # fmt: skip
    np.testing.assert_allclose(segments.shares, np.array(work) / sum(work))


def test_images_are_counted_by_the_share_of_the_network_that_they_pass() -> None:
    segments = Segments(tiny_classifier(), torch.from_numpy(IMAGES[:1]))
    state = segments.to_device(IMAGES)
    assert segments.passed == 0
    segments.finish(state, 0)
    assert segments.passed == pytest.approx(13)
    segments.advance(state, 0)
    assert segments.passed == pytest.approx(13)
    segments.measure(state, range(len(segments)), lambda name, found: found, segments.layers)
    assert (segments.passed, segments.matching) == pytest.approx((26, 13))


def test_given_statistics_and_batches_are_those_of_use_statistics() -> None:
    classifier = tiny_classifier()
    segments = Segments(classifier, torch.from_numpy(IMAGES[:1]))
    name = segments.layers[1]
    other = BatchNormStatistics({name: read_statistics(classifier)[segments.layers[0]]})
    ours = segments.finish(segments.to_device(IMAGES), 0, other)
    with use_statistics(classifier, other), torch.no_grad():
        expected = classifier(torch.from_numpy(IMAGES))
    torch.testing.assert_close(ours.logits, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(expected, outputs_of(classifier, IMAGES)[0], atol=0.1)
    halves = segments.in_batches(segments.to_device(IMAGES[:12]), 6).logits
    for part, batch in zip(halves.split(6), torch.from_numpy(IMAGES[:12]).split(6), strict=True):
        with use_statistics(classifier, "batch"), torch.no_grad():
            torch.testing.assert_close(part, classifier(batch), rtol=1e-5, atol=1e-4)


def test_a_layer_that_runs_twice_and_networks_without_batchnorm_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, images: Tensor, return_features: bool) -> tuple[Tensor, Tensor]:
            features = self.norm(self.norm(images.float().mean(dim=(1, 2))))
            return features, features

    with pytest.raises(UserError, match="layer 'norm' runs 2 times"):
        Segments(Twice(), torch.from_numpy(IMAGES[:1]))
    with pytest.raises(UserError, match="has no BatchNorm layer"):
        Segments(small_classifier("ln"), torch.from_numpy(IMAGES[:1]))
