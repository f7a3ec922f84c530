"""Every registered detector under every kind of statistics: whoever adds one of either gets these tests for free."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_evaluation import CLASSES, identities, left_as_it_was, outputs, small_network, small_set

from bnood.data.image_set import halves
from bnood.errors import UserError
from bnood.evaluation.conditions import KINDS, parse_statistics
from bnood.evaluation.detectors import DETECTORS
from bnood.evaluation.evaluate import Evaluation, evaluate
from bnood.evaluation.metrics import auroc
from bnood.evaluation.options import DEFAULT_DETECTORS
from bnood.evaluation.scores import SCORES
from bnood.networks.network import Network

KINDS_OF_STATISTICS = (
    *("running", "batch:16", "batch:16@0.5", "prior:16/batch:16", "recalibrated:id", "recalibrated:target"),
    *("recalibrated:mixture@0.5", "recalibrated:target/first:1", "recalibrated:target/mean", "path:0.5"),
)
LOGITS_ONLY = KINDS_OF_STATISTICS[-3:]
TRAINED_ON = 200


def labelled(name: str, n: int, seed: int) -> Any:
    """Images whose class is their brightness, so that classes mean something to the features."""
    parts = [small_set(name, n // CLASSES, seed + label, 40 + 40 * label, 15) for label in range(CLASSES)]
    images = np.concatenate([part.images for part in parts])
    return type(parts[0])(name, images, np.repeat(np.arange(CLASSES), n // CLASSES))


def network() -> Network:
    """A small network whose head tells the classes apart: its rows are the centred means of the classes' features."""
    made, images = small_network(plain=True), labelled("train", TRAINED_ON, 100)
    head, features = made.model.network.head, outputs(made.model, images.images)[1]
    means = torch.stack([features[torch.from_numpy(images.labels) == k].mean(0) for k in range(CLASSES)])
    centre = features.mean(0)
    with torch.no_grad():
        head.weight.copy_(10 * (means - centre) / features.std(0).mean())
        head.bias.copy_(-(head.weight @ ((means + centre) / 2).T).diagonal())
    return made


def evaluated(made: Network, **changes: Any) -> Evaluation:
    sets = {"train_set": labelled("train", TRAINED_ON, 100), "held_out": labelled("held-out", 50, 50)}
    options = {"statistics": KINDS_OF_STATISTICS, "detectors": tuple(DETECTORS), "shuffles": 1, "resamples": 2}
    options |= {"calibration_images": 50, "forward_batch": 25, "ood_sets": {"far": small_set("far", 64, 7, 230, 60)}}
    return evaluate(made, labelled("known", 60, 1), **{**sets, **options, **changes})


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluated(network())


def test_every_kind_of_statistics_is_among_those_tested() -> None:
    assert {type(condition) for condition in parse_statistics(KINDS_OF_STATISTICS)} == set(KINDS)


@pytest.mark.parametrize("statistics", KINDS_OF_STATISTICS[:-3])
@pytest.mark.parametrize("detector", DETECTORS)
def test_there_is_one_finite_score_per_image_or_a_note(found: Evaluation, detector: str, statistics: str) -> None:
    rows = found.scores[found.scores["statistics"] == statistics]
    if rows["companion"].any():  # ID images that are compared with no OOD set have scores of their logits alone
        rows = rows[(rows["companion"] != "") | (rows["role"] == "ood")]
    noted = any(note.startswith(f"detector {detector}: not applicable") for note in found.notes)
    assert detector in rows or noted
    if detector in rows:
        assert rows[detector].dtype == np.float64 and (rows[detector].notna().all() or noted)


@pytest.mark.parametrize("statistics", LOGITS_ONLY)
def test_layer_forms_and_paths_give_scores_of_the_logits_and_units_alone(found: Evaluation, statistics: str) -> None:
    rows = found.table[found.table["statistics"] == statistics]
    assert set(rows.loc[rows["metric"] == "auroc", "detector"]) == {"msp", "energy", "max_logit"}
    assert "unit_mean_max_ratio" in set(rows["metric"])
    scores = found.scores[found.scores["statistics"] == statistics]
    assert scores[[name for name in DETECTORS if name not in SCORES]].isna().all(axis=None)


def test_no_detector_is_fitted_nor_passes_for_layer_forms_and_paths() -> None:
    plain, fitted = (
        evaluated(network(), statistics=LOGITS_ONLY, detectors=detectors).record["images_scored"]
        for detectors in (("energy",), ("energy", "knn", "bats"))
    )
    assert fitted - plain == TRAINED_ON + 60 + 32  # under running: what knn is fitted on, and the passes of BATS


@pytest.mark.parametrize("detector", DETECTORS)
def test_higher_is_more_in_distribution_as_in_the_table(found: Evaluation, detector: str) -> None:
    """The table's AUROC is that of the per-image scores with ID positive, whatever the detector."""
    rows = found.scores[found.scores["statistics"] == "running"]
    inside, outside = (rows.loc[rows["dataset"] == name, detector].to_numpy() for name in ("known", "far"))
    table = found.table[(found.table["statistics"] == "running") & (found.table["detector"] == detector)]
    assert table.loc[table["metric"] == "auroc", "value"].item() == pytest.approx(auroc(inside, outside), abs=1e-12)


def test_the_same_again_is_the_same_bit_for_bit(found: Evaluation) -> None:
    again = evaluated(network())
    pd.testing.assert_frame_equal(again.scores, found.scores)
    pd.testing.assert_frame_equal(again.table, found.table)


def test_under_fixed_statistics_scores_do_not_depend_on_the_cut_into_batches(found: Evaluation) -> None:
    fixed = [name for name in KINDS_OF_STATISTICS if "batch" not in name]
    other = evaluated(network(), statistics=fixed, forward_batch=17).scores
    same = found.scores[found.scores["statistics"].isin(fixed)]
    both = same.merge(other, on=["statistics", "companion", "dataset", "index"], suffixes=("", "_other"))
    assert len(both) == len(same) == len(other)
    for name in DETECTORS:
        one, another = both[name].to_numpy(), both[f"{name}_other"].to_numpy()
        scale = np.nanstd(one) + 1e-9
        # Mixtures of Gaussians are fitted by steps whose end depends on the last digits of the features.
        assert np.nanmax(np.abs(one - another)) <= 0.02 * scale, name


def test_nothing_is_left_changed_in_the_model() -> None:
    made = network()
    with left_as_it_was(made.model):
        evaluated(made)


def test_fitted_under_running_is_fitted_once_and_the_table_says_so(found: Evaluation) -> None:
    detectors = ("energy", "knn", "react")
    under = evaluated(network(), detectors=detectors, fitted_under="running")
    table = under.table[under.table["metric"] == "auroc"].set_index("detector")["fitted_under"]
    assert set(table["knn"]) == set(table["react"]) == {"running"} and set(table["energy"]) == {""}
    own = found.table[(found.table["metric"] == "auroc") & (found.table["detector"] == "knn")]
    assert set(own["fitted_under"]) == {"condition"}
    scores = [each.scores.set_index(["statistics", "dataset", "companion", "index"])["knn"] for each in (under, found)]
    assert scores[0]["running"].equals(scores[1]["running"])
    assert not scores[0]["recalibrated:target"].equals(scores[1]["recalibrated:target"])


def test_mixed_batches_are_filled_up_with_the_adaptation_split_while_detectors_are_fitted() -> None:
    """Scored OOD images take no part."""
    made, far = network(), small_set("far", 64, 7)
    passed: list[set[bytes]] = []
    hook = made.model.register_forward_pre_hook(lambda _, inputs: passed.append(identities(inputs[0].numpy())))
    evaluated(made, statistics=("batch:16@0.5",), detectors=("knn",), ood_sets={"far": far}, held_out_images=0)
    hook.remove()
    training = identities(labelled("train", TRAINED_ON, 100).images)
    adaptation, scored = (identities(far.images[part]) for part in halves(64, 0, "far"))
    fitting = [batch for batch in passed if batch & training and batch & adaptation]
    assert len(fitting) == TRAINED_ON // 8
    assert all(len(batch & training) == 8 and len(batch & adaptation) == 8 for batch in fitting)
    assert not any(batch & training and batch & scored for batch in passed)


def test_detectors_that_lack_what_they_need_are_refused_or_by_default_left_out_with_a_note() -> None:
    lacking: dict[str, Any] = {"train_set": None, "held_out": None, "statistics": ("running",)}
    for detector, words in (("knn", "training images"), ("temperature", "labelled ID images held out")):
        with pytest.raises(UserError, match=f"detector '{detector}' is fitted on {words}"):
            evaluated(network(), detectors=(detector,), **lacking)
    found = evaluated(network(), detectors=DEFAULT_DETECTORS, **lacking)
    assert [note.split(" is ")[0] for note in found.notes] == ["detector 'react'", "detector 'temperature'"]
    assert set(found.table.loc[found.table["metric"] == "auroc", "detector"]) == {"msp", "energy", "max_logit"}
    found = evaluated(small_network("gn"), statistics=("running",), detectors=("bats", "nmd", "energy"))
    missing = "not applicable: the network has no BatchNorm layer"
    assert found.notes == [f"detector {name}: {missing}" for name in ("bats", "nmd")]


def test_held_out_images_may_be_named_as_the_training_images() -> None:
    asked: dict[str, Any] = {"statistics": ("running",), "detectors": ("react", "temperature", "she")}
    other = evaluated(network(), **asked)
    pd.testing.assert_frame_equal(evaluated(network(), held_out=labelled("train", 50, 50), **asked).table, other.table)
