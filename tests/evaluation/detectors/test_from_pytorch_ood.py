"""Every detector of the library against a direct use of the library on the same tensors."""

from collections.abc import Callable

import numpy as np
import pytest
import pytorch_ood.detector as library
import torch
from torch import Tensor, nn

from bnood.evaluation.detectors import NotApplicable, make_detector
from bnood.evaluation.detectors.from_pytorch_ood import LIBRARY
from bnood.networks.network import Head

N, WIDTH, CLASSES = 150, 10, 3
torch.manual_seed(0)
LABELS = torch.arange(N) % CLASSES
CENTRES = torch.randn(CLASSES, WIDTH)
FEATURES = (CENTRES[LABELS] + torch.randn(N, WIDTH)).relu()
HEAD = Head(CENTRES / 2, torch.randn(CLASSES))
LOGITS = FEATURES @ HEAD.weight.T + HEAD.bias
NEW = torch.randn(60, WIDTH).relu() * 2
NEW_LOGITS = NEW @ HEAD.weight.T + HEAD.bias
LAYER = nn.Linear(WIDTH, CLASSES)
LAYER.load_state_dict({"weight": HEAD.weight, "bias": HEAD.bias})
W, B = HEAD


def on_features(detector: library.KNN) -> Tensor:
    return detector.fit_features(FEATURES, LABELS).predict_features(NEW)


def on_logits(detector: library.OpenMax) -> Tensor:
    return detector.fit_logits(LOGITS, LABELS).predict_logits(NEW_LOGITS)


DIRECT: dict[str, Callable[[], Tensor]] = {
    "entropy": lambda: library.Entropy.score(NEW_LOGITS),
    "gen": lambda: library.GEN.score(NEW_LOGITS),
    "klmatching": lambda: on_logits(library.KLMatching(None)),
    "openmax": lambda: on_logits(library.OpenMax(None)),
    "knn": lambda: on_features(library.KNN(None)),
    "mahalanobis": lambda: on_features(library.Mahalanobis(None)),
    "rmd": lambda: on_features(library.RMD(None)),
    "gmm": lambda: on_features(library.GMM(None)),
    "she": lambda: on_features(library.SHE(None, LAYER)),
    "nci": lambda: on_features(library.NCI(None, LAYER)),
    "nnguide": lambda: on_features(library.NNGuide(None, LAYER)),
    "fdbd": lambda: on_features(library.fDBD(None, LAYER)),
    "lts": lambda: library.LTS(None, LAYER).predict_features(NEW),
    "vim": lambda: on_features(library.ViM(None, d=5, w=W, b=B)),
    "dice": lambda: on_features(library.DICE(None, w=W, b=B, p=0.9)),
}


def test_every_detector_of_the_library_is_compared() -> None:
    assert set(DIRECT) == set(LIBRARY)


@pytest.mark.parametrize("name", DIRECT)
def test_scores_are_the_librarys_with_the_sign_turned(name: str) -> None:
    with torch.no_grad():
        direct = DIRECT[name]().double().numpy()
    found = make_detector(name).fit(FEATURES, LOGITS, LABELS, HEAD).score(NEW, NEW_LOGITS)
    np.testing.assert_allclose(found, -direct, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "classes", "width", "setting", "value"),
    [
        *[("vim", 2, 2048, "d", 1000), ("vim", 2, 800, "d", 512), ("vim", 2, 100, "d", 50)],
        *[("dice", 100, 4, "p", 0.9), ("dice", 101, 4, "p", 0.7)],
    ],
)
def test_settings_are_the_papers(name: str, classes: int, width: int, setting: str, value: float) -> None:
    head, features = Head(torch.randn(classes, width), torch.zeros(classes)), torch.rand(8, width)
    detector = make_detector(name).fit(features, features @ head.weight.T, None, head)
    assert getattr(detector._library, setting) == value  # type: ignore[attr-defined]


def test_dice_scores_many_images_of_many_classes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """[N, K, D] at once would take 80 GB for 10,000 ImageNet images; three images at a time give the same."""
    whole = make_detector("dice").fit(FEATURES, LOGITS, LABELS, HEAD).score(NEW, NEW_LOGITS)
    monkeypatch.setattr("bnood.evaluation.detectors.from_pytorch_ood._ELEMENTS", 3 * WIDTH * CLASSES)
    pieces = make_detector("dice").fit(FEATURES, LOGITS, LABELS, HEAD).score(NEW, NEW_LOGITS)
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)


def test_fdbd_refuses_more_classes_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "bnood.evaluation.detectors.from_pytorch_ood._PAIRS_OF_CLASSES"
    monkeypatch.setattr(limit, CLASSES * CLASSES * WIDTH)
    make_detector("fdbd").fit(FEATURES, LOGITS, LABELS, HEAD)
    monkeypatch.setattr(limit, CLASSES * CLASSES * WIDTH - 1)
    with pytest.raises(NotApplicable, match="fdbd compares 3 x 3 classes in 10 features"):
        make_detector("fdbd").fit(FEATURES, LOGITS, LABELS, HEAD)
