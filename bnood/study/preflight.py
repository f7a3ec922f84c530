"""What a study checks of its evaluation before anything is trained or written: hours of training come before it."""

from collections.abc import Mapping
from typing import Any

from bnood.data.datamodule import ImageDataModule
from bnood.data.image_set import ImageSet
from bnood.data.sources import load_images, set_name
from bnood.data.splits import halves
from bnood.errors import UserError
from bnood.evaluation.run_evaluation import check_id_split
from bnood.evaluation.sweeps import load_compressed
from bnood.study.grid import StudyCell, StudyOptions, cell_evaluation
from bnood.training.command_line import in_short


def check_evaluation(options: StudyOptions, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the sets of a study, and open every one of them once.

    Args:
        options: the study.
        expected: the training config of each norm. All have the same images.

    Raises:
        UserError: if a set is missing, damaged or too small, is named twice, or lacks labels that are needed; if there
            are no OOD sets, or headline sets that are none of them; or if test images are asked for where the networks
            are trained on them.
    """
    norm, config = next(iter(expected.items()))
    evaluation = cell_evaluation(options, StudyCell(norm, options.seeds[0]))
    sets, section = evaluation.sets, evaluation.sets.placed(config["data"])
    data = ImageDataModule(**section | {"ood": tuple(section["ood"])})
    names = sets.ood if sets.ood is not None else data.ood
    where = "data.ood of the training config" if sets.ood is None else "evaluation.sets.ood"
    if not names:
        raise UserError(f"{where} is empty: a study needs at least one OOD set, for example [svhn, dtd]")
    check_id_split(section, sets, f"every network of {options.name}")
    _, validation = data.split()
    id_set = validation if sets.id_split == "val" else _load(data, data.in_distribution)
    if len(id_set) < 2:
        raise UserError(f"{id_set.name}: id_split {sets.id_split} has {len(id_set)} image(s); at least 2 are needed")
    if id_set.labels is None:
        raise UserError(f"{id_set.name}: its test images have no labels; expected labels, or id_split val")
    opened = [set_name(data.in_distribution, id_set)]
    for name in names:
        images = _load(data, name)
        halves(len(images), evaluation.conditions.seed, name=images.name)
        own = set_name(name, images)
        if own in opened:
            raise UserError(f"{where}: {name} has the name {own!r} of another set of the study; expected each set once")
        opened.append(own)
    if missing := [name for name in options.claim.headline_sets if name not in opened[1:]]:
        raise UserError(
            f"claim.headline_sets: {', '.join(missing)} is not among the OOD sets ({', '.join(opened[1:])} in {where})"
        )
    load_compressed(section, sets, evaluation.sweeps)


def _load(data: ImageDataModule, name: str) -> ImageSet:
    try:
        return load_images(name, "test", data.root, download=data.download, image_size=data.image_size)
    except UserError as error:
        raise UserError(in_short(str(error))) from error
