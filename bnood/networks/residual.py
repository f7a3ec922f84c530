"""Residual networks for small images ``[N, 3, H, W]``, behind a stem that keeps 32 x 32 pixels.

ResNet-18 and -34 have the four ImageNet stages (He et al. 2016, table 1), as OpenOOD's (width 64); depths 20 to 110 are
the paper's CIFAR networks (section 4.2, width 16), with projections. WideResNet is Zagoruyko & Komodakis's (2016).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.norm import Norm, norm_layer

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)} | {depth: ((depth - 2) // 6,) * 3 for depth in (20, 32, 44, 56, 110)}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, each followed by its norm, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, norm, stride)
        self.norm1 = norm_layer(norm, outputs, groups)
        self.conv2 = _convolution(outputs, outputs, norm)
        self.norm2 = norm_layer(norm, outputs, groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, norm, stride, size=1)
            self.shortcut = nn.Sequential(projection, norm_layer(norm, outputs, groups))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(out)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """norm, ReLU, 3 x 3 convolution, twice; the shortcut branches off after the first ReLU where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        self.norm1 = norm_layer(norm, inputs, groups)
        self.conv1 = _convolution(inputs, outputs, norm, stride)
        self.norm2 = norm_layer(norm, outputs, groups)
        self.conv2 = _convolution(outputs, outputs, norm)
        self.shortcut = _convolution(inputs, outputs, norm, stride, size=1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        pre = torch.relu(self.norm1(x))
        out = self.conv2(torch.relu(self.norm2(self.conv1(pre))))
        return out + (x if self.shortcut is None else self.shortcut(pre))


class ResNet(nn.Module):
    """A residual network with a CIFAR stem; arguments as :func:`bnood.networks.image_classifier.build_model`."""

    def __init__(self, depth: int, width: int, norm: Norm = "bn", groups: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        if depth not in STAGES:
            raise UserError(f"no ResNet of depth {depth} with basic blocks: choose one of {str(sorted(STAGES))[1:-1]}")
        self.conv1 = _convolution(3, width, norm)
        self.norm1 = norm_layer(norm, width, groups)
        self.blocks, features = _stages(BasicBlock, STAGES[depth], width, width, norm, groups)
        self.head = nn.Linear(features, num_classes)
        _initialise(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu_(self.norm1(self.conv1(x)))).mean(dim=(2, 3)))


class WideResNet(nn.Module):
    """A wide residual network of ``depth`` 6 n + 4; ``width`` is the widening factor k: 16 k to 64 k channels."""

    def __init__(self, depth: int, width: int, norm: Norm = "bn", groups: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"a WideResNet has 6 n + 4 layers (10, 16, 22, 28, 34, 40, ...), not {depth}")
        self.conv1 = _convolution(3, 16, norm)
        self.blocks, features = _stages(PreActivationBlock, [(depth - 4) // 6] * 3, 16, 16 * width, norm, groups)
        self.norm = norm_layer(norm, features, groups)
        self.head = nn.Linear(features, num_classes)
        _initialise(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.blocks(self.conv1(x)))).mean(dim=(2, 3)))


def _convolution(inputs: int, outputs: int, norm: Norm, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=norm == "none")


def _stages(
    block: Callable[..., nn.Module], counts: Sequence[int], inputs: int, width: int, norm: Norm, groups: int
) -> tuple[nn.Sequential, int]:
    """Stages of ``counts`` blocks, and their last channels; from the second on, each halves the image, doubles them."""
    blocks = []
    for stage, position in ((stage, position) for stage, count in enumerate(counts) for position in range(count)):
        blocks.append(block(inputs, width * 2**stage, 2 if stage > 0 and position == 0 else 1, norm, groups))
        inputs = width * 2**stage
    return nn.Sequential(*blocks), inputs


def _initialise(network: nn.Module, norm: Norm) -> None:
    """He et al. (2015), by fan-out; without norms, branches end in zeros (Zhang et al. 2019, "Fixup", rule 2)."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if norm == "none" and name.endswith("conv2"):
                nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
