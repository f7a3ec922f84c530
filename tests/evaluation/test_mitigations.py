"""ReAct and temperature: by hand on a net of two units, and against SciPy's minimiser."""

import doctest

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.special import log_softmax, logsumexp, softmax
from torch import nn

import bnood.evaluation.mitigations
from bnood.errors import UserError
from bnood.evaluation.mitigations import Mitigations, clipped_logits, fit_temperature, react_threshold

RNG = np.random.default_rng(0)


def labelled(scale: float, n: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a stated sharpness whose labels are drawn from the softmax of the logits at sharpness 1."""
    logits = RNG.normal(0, 2, (n, classes))
    labels = np.array([RNG.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return (scale * logits).astype(np.float32), labels


def test_react_by_hand_on_two_units() -> None:
    """Activations 1 .. 10, pooled over images and units: the 90th percentile is 9.1, and only the 10 is above."""
    features = np.arange(1.0, 11.0).reshape(5, 2)
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.5, -1.0]]))
        head.bias.copy_(torch.tensor([0.25, 0.0]))
    logits = head(torch.from_numpy(features).float())
    fitted = Mitigations.fit(head, torch.from_numpy(features), logits, np.array([0, 0, 0, 0, 0]))
    assert fitted.fitted.threshold == pytest.approx(9.1)
    unseen = torch.tensor([[20.0, 3.0], [2.0, 50.0]])
    found = fitted.scores(head(unseen).detach(), unseen)["react"]
    # min([20, 3], 9.1) = [9.1, 3] -> logits 9.35 and 1.55; [2, 9.1] -> 2.25 and -8.1.
    assert found == pytest.approx([np.log(np.exp(9.35) + np.exp(1.55)), np.log(np.exp(2.25) + np.exp(-8.1))])
    assert found.dtype == np.float64


def test_clipping_at_the_maximum_is_the_energy_score() -> None:
    features, weight, bias = RNG.gamma(1, 1, (50, 7)), RNG.normal(size=(4, 7)), RNG.normal(size=4)
    threshold = react_threshold(features, 100)
    assert threshold == features.max()
    np.testing.assert_allclose(clipped_logits(features, threshold, weight, bias), features @ weight.T + bias)


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_the_temperature_is_scipys_and_undoes_the_scale(scale: float) -> None:
    logits, labels = labelled(scale)

    def likelihood(temperature: float) -> float:
        return float(-log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(400), labels].mean())

    grid = np.geomspace(0.02, 50, 400)
    best = grid[np.argmin([likelihood(each) for each in grid])]
    oracle = scipy.optimize.minimize_scalar(
        likelihood, bounds=(0.9 * best, 1.1 * best), method="bounded", options={"xatol": 1e-10}
    )
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(oracle.x, rel=1e-5)
    assert found == pytest.approx(scale, rel=0.25)


def test_a_network_that_is_always_right_or_always_wrong_ends_at_a_bound() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.01)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(100)


def test_the_temperature_changes_confidence_by_its_definition_and_no_prediction() -> None:
    logits, labels = labelled(4.0)
    head = nn.Linear(3, 5)
    features = torch.rand(400, 3)
    fitted = Mitigations.fit(head, features, torch.from_numpy(logits), labels)
    found = fitted.scores(torch.from_numpy(logits), features)
    assert tuple(found) == ("react", "msp_temperature")
    cooled = softmax(logits.astype(np.float64) / fitted.fitted.temperature, axis=1)
    np.testing.assert_allclose(found["msp_temperature"], cooled.max(axis=1), rtol=1e-12)
    assert found["msp_temperature"].mean() < softmax(logits, axis=1).max(axis=1).mean()
    clipped = np.minimum(features.numpy().astype(float), np.percentile(features.numpy().astype(float), 90))
    weight, bias = (each.detach().double().numpy() for each in (head.weight, head.bias))
    np.testing.assert_allclose(found["react"], logsumexp(clipped @ weight.T + bias, axis=1), rtol=1e-12)
    assert fitted.record() == {
        "percentile": 90.0,
        "threshold": fitted.fitted.threshold,
        "temperature": fitted.fitted.temperature,
        "tuning_images": 400,
    }


def test_a_head_without_a_bias_is_taken_as_it_is() -> None:
    head = nn.Linear(2, 2, bias=False)
    fitted = Mitigations.fit(head, torch.ones(3, 2), head(torch.ones(3, 2)), np.array([0, 1, 1]))
    assert fitted.bias.tolist() == [0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_a_gpu_is_fitted_too() -> None:
    head, features = nn.Linear(3, 5).cuda(), torch.rand(20, 3).cuda()
    fitted = Mitigations.fit(head, features, head(features), np.arange(20) % 5)
    assert fitted.scores(head(features).cpu(), features.cpu())["react"].shape == (20,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: react_threshold(np.ones((2, 2)), 0), "not 0"),
        (lambda: react_threshold(np.ones((2, 2)), 101), "not 101"),
        (lambda: react_threshold(np.ones((0, 2))), r"\[0, 2\]"),
        (lambda: react_threshold(np.full((1, 1), np.nan)), "without NaN"),
        (lambda: fit_temperature(np.zeros((2, 3)), np.array([0, 3])), "0 to 2"),
        (lambda: fit_temperature(np.zeros((2, 3)), np.array([0])), "each of 2 images"),
        (lambda: fit_temperature(np.full((2, 3), np.inf), np.array([0, 1])), "infinite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_examples_in_the_docstrings() -> None:
    result = doctest.testmod(bnood.evaluation.mitigations)
    assert result.attempted >= 2 and result.failed == 0
