"""What every registered detector has to do; whoever adds one gets these tests for free."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

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


def fitted(name: str, **changes: Any) -> Detector:
    arguments = {"features": TRAIN.features, "logits": TRAIN.logits, "labels": TRAIN.labels, "head": TRAIN.head}
    return make_detector(name).fit(**(arguments | changes))


def test_names_in_the_registry_are_those_of_the_detectors() -> None:
    assert [make_detector(name).name for name in DETECTORS] == list(DETECTORS)
    wanted = "msp energy max_logit react temperature gaussian bats nmd"
    assert set(wanted.split()) < set(DETECTORS)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.arange(200)}, "label from 0 to 3"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "each of 200 images"),
        ({"logits": TRAIN.logits[:5]}, r"\[200, 12\] and \[5, 4\]"),
        ({"head": Head(torch.ones(4, 5), torch.ones(4))}, r"\[4, 12\], not \[4, 5\]"),
        ({"features": TRAIN.features * torch.nan}, "NaN"),
        ({"features": torch.ones(200, 0), "head": None}, "not applicable"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    name = "knn" if changes.get("head", 0) is None else "dice"
    with pytest.raises(UserError, match=message):
        fitted(name, **changes)


def test_what_the_library_cannot_fit_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match=r"not applicable: knn: k=50 exceeds"):
        fitted("knn", features=TRAIN.features[:30], logits=TRAIN.logits[:30], labels=None)


@pytest.mark.parametrize("name", [*LIBRARY, "gaussian"])
def test_without_the_library_the_pip_command_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pytorch_ood.detector", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, module, None)  # what Python takes for a module that cannot be imported
    with pytest.raises(UserError, match=r"pip install 'bnood\[detectors\]'") as raised:
        make_detector(name)
    assert f"'{name}'" in str(raised.value) and "\n" not in str(raised.value)
