"""The README's Python snippets run as they stand, but for downloads and the folders that they name."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bnood
from bnood.evaluation.detectors import DETECTORS

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of random photographs under the names that the README uses."""
    pixels = np.random.default_rng(0)
    for name in ("id", "train", "textures"):
        folder = tmp_path / "photos" / name / "0"
        folder.mkdir(parents=True)
        for number in range(60 if name == "train" else 8):
            Image.fromarray(pixels.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bnood.evaluation.detectors.DETECTORS", dict(DETECTORS))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.strip().splitlines()[0])
def test_a_snippet_of_the_readme_runs(snippet: str, photographs: None) -> None:
    offline = snippet.replace("mobilenet_v2(weights=weights)", "mobilenet_v2()")
    space: dict[str, object] = {}
    exec(compile(offline, str(README), "exec"), space)
    if "found" in space:
        assert Path("out", "table.csv").is_file() and Path("out", "report.html").is_file()
        assert "transform: ImageClassification" in str(space["found"])


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
