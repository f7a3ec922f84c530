"""Residual networks for small images: ResNet and WideResNet behind a stem that keeps 32 x 32 pixels.

ResNet of ``depth`` 18 and 34 has the four-stage ImageNet shape (He et al. 2016, table 1) with the 7 x 7 stride-2 stem
and the max-pooling replaced by one 3 x 3 convolution: the network that OpenOOD and most CIFAR papers call "ResNet-18"
(width 64). ``depth`` 20, 32, 44, 56 and 110 are the paper's own three-stage CIFAR networks (section 4.2, width 16),
here with projection shortcuts. WideResNet (Zagoruyko & Komodakis 2016) has pre-activation blocks in three stages;
WideResNet-40-2 is the network of the energy score's and Outlier Exposure's CIFAR tables.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bnood.networks.norm import Norm, norm_layer

FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
THREE_STAGES = {depth: ((depth - 2) // 6,) * 3 for depth in (20, 32, 44, 56, 110)}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, each followed by its norm, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm1 = norm_layer(norm, outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, outputs, groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=bias), norm_layer(norm, outputs, groups)
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.activation(out + self.shortcut(x))


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


class ResNet(nn.Module):
    """A residual network with a CIFAR stem.

    Args:
        depth: 18 or 34 (four stages), 20, 32, 44, 56 or 110 (three stages).
        width: channels of the first stage; each later stage doubles them.
        norm: its norm layers (:mod:`bnood.networks.norm`).
        groups: groups of ``gn``; has to divide ``width``.
        num_classes: K, the number of logits.

    Raises:
        ValueError: for an unknown depth or norm, or groups that do not divide the channels.
    """

    def __init__(
        self, depth: int = 18, width: int = 64, norm: Norm = "bn", groups: int = 8, num_classes: int = 10
    ) -> None:
        super().__init__()
        stages = FOUR_STAGES.get(depth) or THREE_STAGES.get(depth)
        if stages is None:
            known = ", ".join(str(d) for d in sorted(FOUR_STAGES | THREE_STAGES))
            raise ValueError(f"no ResNet of depth {depth} with basic blocks: choose one of {known}")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=norm == "none")
        self.norm1 = norm_layer(norm, width, groups)
        self.activation = nn.ReLU(inplace=True)
        self.blocks = _stages(BasicBlock, stages, width, width, norm, groups)
        self.num_features = width * 2 ** (len(stages) - 1)
        self.head = nn.Linear(self.num_features, num_classes)
        initialise(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, K]``."""
        x = self.activation(self.norm1(self.conv1(x)))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class WideResNet(nn.Module):
    """A wide residual network; arguments and errors as :class:`ResNet`.

    ``depth`` counts 6 n + 4 convolutional layers; ``width`` is the widening factor k: the stages have 16 k, 32 k and
    64 k channels; ``groups`` have to divide 16, the stem's channels.
    """

    def __init__(
        self, depth: int = 40, width: int = 2, norm: Norm = "bn", groups: int = 8, num_classes: int = 10
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a WideResNet has 6 n + 4 layers (10, 16, 22, 28, 34, 40, ...), not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=norm == "none")
        self.blocks = _stages(PreActivationBlock, [(depth - 4) // 6] * 3, 16, 16 * width, norm, groups)
        self.num_features = 64 * width
        self.norm = norm_layer(norm, self.num_features, groups)
        self.head = nn.Linear(self.num_features, num_classes)
        initialise(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, K]``."""
        x = torch.relu(self.norm(self.blocks(self.conv1(x))))
        return self.head(x.mean(dim=(2, 3)))


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


def _stages(
    block: Callable[..., nn.Module], counts: Sequence[int], inputs: int, width: int, norm: Norm, groups: int
) -> nn.Sequential:
    """Stages of ``counts`` blocks; from the second on, each halves the image and doubles the channels."""
    blocks = []
    for stage, count in enumerate(counts):
        for position in range(count):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(block(inputs, width * 2**stage, stride, norm, groups))
            inputs = width * 2**stage
    return nn.Sequential(*blocks)
