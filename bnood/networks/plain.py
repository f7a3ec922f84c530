"""Plain networks for small images: an MLP and a deep ConvNet, whose gradients have no shortcut round a layer."""

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.norm import Norm, norm_layer

Activation = Literal["sigmoid", "relu", "tanh", "gelu"]
NormPosition = Literal["before", "after"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class HiddenLayer(nn.Module):
    """``activation(norm(linear(x)))`` (Ioffe & Szegedy 2015), or with the norm ``after``: ``norm(activation(..))``."""

    def __init__(self, linear: Any, norm: nn.Module, activation: Activation, norm_position: NormPosition) -> None:
        super().__init__()
        self.linear, self.norm, self.norm_position = linear, norm, norm_position
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.norm, self.activation) if self.norm_position == "before" else (self.activation, self.norm)
        return second(first(self.linear(x)))


class PlainNetwork(nn.Module):
    """``depth`` hidden layers and a linear head; arguments as :func:`bnood.networks.image_classifier.build_model`.

    ``convolutions`` of 3 x 3 pixels halve the image after a third and two thirds of the layers; their channels stay the
    same, so that layers can be compared. Without them it is an MLP on the flattened image.

    ``sigmoid``, ``tanh`` and the head begin as Glorot & Bengio (2010, equation 16) say; ``relu`` and ``gelu`` as He et
    al. (2015, equation 10).
    """

    def __init__(
        self,
        convolutions: bool,
        depth: int,
        width: int,
        norm: Norm = "bn",
        groups: int = 8,
        num_classes: int = 10,
        activation: Activation = "relu",
        norm_position: NormPosition = "before",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if convolutions and depth < 3:
            raise UserError(f"a plain ConvNet has 3 layers or more, one third at each resolution, not {depth}")
        bias = norm == "none" or norm_position == "after"  # else the norm's shift is one
        layers, inputs = [], 3 if convolutions else 3 * image_size**2
        for position in range(depth):
            stride = 2 if position in (depth // 3, 2 * depth // 3) else 1
            convolution = partial(nn.Conv2d, kernel_size=3, stride=stride, padding=1)
            linear = (convolution if convolutions else nn.Linear)(inputs, width, bias=bias)
            own_norm, inputs = norm_layer(norm, width, groups, units=not convolutions), width
            layers.append(HiddenLayer(linear, own_norm, activation, norm_position))
        self.convolutions, self.layers = convolutions, nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)
        for linear in [*(layer.linear for layer in layers), self.head]:
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if activation in ("relu", "gelu"):
            for layer in layers:
                nn.init.kaiming_normal_(layer.linear.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(dim=(2, 3)) if self.convolutions else self.layers(x.flatten(1)))


MLP = partial(PlainNetwork, False)
PlainConvNet = partial(PlainNetwork, True)
