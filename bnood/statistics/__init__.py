"""BatchNorm statistics: read them, estimate them on other data, use them for a while, interpolate, save, bake."""

from bnood.statistics.estimation import Call, Method, estimate_statistics, executed_layers
from bnood.statistics.layers import batchnorm_layers, has_batchnorm, unwrapped
from bnood.statistics.use import Decide, Mode, bake, decide_statistics, read_statistics, use_statistics
from bnood.statistics.values import BatchNormStatistics, LayerStatistics

__all__ = [
    "BatchNormStatistics", "Call", "Decide", "LayerStatistics", "Method", "Mode", "bake", "batchnorm_layers",
    "decide_statistics", "estimate_statistics", "executed_layers", "has_batchnorm", "read_statistics", "unwrapped",
    "use_statistics",
]  # fmt: skip
