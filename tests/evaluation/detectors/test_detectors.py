"""What every registered detector has to do (whoever adds one gets these tests for free), and those of the library."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_ood.detector as library
import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.evaluation.detectors import DETECTORS, Detector, NotApplicable, make_detector
from bnood.evaluation.detectors.from_pytorch_ood import LIBRARY
from bnood.networks.network import Head

CLASSES, WIDTH = 4, 12
ON_FEATURES = [name for name in DETECTORS if make_detector(name).needs == "features"]
CLASS_CONDITIONAL = [name for name in ON_FEATURES if make_detector(name).class_conditional]


def outputs(n: int, seed: int) -> SimpleNamespace:
    """Features around one centre for each class, and the logits of a head whose rows are the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.eye(WIDTH)[:CLASSES] + 0.2  # far from each other, near 0.2 in the other units
    labels = torch.arange(n) % CLASSES
    features = (centres[labels] + 0.4 * torch.randn(n, WIDTH, generator=generator)).relu()
    head = Head(centres.clone(), 0.1 * torch.arange(CLASSES))
    return SimpleNamespace(features=features, labels=labels, head=head, logits=features @ head.weight.T + head.bias)


TRAIN, ID = outputs(200, 1), outputs(100, 2)
TRAIN.labels[:10] = TRAIN.labels[:10].flip(0)  # some are classified wrongly, so that a temperature exists
SPREAD = torch.rand(100, WIDTH, generator=torch.Generator().manual_seed(3))
OOD = [SimpleNamespace(features=x, logits=x @ TRAIN.head.weight.T + TRAIN.head.bias) for x in (SPREAD, 0.05 * SPREAD)]

NEW, NEW_LOGITS = OOD[0].features, OOD[0].logits
FEATURES, LOGITS, LABELS, HEAD = TRAIN.features, TRAIN.logits, TRAIN.labels, TRAIN.head
LAYER = nn.Linear(WIDTH, CLASSES)
LAYER.load_state_dict({"weight": HEAD.weight, "bias": HEAD.bias})
W, B = HEAD


def fitted(name: str, **changes: Any) -> Detector:
    arguments = {"features": TRAIN.features, "logits": TRAIN.logits, "labels": TRAIN.labels, "head": TRAIN.head}
    return make_detector(name).fit(**(arguments | changes))


def test_names_in_the_registry_are_those_of_the_detectors() -> None:
    assert [make_detector(name).name for name in DETECTORS] == list(DETECTORS)
    assert set(["msp", "energy", "max_logit", "react", "temperature", "gaussian", "bats", "nmd"]) < set(DETECTORS)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_scores_are_one_float64_per_image_and_higher_in_distribution(name: str) -> None:
    detector = fitted(name)
    inside, *outside = (detector.score(each.features, each.logits) for each in (ID, *OOD))
    assert inside.shape == (100,) and inside.dtype == np.float64
    # No detector is good at both kinds of images, activations spread over all units and almost no activation.
    assert max((inside[:, None] > each).mean() for each in outside) > 0.9


@pytest.mark.parametrize("name", CLASS_CONDITIONAL)
def test_class_conditional_detectors_need_20_images_of_every_class(name: str) -> None:
    few = outputs(79, 1)  # 20 of every class but the last
    with pytest.raises(NotApplicable, match="not applicable: 19 per class"):
        fitted(name, features=few.features, logits=few.logits, labels=few.labels)
    enough = outputs(80, 1)
    fitted(name, features=enough.features, logits=enough.logits, labels=enough.labels)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_what_is_missing_is_named(name: str) -> None:
    kind = make_detector(name)
    for missing, needed, message in (
        ({"head": None}, kind.needs_head, "last linear layer"),
        ({"labels": None}, kind.needs_labels, "labelled"),
        ({"features": None, "logits": None}, kind.fitted_on == "train", "training images"),
        ({"features": None, "logits": None}, kind.fitted_on == "held_out", "ID images held out"),
    ):
        if needed:
            with pytest.raises(UserError, match=f"'{name}'.*{message}"):
                fitted(name, **missing)
        elif "features" not in missing:
            fitted(name, **missing)
    if kind.fitted_on != "nothing":
        with pytest.raises(UserError, match=f"'{name}' has to be fitted"):
            make_detector(name).score(ID.features, ID.logits)


def test_features_that_are_none_or_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="'dice' needs features without NaN"):
        fitted("dice", features=TRAIN.features * torch.nan)
    with pytest.raises(NotApplicable, match="there are no features"):
        fitted("knn", features=torch.ones(200, 0))


def test_what_the_library_cannot_fit_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match=r"not applicable: knn: k=50 exceeds"):
        fitted("knn", features=TRAIN.features[:30], logits=TRAIN.logits[:30], labels=None)
    most = TRAIN.features.shape[1] // 2
    with pytest.raises(NotApplicable, match=f"vim needs more than {most} fitting images, and has {most}"):
        fitted("vim", features=TRAIN.features[:most], logits=TRAIN.logits[:most], labels=None)


@pytest.mark.parametrize("name", [*LIBRARY, "gaussian"])
def test_without_the_library_the_pip_command_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pytorch_ood.detector", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, module, None)  # what Python takes for a module that cannot be imported
    with pytest.raises(UserError, match=r"pip install 'bnood\[detectors\]'") as raised:
        make_detector(name)
    assert f"'{name}'" in str(raised.value) and "\n" not in str(raised.value)


def on_features(detector: library.KNN) -> Tensor:
    return detector.fit_features(FEATURES, LABELS).predict_features(NEW)


def on_logits(detector: library.OpenMax) -> Tensor:
    return detector.fit_logits(LOGITS, LABELS).predict_logits(NEW_LOGITS)


DIRECT: dict[str, Callable[[], Tensor]] = {
    "entropy": lambda: library.Entropy.score(NEW_LOGITS), "gen": lambda: library.GEN.score(NEW_LOGITS),
    "klmatching": lambda: on_logits(library.KLMatching(None)), "openmax": lambda: on_logits(library.OpenMax(None)),
    "knn": lambda: on_features(library.KNN(None)), "mahalanobis": lambda: on_features(library.Mahalanobis(None)),
    "rmd": lambda: on_features(library.RMD(None)), "she": lambda: on_features(library.SHE(None, LAYER)),
    "nci": lambda: on_features(library.NCI(None, LAYER)), "nnguide": lambda: on_features(library.NNGuide(None, LAYER)),
    "fdbd": lambda: on_features(library.fDBD(None, LAYER)),
    "vim": lambda: on_features(library.ViM(None, d=6, w=W, b=B)),
    "dice": lambda: on_features(library.DICE(None, w=W, b=B, p=0.9)),
}  # fmt: skip


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
    head, features = Head(torch.randn(classes, width), torch.zeros(classes)), torch.rand(8 + int(value), width)
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
    with pytest.raises(NotApplicable, match="fdbd compares 4 x 4 classes in 12 features"):
        make_detector("fdbd").fit(FEATURES, LOGITS, LABELS, HEAD)
