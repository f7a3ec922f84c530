"""The sentences and tables of detection, mitigations and confidence."""

import pandas as pd
from synthetic_evaluation import make_scores, make_table
from synthetic_study import make_metric_table

from bnood.report.study_panels import (
    _mitigation_sentence,
    confidence_picture,
    detection_picture,
    headline_sets,
)
from bnood.report.study_tables import StudyTables


def drawn(*rows: tuple[str, str, str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["network", "statistics", "score", "metric", "dataset", "mean"]).assign(n_seeds=2)


ROWS = (
    ("bn", "running", "energy", "auroc", "svhn", 0.80), ("bn", "running", "energy", "auroc", "dtd", 0.90),
    ("bn", "running", "react", "auroc", "svhn", 0.86), ("bn", "running", "react", "auroc", "dtd", 0.88),
    ("ln", "running", "energy", "auroc", "svhn", 0.75), ("ln", "running", "energy", "auroc", "dtd", 0.85),
    ("ln", "running", "react", "auroc", "svhn", 0.50), ("ln", "running", "react", "auroc", "dtd", 0.60),
    ("bn", "recalibrated:target", "energy", "auroc", "svhn", 0.99),
    ("bn", "running", "energy", "fpr95", "svhn", 0.4), ("bn", "running", "energy", "fpr95", "dtd", 0.2),
    ("ln", "running", "react", "fpr95", "svhn", 0.9), ("ln", "running", "react", "fpr95", "dtd", 0.8),
    ("ln", "running", "react", "auroc", "noise", 0.01),
)  # fmt: skip


def test_the_best_and_the_worst_mitigation_are_named() -> None:
    said = _mitigation_sentence(drawn(*ROWS), ["svhn", "dtd"])
    assert "Averaged over svhn and dtd and the seeds, from worst to best: AUROC 0.550 (react on ln) to 0.870" in said
    assert "0.870 (react on bn) and FPR95 0.850 (react on ln) to 0.300 (energy on bn); the BN default" in said
    assert "(energy) has an AUROC of 0.850." in said
    assert "0.500 (react on ln) to 0.990 (energy on bn, matched) on svhn; 0.600 (react on ln) to 0.900" in said
    changes = "+0.020 on bn and \N{MINUS SIGN}0.250 on ln"
    assert f"ReAct in place of the energy score changes the average AUROC by {changes}." in said
    assert "0.010" not in said, "noise is no headline set here"


def test_mitigations_of_one_norm_or_without_a_common_row() -> None:
    alone = drawn(*[row for row in ROWS if row[0] == "ln"])
    said = _mitigation_sentence(alone.assign(n_seeds=1), ["svhn"])
    assert said.startswith("Averaged over svhn, from worst")
    assert "BN default" not in said and "by set" not in said
    assert _mitigation_sentence(alone, ["svhn", "gone"]) == "No row was measured on all of these OOD sets."


def test_headline_sets_are_those_of_the_verdict() -> None:
    study = StudyTables("study", make_table(make_scores(n=20, norm="ln", shuffles=1)))
    assert headline_sets(study) == study.sets
    first = study.sets[0]
    judged = StudyTables("study", study.table, verdict={"thresholds": {"headline_sets": [first, "gone"]}})
    assert headline_sets(judged) == [first] != study.sets


def test_running_statistics_are_those_of_bn_alone() -> None:
    for networks, says in ((["bn", "ln"], "mean MSP (BN under running statistics) is"), (["ln"], "mean MSP is")):
        found = confidence_picture(StudyTables("study", make_metric_table(networks, (0,), 20)))
        assert found is not None and says in found.says
        assert "  " not in found.how


def test_rows_of_the_tables_can_be_told_apart() -> None:
    study = StudyTables("study", make_metric_table(["bn", "ln"], (0, 1), 20))
    for found in (detection_picture(study), confidence_picture(study)):
        assert found is not None
        names = [name for name in found.numbers.columns if name not in ("mean", "low", "high", "n_seeds", "n")]
        assert not found.numbers.duplicated(names).any()
        conditions = found.numbers.groupby("network")["condition"].unique()
        assert list(conditions["ln"]) == ["no statistics"] and "matched" in conditions["bn"]
        assert "“matched” is recalibrated:target" in found.how
    confidence = confidence_picture(study)
    assert confidence is not None and set(confidence.numbers["companion"]) == {"", *study.sets}
    assert f"those with {study.sets[0]} are drawn" in confidence.how
    detection = detection_picture(study)
    assert detection is not None and "companion" not in detection.numbers.columns
    assert [name for _, name in detection.panels[0].y_ticks][-1] == "ln"
