"""The lab's script, as a user would run it, on a few tiny networks."""

import json
from pathlib import Path

import pandas as pd
import pytest
from lab import main, parse
from refusal import refusal
from tiny_study import lab_config as config

CONFIGS = Path(__file__).parents[2] / "configs" / "lab"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    main(["--config", str(config(folder))])
    return folder


def test_lab_writes_tables_page_and_checks(lab: Path) -> None:
    folder = lab / "runs" / "tiny"
    table = pd.read_parquet(folder / "lab.parquet")
    assert set(table["norm"]) == {"none", "bn"} and set(table["seed"]) == {0, 1} and set(table["layer"]) == {0, 1, 2}
    assert set(table.loc[table["quantity"] == "gradient_norm", "step"]) == {0}
    assert sorted(set(table.loc[table["quantity"] == "train_accuracy", "epoch"])) == [1, 2]
    checks = json.loads((folder / "checks.json").read_text())
    assert {check["verdict"] for check in checks["checks"]} <= {"supported", "refuted", "undecided", "not tested here"}
    page = (folder / "report.html").read_text()
    assert page.index("Gradient of each layer") < page.index("Statements") < page.index("Command, versions and machine")
    assert "mlp-sigmoid" not in page and "MLP, sigmoid" in page
    assert (folder / "figures" / "gradients.png").exists()


def test_a_stopped_lab_goes_on(lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    networks = lab / "runs" / "tiny" / "networks"
    before = pd.read_parquet(networks / "mlp-sigmoid-bn-s1.parquet")
    (networks / "mlp-sigmoid-bn-s1.json").unlink()  # as if it had been killed before the end
    monkeypatch.chdir(lab)
    main(["--config", "lab.yaml"])
    assert "4 networks, 1 to train" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_parquet(networks / "mlp-sigmoid-bn-s1.parquet"), before)


def test_other_settings_in_the_same_folder_are_refused(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "batch_size 20, not 30" in refusal(main, ["--config", str(config(lab)), "--batch_size", "30"], capsys)


def test_diverged_networks_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"learning_rate": 1e30, "norms": ["none"], "activations": ["relu"]}
    main(["--config", str(config(tmp_path, grid=grid, seeds=[0], runs=f"{tmp_path}/[b]runs"))])
    printed = capsys.readouterr().out
    assert "note: mlp-relu-none-s0: diverged in epoch 1" in printed and "/[b]runs/tiny/report.html" in printed


@pytest.mark.parametrize(("name", "networks"), [("demo.yaml", 24), ("cifar10.yaml", 48)])
def test_committed_configs_are_valid(name: str, networks: int) -> None:
    assert len(parse(["--config", str(CONFIGS / name)]).networks()) == networks
    grids = "[{architecture: mlp, depth: 1, width: 8, learning_rate: 1.0, epochs: 1}]"
    assert [grid.depth for grid in parse(["--config", str(CONFIGS / name), "--grids", grids]).grids] == [1]
