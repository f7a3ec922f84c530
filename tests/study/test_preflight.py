"""What is wrong with a study's sets is said before anything is trained or written."""

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import OOD, SIZE, data_root, write_set
from tiny_study import TRAINING, options_of, study_config

from bnood.errors import UserError
from bnood.study.cli import main
from bnood.study.grid import StudyCell, expected_config
from bnood.study.preflight import check_evaluation

PLAIN = write_set(data_root() / "plain.npz", np.zeros((OOD, SIZE, SIZE, 3), np.uint8))  # without labels


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"evaluation": {"sets": {"ood": []}}}, "evaluation.sets.ood is empty"),
        ({"evaluation": {"sets": {"ood": ["marks", "grounds", "marks"]}}}, "marks has the name 'marks' of another set"),
        ({"evaluation": {"sets": {"ood": ["marks", "grounds", "tiny"]}}}, "tiny has the name 'tiny' of another set"),
        ({"evaluation": {"sets": {"ood": ["marks", "nowhere"]}}}, "'nowhere' is no known set"),
        (
            {"evaluation": {"sets": {"ood": ["marks"]}}},
            "headline_sets: grounds is not among the OOD sets (marks in eval",
        ),
        ({"claim": {"headline_sets": ["svhn"]}}, "svhn is not among the OOD sets (marks, grounds in data.ood of the"),
        ({"evaluation": {"sweeps": {"compressed": "nowhere"}}}, "'nowhere' is no known set"),
        ({"evaluation": {"sweeps": {"compressed": str(PLAIN)}}}, "has no labels; expected a set with labels"),
        ({"claim": {"level": 2}}, "claim.level is 2"),
        ({"claim": {"levle": 0.9}}, "there is no key claim.levle (did you mean claim.level?)"),
    ],
)
def test_wrong_sets_are_one_line_and_nothing_is_written(more: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(["--config", str(study_config(tmp_path, **more))])
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_networks_are_not_scored_on_what_they_are_trained_on(tmp_path: Path) -> None:
    """A file has no splits: its test images are its training images, which is seen before the training."""
    source = np.load(data_root() / "tiny" / "train.npz")
    file = write_set(tmp_path / "mine.npz", source["images"], source["labels"])
    recipe = TRAINING | {"data": TRAINING["data"] | {"in_distribution": str(file)}}
    with pytest.raises(UserError, match=r"mine.npz has no test images .* id_split val"):
        main(["--config", str(study_config(tmp_path, recipe))])
    assert not (tmp_path / "runs").exists()
    sets = {"sets": {"id_split": "val"}}
    check_evaluation(*options_and_configs(study_config(tmp_path, recipe, evaluation=sets)))


def options_and_configs(config: Path):  # type: ignore[no-untyped-def]
    options = options_of(config)
    return options, {norm: expected_config(options, StudyCell(norm, 0)) for norm in options.norms}
