"""A study: what is done and undone, goes on after a kill, is refused, and is the same however it runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from study import main, parse
from tiny_runs import data_root, equal_weights, weights, write_set
from tiny_study import EVALUATION, TRAINING, copy_of_study, options_of, specs_of, studied, study_config, times

from bnood.data.atomic import locked
from bnood.errors import UserError
from bnood.networks.network import Network
from bnood.study.networks import is_done, layer_forms, run_specs, stopped_at

SETS = {"root": str(data_root()), "id": "tiny", "ood": ["marks", "grounds"]}
QUICK = {"evaluation": EVALUATION | {"statistics": ["running"]}, "localisation": "none"}


def test_a_study_trains_stops_evaluates_and_judges() -> None:
    folder = studied()
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert set(table["network"]) == {"bn", "ln", "bn-at-ln"}
    assert set(table.loc[table["network"] == "bn-at-ln", "run"]) == {"bn-s0-at-ln"}
    stopped = set(table.loc[table["network"] == "bn-at-ln", "statistics"])
    assert stopped == {"running", "recalibrated:id", "recalibrated:target"}
    forms = {name for name in table.loc[table["network"] == "bn", "statistics"] if "/" in name}
    assert forms == set(layer_forms(21, "places"))
    verdict = json.loads((folder / "verdict.json").read_text())
    assert len(verdict["rows"]) == 5 and all(
        row["verdict"].endswith("(this network)") or row["hypothesis"] == "H4" for row in verdict["rows"]
    )
    assert verdict["thresholds"]["primary_sets"] == ["marks", "grounds"] and verdict["study"] == "tiny"
    assert (folder / "report.html").stat().st_size > 10_000 and (folder / "verdict.csv").exists()
    rows = pd.read_csv(folder / "networks.csv").set_index("run")
    trained = pd.read_csv(folder / "bn-s0" / "metrics.csv")["train/accuracy"].dropna()
    assert rows.loc["bn-s0", "train_accuracy"] == pytest.approx(trained.iloc[-1], abs=1e-5)
    assert rows.loc["bn-s0-at-ln", "partner"] == "ln-s0"


def test_a_stopped_network_has_the_weights_of_its_epoch() -> None:
    folder = studied()
    summary = json.loads((folder / "bn-s0-at-ln" / "summary.json").read_text())
    kept = folder / "bn-s0" / "checkpoints" / f"epoch-{summary['epochs'] - 1:03d}.ckpt"
    expected, found = torch.load(kept, weights_only=True)["state_dict"], weights(folder / "bn-s0-at-ln")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert summary["stopped"]["partner"] == "ln-s0" and summary["accuracy"] == summary["stopped"]["accuracy"]
    assert yaml.safe_load((folder / "bn-s0-at-ln" / "config.yaml").read_text())["name"] == "bn-s0-at-ln"


@pytest.mark.parametrize(
    ("accuracies", "wanted", "kept", "found"),
    [
        ([0.3, 0.5, 0.75, 0.5], 0.625, [0, 1, 2, 3], 1),  # of equally near epochs the first
        ([0.3, 0.5, 0.8, 0.6], 0.6, [0, 1], 1),  # only kept ones
        ([0.3, None, 0.8], 0.6, [0, 1, 2], 2),
        ([0.3, 0.5], 0.6, [], r"bn-s0 kept no epochs .* --keep_epochs true"),
        ([0.3, 0.5], 0.6, [0, 1, 2], r"metrics.csv has no row of epoch 2, of which the weights were kept"),
        ([0.3, 0.5], None, [0, 1], r"ln-s0/summary.json has no accuracy"),
    ],
)
def test_the_epoch_that_is_taken(accuracies: list, wanted: float, kept: list, found: int | str, tmp_path: Path) -> None:
    runs, config = tmp_path / "runs" / "tiny", study_config(tmp_path)
    (runs / "bn-s0" / "checkpoints").mkdir(parents=True)
    (runs / "ln-s0").mkdir()
    lines = [f"{epoch},9,{'' if value is None else value}" for epoch, value in enumerate(accuracies)]
    (runs / "bn-s0" / "metrics.csv").write_text("\n".join(["epoch,step,validation/accuracy", "0,5,", *lines]))
    (runs / "ln-s0" / "summary.json").write_text(json.dumps({"accuracy": wanted}))
    for epoch in kept:
        (runs / "bn-s0" / "checkpoints" / f"epoch-{epoch:03d}.ckpt").touch()
    asked = options_of(config), specs_of(config)["bn-s0-at-ln"]
    if isinstance(found, int):
        assert (stopped_at(*asked)["epoch"], stopped_at(*asked)["accuracy"]) == (found, accuracies[found])
        return
    with pytest.raises(UserError, match=found):
        stopped_at(*asked)


def test_a_second_call_makes_a_lost_part_again_and_refuses_another_config_or_training(tmp_path: Path) -> None:
    config, folder = copy_of_study(tmp_path), tmp_path / "runs" / "tiny"
    shutil.rmtree(folder / "ln-s0" / "ood")
    before = times(folder, "*-s0*/**/*")
    main(["--config", str(config)])
    after = times(folder, "*-s0*/**/*")
    new = {name for name in after if after[name] != before.get(name)}
    assert new and all(name.startswith("ln-s0/ood/") for name in new) and before.keys() <= after.keys()
    first, again = (root / "ln-s0" / "ood" / "table.csv" for root in (studied(), folder))
    assert first.read_bytes() == again.read_bytes()
    with pytest.raises(UserError, match=r"made with evaluation.resamples 20, but the config says 30"):
        main(["--config", str(study_config(tmp_path, evaluation=EVALUATION | {"resamples": 30}))])
    file = folder / "ln-s0" / "config.yaml"
    text = file.read_text()
    for section, key, value in (("model", "learning_rate", 0.3), ("trainer", "max_epochs", 3)):
        content = yaml.safe_load(text)
        content[section][key] = value
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=rf"ln-s0 was trained with {section}.{key} {value}, but the study wants"):
            main(["--config", str(study_config(tmp_path))])


def test_a_stopped_evaluation_goes_on_with_the_passes_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = copy_of_study(tmp_path), tmp_path / "runs" / "tiny"
    shutil.rmtree(folder / "bn-s0" / "ood")
    seen, outputs, last = [], Network.outputs, 20

    def counted(self: Network, batch: torch.Tensor, *args: object, **more: object) -> object:
        if len(seen) == last:
            raise UserError("stopped")
        seen.append(len(batch))
        return outputs(self, batch, *args, **more)

    monkeypatch.setattr(Network, "outputs", counted)
    with pytest.raises(UserError, match="1 failed: bn-s0: stopped"):
        main(["--config", str(config)])
    next(iter(folder.glob("bn-s0/.passes/*/*/*.pt"))).write_bytes(b"damaged")
    before, last = sum(seen), 0
    main(["--config", str(config)])
    scored = json.loads((folder / "bn-s0" / "ood" / "evaluation.json").read_text())["images_scored"]
    assert scored <= sum(seen) <= scored + 2 * 60 and before > 4 * 60
    first, again = (root / "bn-s0" / "ood" / "table.csv" for root in (studied(), folder))
    assert first.read_bytes() == again.read_bytes() and not (folder / "bn-s0" / ".passes").exists()


def test_weights_and_tables_are_the_same_however_the_jobs_run(tmp_path: Path) -> None:
    other = main(["--config", str(study_config(tmp_path, executor={"backend": "loky", "workers": 2}))])
    for run in ("bn-s0", "ln-s0", "bn-s0-at-ln"):
        assert equal_weights(studied() / run, other / run)
    for name in ("table.csv", "verdict.csv"):
        assert (studied() / name).read_bytes() == (other / name).read_bytes()


def test_given_networks_are_evaluated_and_never_written_into(tmp_path: Path) -> None:
    (source := tmp_path / "[a]").symlink_to(studied())  # brackets are no pattern
    before = times(studied(), "**/*")
    given = [{"run": str(source / "bn-s0*"), "family": "small"}, {"run": str(source / "ln-s0"), "family": "small"}]
    config = study_config(tmp_path, networks=given)
    assert list(specs_of(config)) == ["bn-s0", "bn-s0-at-ln", "ln-s0"]
    folder = main(["--config", str(config)])
    assert times(studied(), "**/*") == before
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert set(table["network"]) == {"small bn", "small ln", "small bn-at-ln"}
    trained = pd.read_csv(source / "table.csv", keep_default_na=False)
    values = [each.sort_values("run", kind="stable")["value"].tolist() for each in (table, trained)]
    assert values[0] == values[1]
    assert [path.name for path in (folder / "bn-s0").iterdir()] == ["ood"]


def test_models_of_other_projects_are_evaluated_on_the_sets_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = "nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)"
    code = f"from torch import nn\ndef net():\n    return nn.Sequential({layers})\n"
    (tmp_path / "other_project.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = {"model": "other_project:net", "name": "theirs"}
    config = study_config(tmp_path, networks=[model], sets=SETS | {"id_count": 60})
    rows = json.loads((main(["--config", str(config)]) / "verdict.json").read_text())["rows"]
    assert {row["network"] for row in rows} == {"theirs bn"} and len(rows) == 5
    (spec,) = specs_of(config).values()
    assert is_done(options_of(config), spec)
    assert not is_done(options_of(study_config(tmp_path, networks=[model], sets=SETS | {"id_count": 50})), spec)


def test_a_failing_network_costs_no_other_and_no_verdict_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study_config(tmp_path, entry={"norms": ["ln", "bn"], "equal_accuracy": False}, **QUICK)
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "ln-s0").write_text("in the way")
    with pytest.raises(UserError) as error:
        main(["--config", str(config)])
    text = str(error.value)
    assert text.startswith("1 failed: ln-s0: ") and "no verdict is written" in text and "\n" not in text
    assert (folder / "bn-s0" / "ood" / "table.csv").exists() and not (folder / "verdict.json").exists()
    main(["--config", str(config), "--judge_only", "true"])
    assert "note: ln-s0 is not evaluated" in capsys.readouterr().out
    assert set(pd.read_csv(folder / "table.csv")["network"]) == {"bn"} and (folder / "verdict.json").exists()


def test_what_is_there_is_judged_without_training_or_evaluating(tmp_path: Path) -> None:
    config, folder = copy_of_study(tmp_path), tmp_path / "runs" / "tiny"
    shutil.rmtree(folder / "ln-s0" / "ood")
    before = times(folder, "*-s*/**/*")
    main(["--config", str(config), "--judge_only", "true"])
    assert times(folder, "*-s*/**/*") == before
    assert json.loads((folder / "verdict.json").read_text())["made"]["missing"] == ["ln-s0 is not evaluated"]
    (folder / "table.csv").write_text("of an earlier verdict")
    with pytest.raises(UserError, match=r"claim.primary_sets: nowhere was not evaluated"):
        main(["--config", str(config), "--judge_only", "true", "--claim.primary_sets", "[nowhere]"])
    assert (folder / "table.csv").read_text() == "of an earlier verdict"
    with pytest.raises(UserError, match=r"runs/tiny: there is no such study to be judged"):
        main(["--config", str(study_config(tmp_path / "new")), "--judge_only", "true"])


def test_a_study_that_is_being_worked_on_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    with (
        locked(tmp_path / "runs" / "tiny", "busy"),
        pytest.raises(UserError, match="another process is working on this study"),
    ):
        main(["--config", str(study_config(tmp_path))])


def test_the_networks_and_layer_forms_of_a_study(tmp_path: Path) -> None:
    names = list(specs_of(study_config(tmp_path, entry={"norms": ["bn", "ln", "gn"], "seeds": [3, 5]})))
    assert names[:6] == ["bn-s3", "ln-s3", "gn-s3", "bn-s5", "ln-s5", "gn-s5"]
    assert names[6:] == ["bn-s3-at-ln", "bn-s3-at-gn", "bn-s5-at-ln", "bn-s5-at-gn"]
    specs = specs_of(study_config(tmp_path, entry={"family": "small"}))
    assert [(spec.name, spec.names["network"]) for spec in specs.values()] == [
        ("small-bn-s0", "small bn"), ("small-ln-s0", "small ln"), ("small-bn-s0-at-ln", "small bn-at-ln")
    ]  # fmt: skip
    replaced = parse(["--config", str(tmp_path / "study.yaml"), "--networks", f"[{{run: {studied() / 'ln-s0'}}}]"])[0]
    assert [spec.name for spec in run_specs(replaced)] == ["ln-s0"]
    forms = [f"recalibrated:target/{place}" for place in ("only:4", "first:2", "last:3", "mean", "variance")]
    assert layer_forms(5, "places") == forms and len(layer_forms(20, "all")) == 62 and layer_forms(0, "all") == []


def test_networks_are_not_scored_on_what_they_are_trained_on(tmp_path: Path) -> None:
    source = np.load(data_root() / "tiny" / "train.npz")
    file = write_set(tmp_path / "mine.npz", source["images"], source["labels"])
    recipe = TRAINING | {"data": TRAINING["data"] | {"in_distribution": str(file)}}
    with pytest.raises(UserError, match=r"mine.npz has no test images .* id_split val"):
        main(["--config", str(study_config(tmp_path, recipe))])
    assert not (tmp_path / "runs").exists()
