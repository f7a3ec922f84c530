"""A multilayer perceptron: equal hidden layers on the flattened image, nothing to help the gradient along."""

from torch import Tensor, nn

from bnood.networks.hidden_layer import Activation, HiddenLayer, NormPosition, needs_bias
from bnood.networks.initialisation import initialise_plain
from bnood.networks.norm import Norm, unit_norm_layer


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units and a linear head.

    Args:
        depth: hidden layers.
        width: units of each.
        norm: ``bn``, ``ln``, ``gn`` or ``none`` (:func:`bnood.networks.norm.unit_norm_layer`).
        groups: groups of ``gn``; has to divide ``width``.
        num_classes: K, the number of logits.
        activation: ``sigmoid``, ``relu``, ``tanh`` or ``gelu``; decides the initialisation too
            (:func:`bnood.networks.initialisation.initialise_plain`).
        norm_position: ``before`` or ``after`` the activation.
        image_size: side of the square RGB images.

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
        bias, sizes = needs_bias(norm, norm_position), [3 * image_size**2] + [width] * depth
        self.layers = nn.Sequential(
            *(
                HiddenLayer(
                    nn.Linear(inputs, width, bias=bias),
                    unit_norm_layer(norm, width, groups),
                    activation,
                    norm_position,
                )
                for inputs in sizes[:-1]
            )
        )
        self.num_features = width
        self.head = nn.Linear(width, num_classes)
        initialise_plain(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, S, S]`` -> logits ``[N, K]``."""
        return self.head(self.layers(x.flatten(1)))
