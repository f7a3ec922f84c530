"""What every registered detector has to do; whoever adds one gets these tests for free."""

import builtins
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bnood.errors import UserError
from bnood.evaluation.detectors import DETECTORS, Detector, NotApplicable, make_detector
from bnood.evaluation.detectors.distances import NeuralMeanDiscrepancy
from bnood.evaluation.detectors.from_pytorch_ood import LIBRARY
from bnood.networks.outputs import Head
from bnood.statistics import BatchNormStatistics, LayerStatistics

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
    wanted = (
        "msp energy max_logit react temperature entropy gen knn mahalanobis rmd vim she dice nnguide fdbd klmatching"
    )
    assert set(wanted.split()) | {"openmax", "nci", "lts", "gmm", "gaussian", "bats", "nmd"} <= set(DETECTORS)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_scores_are_one_float64_per_image_and_higher_in_distribution(name: str) -> None:
    detector = fitted(name)
    inside, *outside = (detector.score(each.features, each.logits) for each in (ID, *OOD))
    assert inside.shape == (100,) and inside.dtype == np.float64
    # No detector is good at both kinds of images, activations spread over all units and almost no activation.
    assert max((inside[:, None] > each).mean() for each in outside) > 0.9


@pytest.mark.parametrize("name", ON_FEATURES)
def test_scores_do_not_depend_on_the_batch_cut(name: str) -> None:
    detector = fitted(name)
    cut = np.concatenate([detector.score(ID.features[part], ID.logits[part]) for part in (slice(7), slice(7, None))])
    np.testing.assert_allclose(cut, detector.score(ID.features, ID.logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_fitting_twice_or_pickling_changes_nothing_and_inputs_stay_as_they_were(name: str) -> None:
    before = [each.clone() for each in (TRAIN.features, TRAIN.logits, TRAIN.head.weight)]
    first = fitted(name)
    scores = first.score(ID.features, ID.logits)
    np.testing.assert_array_equal(scores, fitted(name).score(ID.features, ID.logits))
    np.testing.assert_array_equal(scores, pickle.loads(pickle.dumps(first)).score(ID.features, ID.logits))
    assert all(map(torch.equal, before, (TRAIN.features, TRAIN.logits, TRAIN.head.weight)))


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
        ({"labels": None}, kind.needs_labels, "labels"),
        ({"features": None, "logits": None}, kind.fitted_on == "train", "training images"),
        ({"features": None, "logits": None}, kind.fitted_on == "held_out", "held-out"),
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
        ({"head": Head(torch.ones(4, 5), torch.ones(4))}, r"\[4, 5\].*\[4, 12\]"),
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


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="unknown detector 'mahalanobi'; did you mean mahalanobis"):
        make_detector("mahalanobi")
    with pytest.raises(UserError, match="unknown detector 'zzz'; there are: msp"):
        make_detector("zzz")


@pytest.mark.parametrize("name", [*LIBRARY, "gaussian"])
def test_without_the_library_the_pip_command_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith(("pytorch_ood", "sklearn"))]:
        monkeypatch.delitem(sys.modules, module)
    whole = builtins.__import__

    def without(wanted: str, *rest: Any, **named: Any) -> Any:
        if wanted.startswith(("pytorch_ood", "sklearn")):
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
        return whole(wanted, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(UserError, match=r"pip install 'bnood\[detectors\]'") as raised:
        make_detector(name)
    assert f"'{name}'" in str(raised.value) and "\n" not in str(raised.value)


def running(**layers: tuple[list[float], list[float]]) -> BatchNormStatistics:
    return BatchNormStatistics(
        {
            name: LayerStatistics(torch.tensor(mean).double(), torch.tensor(var).double(), 1)
            for name, (mean, var) in layers.items()
        }
    )


def test_neural_mean_discrepancy_by_hand() -> None:
    reference = running(a=([1.0, 0.0], [4.0, 1.0]), b=([2.0], [0.25]))
    means: dict[str, Tensor] = {"a": torch.tensor([[1.0, 0.0], [3.0, 2.0]]), "b": torch.tensor([[2.0], [3.0]])}
    # Discrepancies of the second image: 2, 2, 1; divided by the standard deviations 2, 1, 0.5: 1, 2, 2.
    found = NeuralMeanDiscrepancy().fit(reference).score(means)
    np.testing.assert_allclose(found, [0, -np.sqrt(9 / 3)], rtol=1e-6)
    assert found.dtype == np.float64


def test_neural_mean_discrepancy_refuses_what_it_cannot_compare() -> None:
    fitted_nmd = NeuralMeanDiscrepancy().fit(running(a=([0.0], [1.0])))
    for detector, means, message in (
        (NeuralMeanDiscrepancy(), {"a": torch.ones(2, 1)}, "has to be fitted"),
        (fitted_nmd, {"b": torch.ones(2, 1)}, "'b' keeps no running statistics"),
        (fitted_nmd, {}, "at least one"),
    ):
        with pytest.raises(UserError, match=message):
            detector.score(means)
