"""What do BatchNorm's statistics do to confidence on inputs that a network was never trained on?

The public names are imported when they are first used, so ``import bnood`` alone imports neither torch nor lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_NAMES = {
    "bnood.data.sources": ["images"],
    "bnood.evaluation.evaluate": ["evaluate"],
    "bnood.evaluation.metrics": ["aupr_in", "aupr_out", "auroc", "fpr95_ood_positive", "fpr_at_tpr"],
    "bnood.evaluation.recalibration": ["check_recalibration"],
    "bnood.evaluation.scores": ["energy", "max_logit", "msp"],
    "bnood.networks.network": ["Network"],
    "bnood.statistics": ["BatchNormStatistics", "bake", "estimate_statistics", "read_statistics", "use_statistics"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bnood' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
