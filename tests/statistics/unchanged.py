"""Proof that a model is what it was: every flag, attribute and hook of every module, every tensor bit for bit."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def summary(tensor: Tensor) -> tuple[Any, ...]:
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor._version, zlib.crc32(bits)


def photograph(model: nn.Module) -> dict[str, Any]:
    """Everything about every module that must not change; buffers and parameters by identity and by value."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_buffers", "_parameters"):
                state[f"{name}:{key}"] = [(k, id(v), None if v is None else summary(v)) for k, v in value.items()]
            elif isinstance(value, dict):
                state[f"{name}:{key}"] = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, (bool, int, float, str, tuple, type(None))):
                state[f"{name}:{key}"] = value
    state["state_dict"] = [(key, value.data_ptr()) for key, value in model.state_dict().items()]
    return state


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = photograph(model)
    yield
    assert photograph(model) == before
