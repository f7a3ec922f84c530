"""Wide residual networks (Zagoruyko & Komodakis 2016): pre-activation blocks, three stages, 16 k channels up.

WideResNet-40-2 (depth 40, widening factor 2) is the network of the energy score's and Outlier Exposure's CIFAR
tables.
"""

import torch
from torch import Tensor, nn

from bnood.networks.initialisation import initialise
from bnood.networks.norm import Norm, norm_layer


class PreActivationBlock(nn.Module):
    """norm, ReLU, 3 x 3 convolution, twice; the shortcut branches off after the first ReLU where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        pre = torch.relu(self.norm1(x))
        out = self.conv2(torch.relu(self.norm2(self.conv1(pre))))
        return out + (x if self.shortcut is None else self.shortcut(pre))


class WideResNet(nn.Module):
    """A wide residual network.

    Args:
        depth: 6 n + 4 convolutional layers (16, 22, 28, 40, ...).
        width: widening factor k: the stages have 16 k, 32 k and 64 k channels.
        norm: ``bn``, ``ln``, ``gn`` or ``none`` (:mod:`bnood.networks.norm`).
        groups: groups of ``gn``; has to divide 16, the stem's channels.
        num_classes: K, the number of logits.

    Raises:
        ValueError: for a depth that is not 6 n + 4, or groups that do not divide the channels.
    """

    def __init__(
        self, depth: int = 40, width: int = 2, norm: Norm = "bn", groups: int = 8, num_classes: int = 10
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a WideResNet has 6 n + 4 layers (10, 16, 22, 28, 34, 40, ...), not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=norm == "none")
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for position in range((depth - 4) // 6):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(PreActivationBlock(inputs, outputs, stride, norm, groups))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm_layer(norm, inputs, groups)
        self.num_features = inputs
        self.head = nn.Linear(inputs, num_classes)
        initialise(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, K]``."""
        x = torch.relu(self.norm(self.blocks(self.conv1(x))))
        return self.head(x.mean(dim=(2, 3)))
