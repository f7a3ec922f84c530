"""Matched statistics in one layer, in the first k and in the last k: one walk through the network for all of them.

The walk keeps, at each segment, four states: of the calibration images and of the scored images, under running
statistics and under matched ones. What it needs no pass for:

- ``only l``: upstream of l everything runs as usual, so l's matched statistics are those of its input under running
  statistics, which the walk of the calibration images sees anyway. The scored images start from the segment of l.
- ``first k``: upstream of layer k everything is matched, so its statistics are those of the fully matched network,
  which the other walk sees. The scored images start from the matched state.
- ``last k``: below its first layer nothing differs from ``none``. From there on the calibration images pass again,
  since the input of every later layer is a new one.
- ``first 1`` and ``last 1`` are an ``only``; ``first L`` and ``last L`` of L layers are ``all``.
"""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from bnood.evaluation.interventions.effects import Place
from bnood.evaluation.interventions.segments import Outputs, Segments
from bnood.statistics import BatchNormStatistics, LayerStatistics

Results = Generator[tuple[Place, Outputs], None, None]


@dataclass
class States:
    """What arrives at a segment: of the calibration images and of the scored ones."""

    calibration: Tensor
    scored: Tensor


def layer_sweep(
    segments: Segments, calibration: Tensor, scored: Tensor
) -> Generator[tuple[Place, Outputs], None, BatchNormStatistics]:
    """Kinds ``only``, ``first``, ``last``, then ``none`` and ``all``; returns the fully matched statistics.

    Args:
        segments: the network.
        calibration: uint8 images ``[n, H, W, 3]`` on the network's device, which statistics are matched to.
        scored: those that are scored, likewise.
    """
    end = len(segments) - 1
    running = matched = States(calibration, scored)
    statistics: dict[str, LayerStatistics] = {}
    for segment in range(end + 1):
        ahead, own = segments.measure(running.calibration, [segment], _leave, segments.layers)
        matched_ahead, found = segments.measure(matched.calibration, [segment], _take, segments.layers)
        statistics |= found
        following = None
        if segment < end:
            following = States(matched_ahead, segments.advance(matched.scored, segment, BatchNormStatistics(found)))
        yield from _only_and_last(segments, segment, running, own)
        yield from _first(segments, segment, matched, following, statistics)
        if following is not None:
            running, matched = States(ahead, segments.advance(running.scored, segment)), following
    fully = BatchNormStatistics(statistics)
    yield Place("none"), segments.finish(running.scored, end)
    outputs = segments.finish(matched.scored, end, fully)
    yield Place("all"), outputs
    for kind in ("first", "last"):
        yield _place(kind, len(segments.layers)), outputs
    return fully


def _only_and_last(segments: Segments, segment: int, running: States, own: dict[str, LayerStatistics]) -> Results:
    layers, rest = segments.layers, range(segment, len(segments))
    for name in own:
        position = layers.index(name)
        outputs = segments.finish(running.scored, segment, BatchNormStatistics({name: own[name]}))
        yield Place("only", name, position), outputs
        if position == 0 and len(layers) > 1:
            yield _place("first", 1), outputs
        if 0 < position < len(layers) - 1:
            _, found = segments.measure(running.calibration, rest, _take, layers[position:])
            outputs = segments.finish(running.scored, segment, BatchNormStatistics(found))
        if position > 0:
            yield _place("last", len(layers) - position), outputs


def _first(
    segments: Segments,
    segment: int,
    matched: States,
    following: States | None,
    statistics: dict[str, LayerStatistics],
) -> Results:
    """``first k`` where the k-th layer lies in ``segment``; ``following``: the matched states behind it."""
    layers = segments.layers
    inside = [position for position, name in enumerate(layers) if segments.segment_of[name] == segment]
    for position in inside:
        if not 0 < position < len(layers) - 1:
            continue  # an ``only``, or ``all``
        if following is not None and position == inside[-1]:
            outputs = segments.finish(following.scored, segment + 1)
        else:
            chosen = BatchNormStatistics({name: statistics[name] for name in layers[: position + 1]})
            outputs = segments.finish(matched.scored, segment, chosen)
        yield _place("first", position + 1), outputs


def _place(kind: str, layers: int) -> Place:
    return Place(kind, f"{layers}", layers)


def _leave(name: str, statistics: LayerStatistics) -> None:
    """The layer keeps its running statistics."""


def _take(name: str, statistics: LayerStatistics) -> LayerStatistics:
    """The layer normalises with its input's own statistics."""
    return statistics
