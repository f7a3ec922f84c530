"""Residual networks for small images: He et al.'s basic block behind a stem that keeps 32 x 32 pixels.

Two families share the code. ``depth`` 18 and 34 are the four-stage ImageNet shapes (He et al. 2016, table 1)
with the 7 x 7 stride-2 stem and the max-pooling replaced by one 3 x 3 convolution: the network that OpenOOD and
most CIFAR papers call "ResNet-18" (width 64). ``depth`` 20, 32, 44, 56 and 110 are the paper's own
three-stage CIFAR networks (section 4.2, width 16), here with projection shortcuts.
"""

from torch import Tensor, nn

from bnood.networks.initialisation import initialise
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


class ResNet(nn.Module):
    """A residual network with a CIFAR stem.

    Args:
        depth: 18 or 34 (four stages), 20, 32, 44, 56 or 110 (three stages).
        width: channels of the first stage; each later stage doubles them. ResNet-18 as published: 64;
            ResNet-20 as published: 16.
        norm: ``bn``, ``ln``, ``gn`` or ``none`` (:mod:`bnood.networks.norm`).
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
        blocks: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(stages):
            outputs = width * 2**stage
            for position in range(count):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(inputs, outputs, stride, norm, groups))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.num_features = inputs
        self.head = nn.Linear(inputs, num_classes)
        initialise(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, K]``."""
        x = self.activation(self.norm1(self.conv1(x)))
        return self.head(self.blocks(x).mean(dim=(2, 3)))
