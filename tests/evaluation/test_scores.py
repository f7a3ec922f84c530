"""Scores against SciPy and PyTorch, by property, and for what a user can get wrong."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bnood.errors import UserError
from bnood.evaluation.scores import SCORES, energy, max_logit, msp

shapes = array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=7)
finite_logits = arrays(np.float64, shapes, elements=st.floats(-500, 500))


@settings(deadline=None)
@given(finite_logits)
def test_scores_equal_scipys(logits: np.ndarray) -> None:
    np.testing.assert_allclose(msp(logits), scipy.special.softmax(logits, axis=1).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(energy(logits), scipy.special.logsumexp(logits, axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(max_logit(logits), logits.max(axis=1))


@settings(deadline=None)
@given(finite_logits, st.floats(0.1, 100))
def test_energy_lies_between_the_max_logit_and_its_bound_at_any_temperature(logits: np.ndarray, t: float) -> None:
    score, largest = energy(logits, temperature=t), max_logit(logits)
    assert (score >= largest - 1e-9).all() and (score <= largest + t * np.log(logits.shape[1]) + 1e-9).all()
    np.testing.assert_allclose(score, t * scipy.special.logsumexp(logits / t, axis=1), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_give_float64_tensors_computed_in_float64(name: str, dtype: torch.dtype) -> None:
    logits = (torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    scores = SCORES[name](logits)
    assert scores.dtype == torch.float64 and scores.shape == (40,) and SCORES[name](logits[:0]).shape == (0,)
    np.testing.assert_array_equal(scores.numpy(), SCORES[name](logits.double().numpy()))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, np.int64])
def test_arrays_give_float64_arrays_and_are_left_as_they_were(name: str, dtype: type) -> None:
    logits: np.ndarray = np.arange(12).reshape(4, 3).astype(dtype)
    logits.flags.writeable = False
    scores = SCORES[name](logits)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float64 and scores.shape == (4,)
    np.testing.assert_array_equal(logits, np.arange(12).reshape(4, 3))


def test_float32_softmax_ties_images_that_msp_keeps_apart() -> None:
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0], [30.0, 0.0]])
    assert logits.softmax(dim=1).amax(dim=1).tolist() == [1.0, 1.0, 1.0]
    first, second, third = msp(logits)
    assert first < second < third < 1


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_counted_and_the_first_is_named(name: str, value: float) -> None:
    logits = torch.zeros(9, 4)
    logits[3, 1] = logits[7, 0] = logits[7, 2] = value
    for given_logits in (logits, logits.numpy()):
        with pytest.raises(UserError, match=r"2 of 9 images \(first: image 3\)"):
            SCORES[name](given_logits)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(5), r"\[N, K\].*not \[5\]"),
        (torch.zeros(2, 3, 4), r"not \[2, 3, 4\]"),
        (np.zeros((5, 1)), r"K >= 2 classes, not \[5, 1\]"),
        (np.zeros((5, 2), complex), "complex128"),
        (torch.zeros(5, 2, dtype=torch.bool), "bool"),
        ([[1.0, 2.0]], "list"),
    ],
)
def test_what_is_no_table_of_logits_is_refused(logits: object, message: str) -> None:
    for score in SCORES.values():
        with pytest.raises(UserError, match=message):
            score(logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_has_to_be_positive_and_finite(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        energy(torch.zeros(2, 2), temperature)
