"""Initial weights of the project's own networks."""

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
    """The initialisation that suits the activation of a plain stack of hidden layers; all biases zero.

    - ``sigmoid`` and ``tanh``: uniform, variance 2 / (fan in + fan out) (Glorot & Bengio 2010, equation 16).
    - ``relu`` and ``gelu``: normal, variance 2 / fan in (He et al. 2015, equation 10).

    PyTorch's default (uniform, variance 1 / (3 fan in)) shrinks the signals of ReLU networks by sqrt(6) per layer,
    which could be mistaken for an effect of the activation. The head is linear, so it gets Glorot's.
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
