"""One layer of a plain network: a linear map, its norm before or after the activation, the activation."""

from typing import Literal, get_args

from torch import Tensor, nn

Activation = Literal["sigmoid", "relu", "tanh", "gelu"]
NormPosition = Literal["before", "after"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class HiddenLayer(nn.Module):
    """``activation(norm(linear(x)))``, or ``norm(activation(linear(x)))`` with the norm after the activation.

    The input of the activation is never overwritten, so it can be recorded: it is the norm's output if the norm comes
    before it (as Ioffe & Szegedy 2015 put it), otherwise the linear map's.

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
    """Whether the linear map needs a bias of its own: the shift of a norm right behind it is one already."""
    return norm == "none" or norm_position == "after"


def initialise_plain(network: nn.Module, activation: Activation) -> None:
    """The classical initialisation of a plain stack of hidden layers, by the activation; all biases zero.

    - ``sigmoid`` and ``tanh``: Glorot & Bengio's (2010, equation 16) uniform one, variance 2 / (fan in + fan out).
      Even from here each sigmoid passes on a quarter of the gradient at most, so vanishing gradients are the
      activation's doing and not that of a bad start.
    - ``relu`` and ``gelu``: He et al.'s (2015, equation 10) normal one, variance 2 / fan in.

    PyTorch's own default (uniform, variance 1 / (3 fan in)) lets ReLU nets shrink by a factor of the square root of 6
    per layer, which would be mistaken for the activation. The head, which is linear, is Glorot's.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):  # the head; those of hidden layers follow
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if activation in ("relu", "gelu"):
        for layer in network.modules():
            if isinstance(layer, HiddenLayer):
                nn.init.kaiming_normal_(layer.linear.weight, nonlinearity="relu")
