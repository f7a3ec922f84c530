"""What is asked of an evaluation: the options of every network, and the sets of a trained run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnood.errors import UserError

DEFAULT_DETECTORS = ("msp", "energy", "max_logit", "react", "temperature")
SEEDS = 2**32


@dataclass
class EvaluationOptions:
    """How a network is evaluated.

    Args:
        statistics: names of :mod:`bnood.evaluation.conditions`; running is always evaluated. Networks without BatchNorm
            have running alone.
        detectors: names of :mod:`bnood.evaluation.detectors`.
        fitted_under: whether detectors are fitted under the ID side's statistics of each condition, or under running.
        calibration: ``matched`` gives both sides of a comparison the same number of images to estimate statistics on;
            ``v0.1`` uses all images of each side, as version 0.1 did.
        calibration_images: images that statistics are estimated on, at most.
        estimator: ``one_pass`` or ``sequential``; see :mod:`bnood.statistics`.
        shuffles: how many random orders of the images are batched; metrics are averaged over them.
        fit_images: training images that detectors are fitted on, at most; 0: all.
        held_out_images: ID images held out of training that ReAct and the temperature are fitted on, at most; 0: none.
        placebo: also compare ID images under statistics of other ID images with ID images under yet other ones.
        shifts: shifted ID sets: a corruption and its strength (noise-3), grey, or the name of a labelled set.
        resamples: bootstrap resamples behind each interval.
        seed: of shuffles, splits and bootstrap.
        forward_batch: images per forward pass where the batch does not matter.
        estimation_batch: images per forward pass where statistics are estimated.
        workers: processes that decode photographs.
    """

    statistics: tuple[str, ...] = ("running", "batch", "recalibrated")
    detectors: tuple[str, ...] = DEFAULT_DETECTORS
    fitted_under: Literal["condition", "running"] = "condition"
    calibration: Literal["matched", "v0.1"] = "matched"
    calibration_images: int = 5000
    estimator: Literal["one_pass", "sequential"] = "one_pass"
    shuffles: int = 3
    fit_images: int = 5000
    held_out_images: int = 1000
    placebo: bool = False
    shifts: tuple[str, ...] = ()
    resamples: int = 1000
    seed: int = 0
    forward_batch: int = 128
    estimation_batch: int = 500
    workers: int = 0

    def __post_init__(self) -> None:
        from bnood.data.corruptions import check_shift
        from bnood.evaluation.conditions import parse_statistics  # brings torch, which --help can do without
        from bnood.evaluation.detectors import make_detector

        for name in ("statistics", "detectors", "shifts"):
            given = getattr(self, name)
            setattr(self, name, (given,) if isinstance(given, str) else tuple(given))
        parse_statistics(self.statistics)
        for detector in self.detectors:
            make_detector(detector)
        for shift in self.shifts:
            check_shift(shift)
        for name, choices in (
            ("fitted_under", ("condition", "running")),
            ("calibration", ("matched", "v0.1")),
            ("estimator", ("one_pass", "sequential")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}: choose {' or '.join(choices)}")
        least = {"calibration_images": 2, "shuffles": 1, "fit_images": 0, "held_out_images": 0, "workers": 0}
        for name, lowest in {**least, "forward_batch": 1, "estimation_batch": 2}.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be at least {lowest}")
        if self.resamples < 2:
            raise UserError(f"resamples is {self.resamples}: an interval needs at least 2 (1,000 to be of use)")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed is {self.seed}; expected a whole number from 0 to {SEEDS - 1}")


@dataclass
class SetOptions:
    """Which images of a trained run are scored.

    Args:
        ood: names of the OOD sets; none: those of the run's config.
        id_split: ``test`` (the official test images) or ``val`` (the training images held out for validation).
        id_count: score only so many ID images; none: all.
        ood_count: open only so many images of each OOD set, before it is halved; none: all.
        root: folder of the data sets; none: that of the run's config.
        download: whether torchvision may download what is missing; none: as the run's config says.
    """

    ood: tuple[str, ...] | None = None
    id_split: Literal["test", "val"] = "test"
    id_count: int | None = None
    ood_count: int | None = None
    root: Path | None = None
    download: bool | None = None

    def __post_init__(self) -> None:
        if self.id_split not in ("test", "val"):
            raise UserError(f"id_split is {self.id_split!r}: choose test or val")
        for name in ("id_count", "ood_count"):
            count = getattr(self, name)
            if count is not None and count < 2:
                raise UserError(f"{name} is {count}; at least 2 images are needed")

    def placed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The section data of a training config, with the root and the download that hold in the evaluation."""
        root = data.get("root") if self.root is None else self.root
        download = data.get("download", False) if self.download is None else self.download
        return {**data, "root": None if root is None else Path(root), "download": download}
