"""Count, mean and variance per channel of data that arrives in batches."""

import torch
from torch import Tensor

ROWS_PER_BLOCK = 1024
# Values worked on at a time on a CPU: one MiB of float32 stays in the cache; whole layers took five times as long.
VALUES_PER_PORTION = 1 << 18


class PooledMoments:
    """Count, mean and sum of squared deviations per channel, merged batch by batch (Chan et al. 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.deviations = torch.zeros(0, dtype=torch.float64)

    def merge(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Add ``count`` elements per channel with this mean and sum of squared deviations, each ``[C]``."""
        mean, deviations = (figure.detach().to("cpu", torch.float64, copy=True) for figure in (mean, deviations))
        if self.count == 0:
            self.count, self.mean, self.deviations = count, mean, deviations
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.deviations = self.deviations + deviations + delta.square() * (self.count * count / total)
        self.count = total


def channel_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Elements per channel, mean ``[C]`` and sum of squared deviations ``[C]`` (float64) of ``[N, C, ...]``.

    float32 values are shifted by a rough mean of their channel, which keeps E[x^2] - E[x]^2 from cancelling, then added
    up in float32 over blocks of 1,024 and in float64 over blocks: several times faster than float64 throughout.
    """
    # A view of channels_last memory, a copy of contiguous memory.
    values = x.detach().movedim(1, -1).reshape(-1, x.shape[1])
    values = values.float() if values.dtype.itemsize == 2 else values
    count, channels = values.shape
    # A sample spread over the whole batch, so that sorted batches get a fair shift too.
    shift = values[:: max(1, count // 64)].mean(dim=0)
    portion = count if x.device.type != "cpu" else VALUES_PER_PORTION // channels
    portion = max(ROWS_PER_BLOCK, portion - portion % ROWS_PER_BLOCK)
    room, sums, squares = torch.empty_like(values[:portion]), list[Tensor](), list[Tensor]()
    whole = count - count % ROWS_PER_BLOCK
    for rows in (part for part in (*values[:whole].split(portion), values[whole:]) if len(part)):
        blocks = torch.sub(rows, shift, out=room[: len(rows)]).view(-1, min(ROWS_PER_BLOCK, len(rows)), channels)
        sums.append(blocks.sum(dim=1))
        squares.append(blocks.square_().sum(dim=1))
    total, squared = (torch.cat(each).double().sum(dim=0) for each in (sums, squares))
    offset = total / count
    return count, shift.double() + offset, (squared - total * offset).clamp_min(0.0)
