"""What is asked of an evaluation: the options of every network, and the sets of a trained run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bnood.errors import UserError

DEFAULT_DETECTORS = ("msp", "energy", "max_logit", "react", "temperature")
LEAST = {
    "calibration_images": 2, "shuffles": 1, "fit_images": 0, "held_out_images": 0, "workers": 0, "forward_batch": 1,
    "estimation_batch": 2, "id_count": 2, "ood_count": 2, "resamples": 2, "seed": 0,
}  # fmt: skip
MOST = {"resamples": 100_000, "seed": 2**32 - 1}
Names = tuple[str, ...] | str  # or text with commas


def listed(given: Sequence[Any] | str) -> tuple[str, ...]:
    """Names of a list, or of text with commas. Raises ``UserError`` for text without any."""
    if not isinstance(given, str | Sequence):
        raise UserError(f"{given!r} is no list of names: give one or more names, in a list or separated by commas")
    parts = given.split(",") if isinstance(given, str) else given
    names = tuple(str(part).strip() for part in parts if str(part).strip())
    if isinstance(given, str) and not names:
        raise UserError(f"{given!r} names nothing: give one or more names, separated by commas")
    return names


def _check(options: Any) -> None:
    for name, kind in get_type_hints(type(options)).items():
        given = getattr(options, name)
        if get_origin(kind) is Literal and given not in get_args(kind):
            raise UserError(f"{name} is {given!r}: choose {' or '.join(get_args(kind))}")
        if kind in (int, int | None) and (isinstance(given, bool) or not isinstance(given, Integral | kind)):
            raise UserError(f"{name} is {given!r}; expected a whole number")
        if kind is bool and not isinstance(given, bool):
            raise UserError(f"{name} is {given!r}; expected true or false")
        if name in LEAST and given is not None and given < LEAST[name]:
            raise UserError(f"{name} is {given}; it has to be at least {LEAST[name]}")
        if name in MOST and given > MOST[name]:
            raise UserError(f"{name} is {given}; it has to be at most {MOST[name]}")


@dataclass
class EvaluationOptions:
    """How a network is evaluated.

    Args:
        statistics: running, batch, recalibrated, batch:64@0.5, path:0.5, ..., a list or by comma; running is always
            evaluated. Networks without BatchNorm have running alone.
        detectors: msp, energy, max_logit, react, temperature, knn, mahalanobis, vim, ..., a list or by comma.
        fitted_under: whether detectors are fitted under the ID side's statistics of each condition, or under running.
        calibration: matched gives both sides of a comparison the same number of images to estimate statistics on;
            v0.1 uses all images of each side, as version 0.1 did.
        calibration_images: images that statistics are estimated on, at most.
        estimator: how statistics are estimated; see docs/method.md.
        shuffles: how many random orders of the images are batched; metrics are averaged over them.
        fit_images: training images that detectors are fitted on, at most; 0: all.
        held_out_images: ID images held out of training that ReAct and the temperature are fitted on, at most; 0: none.
        placebo: also compare ID images under statistics of other ID images with ID images under yet other ones.
        shifts: shifted ID sets: a corruption and its strength (noise-3), grey, or the name of a labelled set.
        resamples: bootstrap resamples behind each interval.
        seed: of shuffles, splits and bootstrap.
        forward_batch: images per forward pass where the batch does not matter.
        estimation_batch: images per forward pass where statistics are estimated; none: 500 from arrays that the network
            takes as they are, else 128.
        workers: processes that decode photographs.
    """

    statistics: Names = ("running", "batch", "recalibrated")
    detectors: Names = DEFAULT_DETECTORS
    fitted_under: Literal["condition", "running"] = "condition"
    calibration: Literal["matched", "v0.1"] = "matched"
    calibration_images: int = 5000
    estimator: Literal["one_pass", "sequential"] = "one_pass"
    shuffles: int = 3
    fit_images: int = 5000
    held_out_images: int = 1000
    placebo: bool = False
    shifts: Names = ()
    resamples: int = 1000
    seed: int = 0
    forward_batch: int = 128
    estimation_batch: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        from bnood.data.corruptions import check_shift
        from bnood.evaluation.conditions import parse_statistics  # brings torch, which --help can do without
        from bnood.evaluation.detectors import make_detector

        self.statistics, self.detectors, self.shifts = map(listed, (self.statistics, self.detectors, self.shifts))
        parse_statistics(self.statistics)
        for detector in self.detectors:
            make_detector(detector)
        for shift in self.shifts:
            check_shift(shift)
        _check(self)


def options_with(settings: Mapping[str, Any], options: EvaluationOptions | None = None) -> EvaluationOptions:
    """The options with some of them replaced. Raises ``UserError`` for names of none."""
    known = [each.name for each in fields(EvaluationOptions)]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"there is no setting {unknown[0]!r}; expected {', '.join(known)}")
    if not isinstance(options, EvaluationOptions | None):
        raise UserError(f"options is a {type(options).__name__}; expected EvaluationOptions, or settings by name")
    return replace(options or EvaluationOptions(), **settings)


@dataclass
class SetOptions:
    """Which images of a trained run are scored.

    Args:
        ood: names of the OOD sets, .npz files or folders, a list or by comma; none: those of the run's config.
        id_split: test (the official test images) or val (the training images held out for validation).
        id_count: score only so many ID images; none: all.
        ood_count: open only so many images of each OOD set, before it is halved; none: all.
        root: folder of the data sets; none: that of the run's config.
        download: whether torchvision may download what is missing; none: as the run's config says.
    """

    ood: Names | None = None
    id_split: Literal["test", "val"] = "test"
    id_count: int | None = None
    ood_count: int | None = None
    root: Path | None = None
    download: bool | None = None

    def __post_init__(self) -> None:
        self.ood = None if self.ood is None else listed(self.ood)
        _check(self)

    def placed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The section data of a training config, with the root and the download that hold in the evaluation."""
        root = data.get("root") if self.root is None else self.root
        download = data.get("download", False) if self.download is None else self.download
        return {**data, "root": None if root is None else Path(root), "download": download}
