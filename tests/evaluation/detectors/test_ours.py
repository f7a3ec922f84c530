"""Our own detectors: by hand on a net of two units, against SciPy's minimiser and scikit-learn."""

import numpy as np
import pytest
import scipy.optimize
import sklearn.covariance
import torch
from scipy.special import log_softmax, logsumexp, softmax

from bnood.evaluation.detectors.ours import BATSFeatures, Gaussian, ReAct, Temperature, fit_temperature
from bnood.networks.network import Head

RNG = np.random.default_rng(0)


def labelled(scale: float, n: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a stated sharpness whose labels are drawn from the softmax of the logits at sharpness 1."""
    logits = RNG.normal(0, 2, (n, classes))
    labels = np.array([RNG.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return (scale * logits).astype(np.float32), labels


def test_react_by_hand_on_two_units() -> None:
    """Activations 1 .. 10, pooled over images and units: the 90th percentile is 9.1, and only the 10 is above."""
    features = torch.arange(1.0, 11.0).reshape(5, 2)
    head = Head(torch.tensor([[1.0, 0.0], [0.5, -1.0]]), torch.tensor([0.25, 0.0]))
    detector = ReAct().fit(features, features @ head.weight.T + head.bias, None, head)
    assert detector.record() == {"percentile": 90.0, "threshold": pytest.approx(9.1)}
    found = detector.score(torch.tensor([[20.0, 3.0], [2.0, 50.0]]), torch.zeros(2, 2))
    # min([20, 3], 9.1) = [9.1, 3] -> logits 9.35 and 1.55; [2, 9.1] -> 2.25 and -8.1.
    assert found == pytest.approx([np.log(np.exp(9.35) + np.exp(1.55)), np.log(np.exp(2.25) + np.exp(-8.1))])
    assert found.dtype == np.float64


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


def test_scores_of_temperature_and_bats_on_features_are_their_definitions() -> None:
    logits, labels = labelled(4.0)
    head, features = Head(torch.randn(5, 3), torch.randn(5)), torch.rand(400, 3)
    given = (features, torch.from_numpy(logits), labels, head)
    temperature = Temperature().fit(*given)
    cooled = softmax(logits.astype(np.float64) / temperature.record()["temperature"], axis=1).max(axis=1)
    np.testing.assert_allclose(temperature.score(*given[:2]), cooled, rtol=1e-12)
    assert cooled.mean() < softmax(logits, axis=1).max(axis=1).mean()
    normal, wide = features.double().numpy(), torch.randn(9, 3) * 4
    low, high = (normal.mean(axis=0) + side * 3.25 * normal.std(axis=0) for side in (-1, 1))
    clipped = np.clip(wide.double().numpy(), low, high)
    found = BATSFeatures().fit(*given).score(wide, torch.zeros(9, 5))
    expected = logsumexp(clipped @ head.weight.double().numpy().T + head.bias.double().numpy(), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gaussian_is_scikit_learns_shrunk_mahalanobis_distance() -> None:
    features, new, logits = torch.rand(150, 10), torch.randn(60, 10), torch.zeros(150, 2)
    oracle = sklearn.covariance.LedoitWolf().fit(features.double().numpy())
    found = Gaussian().fit(features, logits).score(new, logits[:60])
    np.testing.assert_allclose(found, -oracle.mahalanobis(new.double().numpy()), rtol=1e-9)
    few = torch.randn(20, 50)  # fewer images than features
    assert np.isfinite(Gaussian().fit(few, logits[:20]).score(few, logits[:20])).all()
