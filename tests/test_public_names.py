"""The public names: all there, and imported only when they are used."""

import subprocess
import sys

import pytest

import bnood

STATISTICS = ["read_statistics", "estimate_statistics", "use_statistics", "BatchNormStatistics"]
SCORES = ["msp", "energy", "max_logit", "auroc", "fpr_at_tpr", "fpr95_ood_positive", "aupr_in", "aupr_out"]
NAMES = [*STATISTICS, *SCORES, "Network", "images", "evaluate", "check_recalibration"]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert callable(getattr(bnood, name)) and name in dir(bnood)


def test_import_bnood_alone_imports_neither_torch_nor_lightning() -> None:
    code = "import sys, bnood; print(bnood.__version__, *({'torch', 'lightning', 'pandas'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [bnood.__version__]


def test_the_engine_imports_no_lightning() -> None:
    code = "import sys, bnood; bnood.evaluate, bnood.Network; print('lightning' in sys.modules, 'wandb' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'bnood' has no attribute 'evalute'"):
        _ = bnood.evalute
