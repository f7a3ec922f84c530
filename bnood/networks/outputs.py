"""What one forward pass gives: logits, penultimate features and, on request, the channel means of BatchNorm inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Head(NamedTuple):
    """The last linear layer: ``logits = features @ weight.T + bias``; ``[K, D]`` and ``[K]``, float32 on the CPU."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Outputs:
    """Outputs of N images, float32 on the CPU."""

    logits: Tensor  # [N, K]
    features: Tensor  # [N, D], what enters the last linear layer
    channel_means: dict[str, Tensor] = field(default_factory=dict)  # [N, C] of each BatchNorm input, if asked for

    def __len__(self) -> int:
        return len(self.logits)

    def at(self, index: Tensor | np.ndarray | slice) -> "Outputs":
        """The outputs of some of the images."""
        means = {name: values[index] for name, values in self.channel_means.items()}
        return Outputs(self.logits[index], self.features[index], means)

    @classmethod
    def joined(cls, parts: Sequence["Outputs"]) -> "Outputs":
        """The outputs of several batches, in their order."""
        names = parts[0].channel_means
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.features for part in parts]),
            {name: torch.cat([part.channel_means[name] for part in parts]) for name in names},
        )
