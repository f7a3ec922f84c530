"""BatchNorm statistics: read them, estimate them on other data, use them for a while, interpolate, save.

Works on any ``torch.nn.Module`` with BatchNorm1d/2d/3d or SyncBatchNorm layers or subclasses of them::

    source = read_statistics(model)
    target = estimate_statistics(model, batches)
    with use_statistics(model, target):  # or "running", or "batch"
        logits = model(x)

What is estimated, and behind which layers: :mod:`bnood.statistics.estimation`.
"""

from bnood.statistics.estimation import Call, Method, estimate_statistics, executed_layers, measure_statistics
from bnood.statistics.layers import batchnorm_layers, has_batchnorm, unwrapped
from bnood.statistics.use import Decide, Mode, bake, decide_statistics, read_statistics, use_statistics
from bnood.statistics.values import BatchNormStatistics, LayerStatistics

__all__ = [
    "BatchNormStatistics",
    "Call",
    "Decide",
    "LayerStatistics",
    "Method",
    "Mode",
    "bake",
    "batchnorm_layers",
    "decide_statistics",
    "estimate_statistics",
    "executed_layers",
    "has_batchnorm",
    "measure_statistics",
    "read_statistics",
    "unwrapped",
    "use_statistics",
]
