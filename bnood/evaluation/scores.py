"""From logits ``[N, K]`` to one score per image ``[N]`` float64; **higher = more in-distribution**, for every score.

In float64: a float32 softmax rounds to exactly 1.0 where the largest logit leads by 17, and these ties move FPR95.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bnood.errors import UserError

# Tensor in, tensor out (on the same device); array in, array out.
Logits = TypeVar("Logits", Tensor, np.ndarray)


def msp(logits: Logits) -> Logits:
    """Maximum softmax probability of each image (Hendrycks & Gimpel 2017): ``[N, K]`` logits -> ``[N]`` float64.

    >>> msp(np.array([[0.0, 0.0], [np.log(9.0), 0.0]])).round(12).tolist()
    [0.5, 0.9]
    """
    checked = checked_logits(logits)
    # The largest logit's own term of the softmax is exp(0) = 1.
    return _like(logits, (checked - checked.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal())


def energy(logits: Logits, temperature: float = 1.0) -> Logits:
    """Minus the free energy of each image (Liu et al. 2020, equation 4): ``T * logsumexp(logits / T)``.

    >>> energy(np.array([[0.0, 0.0], [5.0, -100.0]])).round(4).tolist()
    [0.6931, 5.0]
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"the energy score's temperature has to be a positive number, not {temperature}")
    return _like(logits, temperature * torch.logsumexp(checked_logits(logits) / temperature, dim=1))


def max_logit(logits: Logits) -> Logits:
    """Largest logit of each image (Hendrycks et al. 2022): ``[N, K]`` logits -> ``[N]`` float64."""
    return _like(logits, checked_logits(logits).amax(dim=1))


SCORES: dict[str, Callable[[Any], Any]] = {"msp": msp, "energy": energy, "max_logit": max_logit}


def checked_logits(logits: Tensor | np.ndarray) -> Tensor:
    """The logits as a float64 tensor ``[N, K]`` on their device; they have to be real, finite, of K >= 2 classes."""
    if not isinstance(logits, Tensor | np.ndarray):
        raise UserError(f"logits have to be a tensor or an array of shape [N, K], not {type(logits).__name__}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UserError(f"logits have to be of shape [N, K] with K >= 2 classes, not {list(logits.shape)}")
    kind = logits.dtype.kind if isinstance(logits, np.ndarray) else ""
    if kind not in ("", *"fiu") or logits.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise UserError(f"logits have to be real numbers, not of type {logits.dtype}")
    checked = torch.from_numpy(logits.astype(np.float64)) if isinstance(logits, np.ndarray) else logits.double()
    broken = ~checked.isfinite().all(dim=1)
    if broken.any():
        which = f"{int(broken.sum())} of {len(checked)} images (first: image {int(broken.nonzero()[0])})"
        raise UserError(f"logits are NaN or infinite for {which}; they have to be finite: has the training diverged?")
    return checked


def _like(logits: Logits, scores: Tensor) -> Logits:
    return scores.numpy() if isinstance(logits, np.ndarray) else scores
