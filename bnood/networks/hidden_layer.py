"""One layer of a plain network: a linear map, an activation, and a norm before or after it."""

from typing import Literal, get_args

from torch import Tensor, nn

Activation = Literal["sigmoid", "relu", "tanh", "gelu"]
NormPosition = Literal["before", "after"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class HiddenLayer(nn.Module):
    """``activation(norm(linear(x)))``, as in Ioffe & Szegedy 2015, or ``norm(activation(linear(x)))``.

    Args:
        linear: ``nn.Linear`` or ``nn.Conv2d``.
        norm: a layer of :mod:`bnood.networks.norm`.
        activation: by name; never in place, so that its input, the pre-activation, can be recorded.
        norm_position: ``before`` or ``after`` the activation.

    Raises:
        ValueError: for an unknown activation or position.
    """

    linear: nn.Linear | nn.Conv2d

    def __init__(
        self, linear: nn.Linear | nn.Conv2d, norm: nn.Module, activation: Activation, norm_position: NormPosition
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if norm_position not in get_args(NormPosition):
            raise ValueError(f"unknown norm_position {norm_position!r}: choose before or after (the activation)")
        self.linear, self.norm, self.norm_position = linear, norm, norm_position
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, ...]`` in, ``[N, units, ...]`` out."""
        out = self.linear(x)
        if self.norm_position == "before":
            return self.activation(self.norm(out))
        return self.norm(self.activation(out))


def needs_bias(norm: str, norm_position: NormPosition) -> bool:
    """Whether the linear map needs a bias: a norm that directly follows it has one already, its shift."""
    return norm == "none" or norm_position == "after"
