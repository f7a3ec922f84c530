"""A multilayer perceptron: equal hidden layers on the flattened image, without shortcuts."""

from torch import Tensor, nn

from bnood.networks.hidden_layer import Activation, HiddenLayer, NormPosition, initialise_plain, needs_bias
from bnood.networks.norm import Norm, norm_layer


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units and a linear head; arguments as :func:`bnood.networks.build_model`.

    Raises:
        ValueError: for groups that do not divide the width, or an unknown name.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 128,
        norm: Norm = "bn",
        groups: int = 8,
        num_classes: int = 10,
        activation: Activation = "relu",
        norm_position: NormPosition = "before",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        bias, layers = needs_bias(norm, norm_position), []
        for inputs in [3 * image_size**2, *[width] * (depth - 1)]:
            linear = nn.Linear(inputs, width, bias=bias)
            layers.append(HiddenLayer(linear, norm_layer(norm, width, groups, units=True), activation, norm_position))
        self.layers = nn.Sequential(*layers)
        self.num_features = width
        self.head = nn.Linear(width, num_classes)
        initialise_plain(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, S, S]`` -> logits ``[N, K]``."""
        return self.head(self.layers(x.flatten(1)))
