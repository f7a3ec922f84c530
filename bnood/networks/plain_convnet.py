"""A deep ConvNet without shortcuts: gradients have no way round its layers."""

from torch import Tensor, nn

from bnood.networks.hidden_layer import Activation, HiddenLayer, NormPosition, initialise_plain, needs_bias
from bnood.networks.norm import Norm, norm_layer


class PlainConvNet(nn.Module):
    """``depth`` 3 x 3 convolutions of ``width`` channels each, two of them with stride 2; pixels' mean; linear head.

    The image is halved by the layers a third and two thirds of the way in. The channels stay the same, unlike a
    ResNet's, so that gradients and units of all layers but the first can be compared. Arguments as
    :func:`bnood.networks.build_model`.

    Raises:
        ValueError: for fewer than 3 layers, groups that do not divide the width, or an unknown name.
    """

    def __init__(
        self,
        depth: int = 10,
        width: int = 16,
        norm: Norm = "bn",
        groups: int = 8,
        num_classes: int = 10,
        activation: Activation = "relu",
        norm_position: NormPosition = "before",
    ) -> None:
        super().__init__()
        if depth < 3:
            raise ValueError(f"a plain ConvNet has 3 layers or more, one third at each resolution, not {depth}")
        bias, halving = needs_bias(norm, norm_position), (depth // 3, 2 * depth // 3)
        layers = []
        for position in range(depth):
            inputs, stride = (3 if position == 0 else width), (2 if position in halving else 1)
            linear = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=bias)
            layers.append(HiddenLayer(linear, norm_layer(norm, width, groups), activation, norm_position))
        self.layers = nn.Sequential(*layers)
        self.num_features = width
        self.head = nn.Linear(width, num_classes)
        initialise_plain(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, K]``."""
        return self.head(self.layers(x).mean(dim=(2, 3)))
