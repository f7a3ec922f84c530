"""What is measured of a run beside the conditions: interventions, the price of matching, the lens on its layers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bnood.data.corruptions import CORRUPTIONS, STRENGTHS
from bnood.data.datamodule import has_test_images
from bnood.data.image_set import ImageSet
from bnood.data.sources import load_images
from bnood.errors import UserError
from bnood.evaluation.activations import lens_tables
from bnood.evaluation.conditions import Cost, Images
from bnood.evaluation.evaluate import SetOptions
from bnood.evaluation.interventions.sweep import InterventionOptions, chosen_images, intervene
from bnood.evaluation.price import CLEAN, CLEAN_TEST, PriceOptions, price_of_matching, shifted_sets
from bnood.statistics import has_batchnorm
from bnood.training.run_folder import Run


@dataclass
class SweepOptions:
    """What is measured beside the conditions.

    Args:
        enabled: whether anything is.
        interventions: matched statistics in a part of the layers, paths, priors, batch sizes (BatchNorm alone). The
            lens looks at the same images.
        price: of matching, on shifted in-distribution images.
        compressed: name of a set of JPEG-compressed in-distribution images with labels; none: left out.
        corruptions: that the in-distribution images are given; see :mod:`bnood.data.corruptions`.
        strengths: of the corruptions, 1 to 5.
    """

    enabled: bool = True
    interventions: InterventionOptions = field(default_factory=InterventionOptions)
    price: PriceOptions = field(default_factory=PriceOptions)
    compressed: str | None = None
    corruptions: tuple[str, ...] = CORRUPTIONS
    strengths: tuple[int, ...] = STRENGTHS

    def __post_init__(self) -> None:
        for name, known in (("corruptions", CORRUPTIONS), ("strengths", STRENGTHS)):
            unknown = [str(each) for each in getattr(self, name) if each not in known]
            if unknown:
                raise UserError(f"{name}: {', '.join(unknown)} is none of {', '.join(map(str, known))}")


@dataclass(frozen=True)
class CompressedImages:
    """Images that the price of matching needs beside those of the evaluation.

    Attributes:
        compressed: JPEG-compressed in-distribution images with labels; None: left out.
        clean_test: the in-distribution set's test images, which they may have been made of; None if it has none.
    """

    compressed: ImageSet | None = None
    clean_test: ImageSet | None = None


def load_compressed(data: Mapping[str, Any], sets: SetOptions, options: SweepOptions) -> CompressedImages:
    """Load what ``options.compressed`` names; nothing if there are no sweeps or it names nothing.

    Args:
        data: the section data of a training config.
        sets: where sets are looked for, if not where the config says.
        options: of the sweeps.

    Raises:
        UserError: if the set is missing, damaged or without labels, or has the name of a set that is made here.
    """
    if not options.enabled or options.compressed is None:
        return CompressedImages()
    compressed = _load(data, sets, options.compressed)
    made = {
        CLEAN,
        CLEAN_TEST,
        *(f"{kind}-{strength}" for kind in options.corruptions for strength in options.strengths),
    }
    if compressed.name in made:
        raise UserError(
            f"compressed: {compressed.name!r} is the name of a set that is made here; expected another name"
        )
    if compressed.labels is None:
        raise UserError(f"compressed: {options.compressed} has no labels; expected a set with labels")
    name = data["in_distribution"]
    has_test = has_test_images(name, sets.placed(data)["root"])
    return CompressedImages(compressed, _load(data, sets, name) if has_test else None)


def _load(data: Mapping[str, Any], sets: SetOptions, name: str) -> ImageSet:
    place = sets.placed(data)
    return load_images(name, "test", place["root"], download=place["download"], image_size=data.get("image_size", 32))


@dataclass
class Sweeps:
    """What the sweeps found.

    Attributes:
        tables: by the name of their file.
        record: what they were asked and what they cost, for ``evaluation.json``.
        notes: one line for everything that was left out.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the tables into a folder. Raises :class:`UserError` if it can't."""
        try:
            for name, table in self.tables.items():
                if name.endswith(".parquet"):
                    table.to_parquet(folder / name, index=False)
                else:
                    table.to_csv(folder / name, index=False, float_format="%.6g")
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise UserError(f"{folder}: the sweeps cannot be written there ({reason})") from error


def run_sweeps(
    run: Run, images: Images, more: CompressedImages, options: SweepOptions, tell: Callable[[str], object]
) -> Sweeps:
    """Run all sweeps that a network has; those of BatchNorm's statistics are left out for other networks.

    Args:
        run: the trained network, left as it was.
        images: of the evaluation.
        more: of :func:`load_compressed`.
        options: how much is measured.
        tell: is called with the name of each step that begins.
    """
    found = Sweeps()
    began = time.perf_counter()
    if has_batchnorm(run.classifier):
        tell("interventions")
        moved = intervene(run.classifier, images, options.interventions)
        found.tables["interventions.csv"] = _named(run, moved.table)
        found.tables["intervention_draws.parquet"] = moved.draws
        found.record["interventions"] = moved.record
        found.notes += [f"interventions: {note}" for note in moved.notes]
    tell("price of matching")
    cost = Cost()
    shifted = shifted_sets(
        images.id_set,
        more.compressed,
        options.corruptions,
        options.strengths,
        options.price.seed,
        count=options.price.id_images,
        clean_test=more.clean_test,
    )
    found.tables["shift.csv"] = _named(run, price_of_matching(run.classifier, images, shifted, options.price, cost))
    found.record["price"] = {"images_scored": cost.scored, "images_estimated_on": cost.estimated_on}
    found.record["shifted"] = {name: len(each) for name, each in shifted.items()}
    tell("lens")
    layers, distances = lens_tables(run.classifier, chosen_images(images, options.interventions))
    found.tables["layers.parquet"] = layers
    if len(distances):
        found.tables["layer_distances.csv"] = distances
    found.record["seconds"] = time.perf_counter() - began
    found.record["options"] = asdict(options)
    return found


def _named(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns run, norm and seed in front."""
    own = pd.DataFrame({"run": run.name, "norm": run.classifier.norm, "seed": run.seed}, index=table.index)
    return pd.concat([own, table], axis=1)
