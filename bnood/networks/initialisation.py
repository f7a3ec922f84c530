"""How the weights of all networks begin."""

from torch import nn

from bnood.networks.hidden_layer import Activation, HiddenLayer
from bnood.networks.norm import Norm


def initialise(network: nn.Module, norm: Norm) -> None:
    """He et al.'s (2015) normal initialisation of all convolutions, by fan-out; biases zero.

    Without norm layers the sums over the shortcuts would grow with depth, so the last convolution of each
    residual branch starts at zero (Zhang et al. 2019, "Fixup", rule 2): every block begins as the identity.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if norm == "none" and name.endswith("conv2"):
                nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_plain(network: nn.Module, activation: Activation) -> None:
    """The classical initialisation of a plain stack of hidden layers, by the activation; all biases zero.

    - ``sigmoid`` and ``tanh``: Glorot & Bengio's (2010, equation 16) uniform one, variance 2 / (fan in + fan out).
      Theirs is the analysis of how sigmoid nets starve: even from here each sigmoid passes on a quarter of the
      gradient at most, so what is seen is the activation's doing and not that of a bad start.
    - ``relu`` and ``gelu``: He et al.'s (2015, equation 10) normal one, variance 2 / fan in.

    PyTorch's own default (uniform, variance 1 / (3 fan in)) lets ReLU nets shrink by a factor of the square root of 6
    per layer: it would starve them too, and be mistaken for the activation. The head, which is linear, is Glorot's.
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
