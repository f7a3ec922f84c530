"""How the weights of all networks begin."""

from torch import nn

from bnood.models.norm import Norm


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
